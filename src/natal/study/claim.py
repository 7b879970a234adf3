"""What a paper states, and where a study finds its own number for it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_serializer, model_validator

from natal.study.base import Model, Number, Words
from natal.wording import perhaps_percent

_OF_A_CELL = ("mean", "epochs", "best-iteration", "reached")
_OF_TWO = ("difference", "ratio")


class Claim(Model):
    """One thing a paper states, and where a study finds its own number for it.

    ``quantity``, of ``strategy`` on ``task`` with ``network`` (left out, the study's only one):

    - of the cell at ``sparsity``: ``mean`` (test metric), ``epochs`` (mean epochs trained), ``best-iteration`` (mean
      optimiser step of the deciding evaluation), ``reached`` (mean step of the first evaluation whose validation
      metric is at least ``value``);
    - of a strategy's levels: ``critical-sparsity``, ``kept-through`` (the highest level up to which every level keeps
      0.95 of dense), ``chance-from`` (the lowest level from which on all are at chance), ``peak-sparsity`` (the level
      with the highest mean), ``early-failures`` (of the runs that ended before the epoch budget, the share below 0.95
      of dense);
    - of two strategies, paired by seed, at ``sparsity`` or over all pruned levels: ``difference`` (strategy minus
      ``against``, another strategy or ``dense``), ``ratio`` (strategy by ``against``, the geometric mean); both ``of``
      the test ``metric``, the ``best-iteration`` or where a value is ``reached``.

    The claim is that the quantity is ``published``, or ``at_least`` or ``at_most`` a number; with none of them, that a
    ``difference`` is positive. ``where``: the place in the paper.
    """

    text: Words
    quantity: Literal[
        "mean", "epochs", "critical-sparsity", "kept-through", "chance-from", "peak-sparsity", "early-failures",
        "difference", "ratio", "best-iteration", "reached",
    ]  # fmt: skip
    task: str
    network: str | None = None
    strategy: str
    against: str | None = None
    sparsity: Number | None = None
    published: Number | None = None
    of: Literal["metric", "best-iteration", "reached"] = "metric"
    value: Number | None = None
    at_least: Number | None = None
    at_most: Number | None = None
    where: Words | None = None

    @property
    def measured(self) -> str:
        """What is measured of each run: ``metric``, ``epochs``, ``best-iteration`` or ``reached``."""
        return self.of if self.quantity in _OF_TWO else {"mean": "metric"}.get(self.quantity, self.quantity)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("text", "quantity", "task", "strategy", "sparsity"))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        of_two = self.quantity in _OF_TWO
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(
                f"sparsity must lie in [0, 1), got {self.sparsity}{perhaps_percent(self.sparsity)}"
            )
        if self.against == self.strategy:
            raise ValueError(
                f"against must name another strategy than the claim's own, got {self.against!r}; name one, or dense"
            )
        if not of_two and (self.sparsity is None) == (self.quantity in _OF_A_CELL):
            raise ValueError(
                f"quantity {self.quantity!r} goes {'with' if self.sparsity is None else 'without'} a sparsity"
            )
        if (self.against is None) == of_two:
            needs = "needs against, the name of another strategy" if of_two else "takes no against"
            raise ValueError(f"quantity {self.quantity!r} {needs}")
        if self.against == "dense" and self.sparsity is None:
            raise ValueError(f"a {self.quantity} from dense needs a sparsity")
        if self.of != "metric" and not of_two:
            raise ValueError(
                f"quantity {self.quantity!r} takes no of, which says of what a difference or ratio is"
            )
        if (self.value is None) == (self.measured == "reached"):
            raise ValueError(
                "value, the metric that is to be reached, goes with reached and with nothing else"
            )
        stated = [b for b in (self.published, self.at_least, self.at_most) if b is not None]
        if len(stated) > 1:
            raise ValueError("a claim states one of published, at_least and at_most")
        if not stated and self.quantity != "difference":
            raise ValueError(f"quantity {self.quantity!r} needs a published number, at_least or at_most")
        return self
