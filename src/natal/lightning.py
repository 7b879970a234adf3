"""A Lightning callback that prunes while a ``Trainer`` trains: ``pip install 'natal[lightning]'``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natal.errors import NatalError, require
from natal.pruning.schedule import PruningSchedule
from natal.study import Recipe

require("pytorch_lightning", extra="lightning")

from pytorch_lightning import Callback  # noqa: E402
from torch import Tensor  # noqa: E402


class PruningCallback(Callback):  # type: ignore[misc]
    """`natal.PruningSchedule` inside ``pytorch_lightning.Trainer.fit``, one step of it after each of the optimiser's.

    ``strategy``, ``sparsity``, ``steps`` and the rest: as there; the scheduler is the trainer's own. ``schedule``: the
    schedule once training has begun, with its mask and proofs. The data go on in the trainer's order after a rewind.
    Raises NatalError for what cannot be done: more than one optimiser or process, a checkpoint to resume from, a
    trainer that stops before the last round ends, and a rewind under a scheduler that moves by the epoch.
    """

    def __init__(
        self, strategy: str | Mapping[str, Any] | Recipe, sparsity: float = 0.9, *, steps: int, **options: Any
    ) -> None:
        if "scheduler" in options:
            raise NatalError("PruningCallback takes the trainer's own scheduler; leave scheduler out")
        self.schedule: PruningSchedule | None = None
        self._asked = strategy, sparsity
        self._options = {"steps": steps, **options}
        self._taken = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the schedule, which cuts what is cut at birth."""
        configs = trainer.lr_scheduler_configs
        if len(trainer.optimizers) != 1 or len(configs) > 1:
            raise NatalError(
                f"PruningCallback takes one optimizer with one scheduler at most, got {len(trainer.optimizers)} and "
                f"{len(configs)}"
            )
        if trainer.world_size > 1:
            raise NatalError(f"PruningCallback takes one process, got {trainer.world_size}; set devices=1")
        if trainer.global_step:
            raise NatalError("PruningCallback begins at birth and cannot go on from a checkpoint")
        options = dict(self._options)
        if isinstance(options.get("batch"), tuple | list):
            options["batch"] = tuple(
                part.to(pl_module.device) if isinstance(part, Tensor) else part for part in options["batch"]
            )
        schedule = PruningSchedule(
            pl_module,
            trainer.optimizers[0],
            *self._asked,
            scheduler=configs[0].scheduler if configs else None,
            **options,
        )
        complaint = ""
        if schedule.recipe.rewind != "none" and configs and configs[0].interval != "step":
            complaint = 'a rewind winds the scheduler back, which must move by the step: set interval="step"'
        elif trainer.estimated_stepping_batches < schedule.total:
            complaint = (
                f"the trainer takes {trainer.estimated_stepping_batches} steps and the schedule {schedule.total}; set "
                f"max_steps={schedule.total}"
            )
        if complaint:
            schedule.close()
            raise NatalError(complaint)
        self.schedule, self._taken = schedule, trainer.global_step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Take a step of the schedule if the optimiser has taken one: it may gather several batches."""
        if self.schedule is not None and trainer.global_step > self._taken:
            self._taken = trainer.global_step
            self.schedule.step()

    def on_train_end(self, *_: Any) -> None:
        """Leave the model to itself, its removed weights 0."""
        if self.schedule is not None:
            self.schedule.close()

    def on_exception(self, *_: Any) -> None:
        """Do so, too, if training ends of an error or Ctrl-C."""
        self.on_train_end()
