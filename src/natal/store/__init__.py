"""What was found: finished trainings, kept. No torch here."""

from natal.store.packing import Later, plain
from natal.store.record import Curves, Failure, NetworkFacts, Outcome, Record, TaskFacts, whole
from natal.store.search import Tried, chosen, deciding
from natal.store.sqlite import FILE, Store, mapping
from natal.store.states import MASK, NOW, Place, States, replace_whole
from natal.store.training import Table

__all__ = [
    "FILE", "MASK", "NOW", "Curves", "Failure", "Later", "NetworkFacts", "Outcome", "Place", "Record", "States",
    "Store", "Table", "TaskFacts", "Tried", "chosen", "deciding", "mapping", "plain", "replace_whole", "whole",
]  # fmt: skip
