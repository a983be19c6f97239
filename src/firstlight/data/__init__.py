"""What comes in: images and their labels, and how they are varied and batched.

A new source is added to `SOURCES`, a new augmentation to `AUGMENTATIONS`.
"""

from firstlight.data.augment import Crop, Cutout, FlipLR, Jitter
from firstlight.data.cifar10 import Cifar10
from firstlight.data.folder import Folder
from firstlight.data.shapes import Shapes

SOURCES = (Cifar10, Folder, Shapes)
AUGMENTATIONS = (Crop, FlipLR, Jitter, Cutout)
