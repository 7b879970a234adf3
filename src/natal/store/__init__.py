"""What was found: finished trainings, kept. No torch here."""

from natal.store.record import Curves, NetworkFacts, Outcome, Record, TaskFacts
from natal.store.search import Tried, chosen, deciding
from natal.store.sqlite import FILE, Store

__all__ = [
    "FILE", "Curves", "NetworkFacts", "Outcome", "Record", "Store", "TaskFacts", "Tried", "chosen", "deciding",
]  # fmt: skip
