"""The cuts of a protocol inside a training loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from natal.errors import NatalError
from natal.pruning.choose import check, problem_of
from natal.pruning.criteria import Problem
from natal.pruning.criteria.flow import redraw
from natal.pruning.cuts import Cuts, cut
from natal.pruning.mask import Mask, check_model, prunable
from natal.pruning.masked import clear, is_masked
from natal.study import Recipe, Timeline, one_line, recipe_of, untimely

Event = Literal["", "cut", "rewound"]
"""What a step has brought: nothing, a cut after which training goes on, or one after which it starts again."""


@dataclass(frozen=True)
class _Moment:
    """What a training is wound back to: parameters and buffers, the optimiser's options, and its scheduler."""

    tensors: Mapping[str, Tensor]
    options: Sequence[Mapping[str, Any]]
    scheduler: Mapping[str, Any] | None


class PruningSchedule:
    """Cuts, rewinds and regrows a model while your own loop trains it, as a study's strategy says.

    .. code-block:: python

        schedule = natal.PruningSchedule(
            model,
            optimizer,
            {"criterion": "magnitude", "at": "end", "rounds": 3, "rewind": "init"},
            0.9,
            steps=1000,
        )
        while not schedule.done:
            ...  # a batch, zero_grad, backward
            optimizer.step()
            if schedule.step() == "rewound":
                ...  # begin the data again at step schedule.clock

    ``model``: a plain one, at birth; it is cut in place, and removed weights and their gradients stay 0
    whatever the optimiser remembers. ``strategy``: a criterion's name, a strategy as written in a study, or
    a `Recipe`, with the keys ``at``, ``rounds``, ``rates``, ``rewind``, ``regrow``. ``sparsity``: the final
    one. ``steps``: the optimiser's steps of one training; the loop takes ``total``, since what is wound
    back is trained again. ``steps_per_epoch``: for moments in epochs. ``retrain``: the steps after a cut
    ``at = "end"`` without rewind. ``batch``: (inputs, targets) for criteria that need data, ``loss``: of
    outputs and targets. ``scheduler``: the learning rate's, which is wound back with the weights.
    ``exclude``, ``seed``: as in `natal.prune`.

    Call `step` last in an iteration, after ``optimizer.step()`` and the scheduler's step. What the loop alone knows
    stays the loop's: the data's order after a rewind, evaluation, early stopping. Raises NatalError, one sentence, for
    what cannot be done in a loop: ``rounds = "levels"``, which walks a study's sparsities, the control
    ``small-dense``, which is another network, and a rewind under a scheduler that is not given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        strategy: str | Mapping[str, Any] | Recipe,
        sparsity: float = 0.9,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        retrain: int | None = None,
        batch: tuple[Any, Any] | None = None,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        scheduler: Any = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        check_model(model)
        for name, count in (("steps", steps), ("steps_per_epoch", steps_per_epoch), ("retrain", retrain)):
            whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
            if not whole and (count is not None or name == "steps"):
                raise NatalError(f"{name} must be a whole number of at least 1, got {count!r}")
        if batch is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise NatalError(f"batch must be a pair (inputs, targets), got {type(batch).__name__}")
        if scheduler is not None and not hasattr(scheduler, "state_dict"):
            raise NatalError(
                f"scheduler must be one of torch.optim.lr_scheduler, got {type(scheduler).__name__}"
            )
        self.recipe, self.sparsity = _recipe(strategy), sparsity
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self._batch, self._loss, self._exclude, self._seed = batch, loss, exclude, seed
        timeline = _timeline(self.recipe, steps, steps_per_epoch)
        self._check(retrain)
        recipe = self.recipe
        rounds = recipe.rounds if isinstance(recipe.rounds, int) else 1
        self._targets = [1 - (1 - sparsity) ** (j / rounds) for j in range(1, rounds)] + [sparsity]
        self._cuts: Cuts | None = None
        # the clock at which the first cut is made, the one it then stands at, and the one that a last training ends at
        self._at, self._first, self._length = 0, 0, steps
        if recipe.spread is not None:
            start, stop, every = (timeline.steps(recipe.spread[key]) for key in ("from", "to", "every"))
            self._cuts = Cuts(recipe, sparsity, start, stop, every, recipe.regrow, recipe.fraction)
        else:
            self._at = timeline.steps(str(recipe.at))
            if retrain is not None:
                self._length = retrain
            elif recipe.rewind != "clock":
                self._first = self._at if recipe.rewind == "none" else timeline.steps(recipe.rewind)
        self._again = retrain if retrain is not None else self._at - self._first
        # where nothing is trained between them, all cuts are made of the one state
        self.total = self._at + (rounds - 1) * self._again + self._length - self._first
        self.clock, self.taken, self.round = 0, 0, 0
        self.mask = Mask({})
        self._next = self._at
        self._held, self._rewound = True, True
        self._restarted: list[dict[str, Any]] = []
        self._reached: list[float] = []
        self._moments: dict[int, _Moment] = {}
        self._birth = {n: w.clone() for n, w in self._prunable().items()} if recipe.control else {}
        self._gradient: dict[str, Tensor] | None = None
        self._stepped = False
        if self._cuts is not None:
            self._settle(self._cuts.opening(self._problem()))
        elif self._at == 0:
            self._settle(self._cut())
        else:
            self._settle(self.mask)
            self._remember()
        self._hooks = [
            optimizer.register_step_post_hook(self._after),
            *(
                parameter.register_post_accumulate_grad_hook(self._mute)  # type: ignore[no-untyped-call]
                for parameter in model.parameters()
                if parameter.requires_grad
            ),
        ]

    # -- in the loop ------------------------------------------------------------------------------------------

    def step(self) -> Event:
        """Count a step of the optimiser and do what is due after it; return what that was."""
        self.taken += 1
        self.clock += 1
        self._look()
        event: Event = ""
        if self._cuts is not None:
            if self.clock in self._cuts.steps:
                self._check_steps()
                event = self._cut_inside(self._cuts)
        elif self.round < len(self._targets):
            self._remember()
            if self.clock == self._next:
                self._check_steps()
                event = self._cut_and_rewind()
        self._gradient = None
        return event

    @property
    def done(self) -> bool:
        """Whether the last round has been trained to its end."""
        return self.taken >= self.total

    @property
    def proofs(self) -> dict[str, Any]:
        """What was checked: ``held``, removed weights were exactly 0 after every step; ``rewound``, what went on after
        every rewind was the weights of that moment, bit for bit; ``rounds``, the realised sparsity of every cut;
        ``restarted``, after each of them the ``clock``, whether the ``optimiser`` was ``fresh`` or ``kept``, and the
        ``learning_rate``."""
        self._look()
        return {
            "held": self._held,
            "rewound": self._rewound,
            "rounds": list(self._reached),
            "restarted": list(self._restarted),
        }

    def close(self) -> None:
        """Leave the model to itself: its removed weights are 0 and no longer held."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _check_steps(self) -> None:
        """Refuse to cut what was never trained: a forgotten step, or another optimiser's."""
        if not self._stepped:
            raise NatalError(
                f"schedule.step() was called {self.taken} times, and the optimizer that it was given has taken no "
                "step; call that optimizer's step() before it"
            )

    # -- cuts -------------------------------------------------------------------------------------------------

    @property
    def _whole(self) -> bool:
        return self.recipe.granularity == "neuron"

    def _prunable(self) -> dict[str, Tensor]:
        return prunable(self.model, self._exclude, whole=self._whole)

    def _problem(self) -> Problem:
        inputs, targets = self._batch if self._batch is not None else (None, None)
        return problem_of(
            self.model,
            self._seed,
            exclude=self._exclude,
            whole=self._whole,
            inputs=inputs,
            targets=targets,
            loss=self._loss,
        )

    def _cut(self) -> Mask:
        """Return the mask of the next round, of all that are left where nothing is trained between them."""
        before, problem = self.mask if self.mask.weights else None, self._problem()
        while True:
            since = self._targets[self.round - 1] if self.round else 0.0
            target, last = self._targets[self.round], self.round + 1 == len(self._targets)
            how = self.recipe if last else self.recipe.plain
            before = cut(how, problem, target, before, self.recipe.rates, since=since)
            self.round += 1
            self._reached.append(before.sparsity)
            if last or self._again:
                break
        if last and self.recipe.control == "reinit":
            # redrawn are weights at birth, whatever the cut has seen
            return replace(before, redrawn=redraw(self._birth, problem.stream("reinit")))
        return before

    def _cut_and_rewind(self) -> Event:
        mask, back = self._cut(), self.recipe.rewind
        goes_on = back == "none" and self._again == 0
        moment = self._moments.get(self._first)
        if moment is not None:
            self._wind_back(moment)
        self._settle(mask)
        if moment is not None and moment.tensors and not mask.redrawn:
            self._rewound = self._rewound and self._is(moment.tensors)
        if not goes_on:
            self.optimizer.state.clear()
            self.clock = self._first
        self._next = self._first + self._again
        rate = self.optimizer.param_groups[0].get("lr")
        self._restarted.append(
            {
                "clock": self.clock,
                "optimiser": "kept" if goes_on else "fresh",
                "learning_rate": None if rate is None else float(rate),
            }
        )
        return "cut" if goes_on else "rewound"

    def _cut_inside(self, cuts: Cuts) -> Event:
        if cuts.regrow == "gradient" and self._gradient is None:
            raise NatalError(
                "regrow 'gradient' needs the gradients of the step just taken, and optimizer.step() was not called; "
                "call schedule.step() after it"
            )
        mask, regrown = cuts.at(self.clock, self._problem(), self.mask, self._gradient)
        parameters = dict(self.model.named_parameters())
        for name, back in regrown.items():
            clear(parameters[name], ~back)
            for moment in self.optimizer.state.get(parameters[name], {}).values():
                if isinstance(moment, Tensor) and moment.shape == back.shape:
                    moment.masked_fill_(back, 0)
        self._settle(mask)
        self._reached.append(mask.sparsity)
        return "cut"

    # -- what is wound back -----------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Keep this moment of the first training if a rewind goes back to it."""
        back = self.recipe.rewind
        if self.round or back == "none" or self.clock != self._first:
            return
        whole = {} if back == "clock" else _tensors(self.model)
        self._moments[self.clock] = _Moment(
            {name: value.detach().clone() for name, value in whole.items()},
            [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
            None if self.scheduler is None else dict(self.scheduler.state_dict()),
        )

    @torch.no_grad()
    def _wind_back(self, moment: _Moment) -> None:
        tensors = _tensors(self.model)
        for name, value in moment.tensors.items():
            tensors[name].copy_(value)
        for group, options in zip(self.optimizer.param_groups, moment.options, strict=True):
            group.update(options)
        if self.scheduler is not None and moment.scheduler is not None:
            self.scheduler.load_state_dict(dict(moment.scheduler))

    def _is(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the model is, bit for bit, what it was then under the mask it has now."""
        masks = self.mask.items()
        for name, value in _tensors(self.model).items():
            then = tensors[name]
            if name in masks:
                then = then.masked_fill(~masks[name].to(then.device), 0)
            if not torch.equal(value, then):
                return False
        return True

    # -- removed weights stay 0 -------------------------------------------------------------------------------

    @torch.no_grad()
    def _settle(self, mask: Mask) -> None:
        """Go on under a mask."""
        self.mask, parameters = mask, dict(self.model.named_parameters())
        for name, values in mask.redrawn.items():
            parameters[name].copy_(values)
        self._removed = {
            id(parameters[name]): (parameters[name], ~kept.to(parameters[name].device))
            for name, kept in mask.items().items()
            if not kept.all()
        }
        self._zero()

    def _look(self) -> None:
        removed = [parameter.detach()[gone].any() for parameter, gone in self._removed.values()]
        self._held = self._held and not (removed and bool(torch.stack(removed).any()))

    def _dense_is_due(self) -> bool:
        """Whether the step that comes next has its dense gradient looked at."""
        cuts = self._cuts
        return cuts is not None and cuts.regrow == "gradient" and self.clock + 1 in cuts.steps

    def _mute(self, parameter: Tensor) -> None:
        """Set the gradient of removed weights to 0, so that clipping by norm does not see it."""
        if id(parameter) in self._removed and parameter.grad is not None and not self._dense_is_due():
            parameter.grad.masked_fill_(self._removed[id(parameter)][1], 0)

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        """Follow a step of the optimiser, which may itself have called what computes the gradients."""
        self._stepped = True
        if self._dense_is_due():
            weights = {name: p for name, p in self.model.named_parameters() if name in self.mask.weights}
            self._gradient = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                for name, p in weights.items()
            }

        self._zero()

    @torch.no_grad()
    def _zero(self) -> None:
        for parameter, gone in self._removed.values():
            parameter.masked_fill_(gone, 0)

    # -- what cannot be done ----------------------------------------------------------------------------------

    def _check(self, retrain: int | None) -> None:
        recipe, model, optimizer = self.recipe, self.model, self.optimizer
        if not isinstance(optimizer, Optimizer):
            raise NatalError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if is_masked(model):
            raise NatalError(
                "the model is masked already, by natal.apply; give the plain one, which the schedule masks itself"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters = dict(model.named_parameters())
        missing = [n for n in self._prunable() if id(parameters[n]) not in held]
        if missing:
            raise NatalError(
                f"the optimizer does not train {missing[0]!r}, which would be pruned; give it all parameters, or "
                "exclude the layer"
            )
        if recipe.rounds == "levels":
            raise NatalError(
                'rounds = "levels" walks the sparsities of a study; in a loop give a number of rounds'
            )
        if recipe.control == "small-dense":
            raise NatalError(
                "control 'small-dense' trains another, smaller network; make it yourself, or in a study"
            )
        check(recipe, self._problem(), self.sparsity)
        ends = recipe.at == "end" and recipe.rewind == "none"
        if ends and not retrain:
            raise NatalError(
                'at = "end" without rewind trains on after the cut; say how long with retrain=STEPS'
            )
        if retrain and not ends:
            raise NatalError(
                f'retrain is for at = "end" without rewind, got at = {recipe.at!r}; leave it out'
            )
        rewinds = recipe.rewind != "none"
        if rewinds and self.scheduler is None and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            raise NatalError(
                f"rewind = {recipe.rewind!r} winds the learning rate back too, and a scheduler moves it; give it as "
                "scheduler"
            )


def _recipe(strategy: str | Mapping[str, Any] | Recipe) -> Recipe:
    if not isinstance(strategy, str | Mapping | Recipe):
        raise NatalError(
            f"strategy must be a criterion's name, a table of keys or a Recipe, got {strategy!r}"
        )
    try:
        return Recipe.model_validate(recipe_of(strategy))
    except ValidationError as error:
        raise NatalError(one_line(error)) from None


def _timeline(recipe: Recipe, steps: int, steps_per_epoch: int | None) -> Timeline:
    moments = [str(recipe.at), recipe.rewind] if recipe.spread is None else list(recipe.spread.values())
    in_epochs = [clock for clock in moments if clock.endswith("ep")]
    if in_epochs and steps_per_epoch is None:
        raise NatalError(f"{in_epochs[0]!r} counts epochs; say how long one is with steps_per_epoch=STEPS")
    timeline = Timeline(steps_per_epoch or steps, steps)
    complaint = untimely(recipe, timeline)
    if complaint:
        raise NatalError(complaint)
    return timeline


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
