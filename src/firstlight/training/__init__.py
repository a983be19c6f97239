"""How it learns."""

from firstlight.training.lr_finder import RangeTest
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon
from firstlight.training.schedule import OneCycle

OPTIMIZERS = (SGD, Adam, AdamW, Muon)
FINDERS = (RangeTest,)
SCHEDULES = (OneCycle,)
