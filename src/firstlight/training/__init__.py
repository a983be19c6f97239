"""How it learns. A new part is added to its line below."""

from firstlight.training.lr_finder import RangeTest
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon
from firstlight.training.schedule import OneCycle

OPTIMIZERS = (SGD, Adam, AdamW, Muon)
FINDERS = (RangeTest,)
SCHEDULES = (OneCycle,)
