"""How it learns. A new part is added to its line below."""

from firstlight.training.constant import Constant
from firstlight.training.head import LogisticHead
from firstlight.training.optimizers import SGD, Adam, AdamW, Muon
from firstlight.training.race import Race
from firstlight.training.range_test import RangeTest
from firstlight.training.schedule import OneCycle

OPTIMIZERS = (SGD, Adam, AdamW, Muon)
FINDERS = (Race, RangeTest, Constant)
SCHEDULES = (OneCycle,)
HEADS = (LogisticHead,)
