"""What learns: networks, one file each. A new one is added to `NETWORKS`."""

from firstlight.models.custom_resnet import CustomResNetSpec
from firstlight.models.efficientnet_lite import EfficientNetLiteSpec
from firstlight.models.fast_net import FastNetSpec
from firstlight.models.resnet import ResNetSpec
from firstlight.models.spatial_transformer import SpatialTransformerSpec

NETWORKS = (CustomResNetSpec, FastNetSpec, EfficientNetLiteSpec, ResNetSpec, SpatialTransformerSpec)
