"""What was found: finished trainings, kept. No torch here."""

from natal.store.record import Outcome
from natal.store.sqlite import FILE, Store

__all__ = ["FILE", "Outcome", "Store"]
