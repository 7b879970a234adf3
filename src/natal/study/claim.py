"""What a paper states, and where a study finds its own number for it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_serializer, model_validator

from natal.study.base import Model, Number, Words


class Claim(Model):
    """One thing a paper states, and where a study finds its own number for it.

    ``quantity``, of ``strategy`` on ``task`` with ``network`` (left out, the study's only one): ``mean`` (test
    metric of the cell at ``sparsity``), ``epochs`` (mean epochs trained there), ``critical-sparsity``,
    ``kept-through`` (the highest level up to which every level keeps 0.95 of dense), ``chance-from`` (the lowest
    level from which on all are at chance), ``peak-sparsity`` (the level with the highest mean), ``early-failures``
    (of the runs that ended before the epoch budget, the share below 0.95 of dense), ``difference`` (strategy minus
    ``against``, another strategy or ``dense``, paired by seed; at ``sparsity``, or over all pruned levels).
    ``published``: the number; left out of a ``difference``, the claim is that it is positive.
    """

    text: Words
    quantity: Literal[
        "mean", "epochs", "critical-sparsity", "kept-through", "chance-from", "peak-sparsity",
        "early-failures", "difference",
    ]  # fmt: skip
    task: str
    network: str | None = None
    strategy: str
    against: str | None = None
    sparsity: Number | None = None
    published: Number | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: Any) -> dict[str, Any]:
        return self.without_defaults(handler(self), ("text", "quantity", "task", "strategy", "sparsity"))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        difference = self.quantity == "difference"
        if not difference and (self.sparsity is None) == (self.quantity in ("mean", "epochs")):
            raise ValueError(
                f"quantity {self.quantity!r} goes {'with' if self.sparsity is None else 'without'} a sparsity"
            )
        if (self.against is None) == difference:
            needs = "needs against, the name of another strategy" if difference else "takes no against"
            raise ValueError(f"quantity {self.quantity!r} {needs}")
        if self.against == "dense" and self.sparsity is None:
            raise ValueError("a difference from dense needs a sparsity")
        if self.published is None and not difference:
            raise ValueError(f"quantity {self.quantity!r} needs a published number")
        return self
