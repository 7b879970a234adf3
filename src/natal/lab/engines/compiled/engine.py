"""The engine ``compiled``: chains of linear layers with ReLU, at a cost that falls with the weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from natal.determinism import deterministic, one_thread
from natal.lab.engines.compiled import cache
from natal.lab.engines.compiled.chain import SPARSE_BELOW
from natal.lab.engines.compiled.learner import Learner, batches, load
from natal.lab.engines.compiled.network import Chain, chain_of, data_of, ones_a_row
from natal.lab.engines.compiled.steps import Loss
from natal.lab.engines.compiled.vectors import Array
from natal.lab.engines.engine import Pending, Setting
from natal.lab.engines.made import made_by
from natal.lab.state import State
from natal.lab.tasks import Split, Task
from natal.lab.trial import Course, Finals, History, Trained, Trial, conclude
from natal.pruning.doctor import CONSTANT

WORTH_A_JOB = 2e10
"""Operations worth handing to a worker: some tenths of a second."""

SPARSE_COST = 2.0
"""What a multiply-add of a sparse product costs in those of a dense one."""


class Compiled:
    """The engine ``compiled``; see the package."""

    name = "compiled"
    revision = 2
    portable = True
    devices = ("cpu",)

    def refuses(self, setting: Setting) -> str:
        """Return why it cannot train in a setting, or ``""``."""
        if reason := cache.refuses():
            return reason
        chain = chain_of(setting.network)
        if isinstance(chain, str):
            return chain
        if setting.split.augment is not None:
            return "it does not take tasks whose rows are changed at random"
        with torch.no_grad():
            rows = chain.before(setting.split.data.inputs[:1])
        if rows.ndim != 2 or not rows.is_floating_point():
            return "it takes rows of numbers, or of tokens that an embedding sums"
        return ""

    def cost(self, pending: Pending, setting: Setting) -> float:
        """Return about how many operations a training takes."""
        density = 1 - pending.run.sparsity
        by_weight = pending.recipe.granularity != "neuron"
        dear = SPARSE_COST if by_weight and density < SPARSE_BELOW else 1.0
        return setting.flops(max(density, 0.01) * dear)

    def jobs(self, pending: Sequence[Pending], setting: Setting, device: str) -> list[list[Pending]]:
        """Return as many trainings a job as are worth a worker's while."""
        jobs: list[list[Pending]] = []
        left = 0.0
        for training in pending:
            if left <= 0:
                jobs.append([])
                left = WORTH_A_JOB
            jobs[-1].append(training)
            left -= self.cost(training, setting)
        return jobs

    def prepare(self, device: str) -> None:
        """Compile the kernels, or read them from disk, so that no training waits for it."""
        if cache.usable():
            load()

    def train(self, trials: Sequence[Trial], device: str) -> Iterator[Trained]:
        """Train each on its own, in order; a network's bits depend on nothing but itself."""
        read: dict[object, _Rows] = {}
        for trial in trials:
            chain = chain_of(trial.network)
            assert isinstance(chain, Chain), chain
            with one_thread(), deterministic(device):
                key = id(trial.split), trial.task.name, trial.dtype, chain.reads
                if key not in read:
                    read[key] = _Rows(trial.split, chain, trial.task, trial.dtype)
                trained = self._train_one(trial, chain, read[key], device)
            yield trained

    def _train_one(self, trial: Trial, chain: Chain, rows: _Rows, device: str) -> Trained:
        started = time.perf_counter() - trial.taken
        training, net, start = trial.training, trial.born(), trial.start
        loss = Loss(trial.task.loss.name == "cross-entropy", float(training.label_smoothing))
        learner = Learner(
            net, chain, trial.mask, training.optimiser, rows.ones > 0, loss, training.clip,
            start.optimiser if start is not None else None, trial.cuts is not None,
        )  # fmt: skip
        course, history = Course(trial, trial.mask), History(training, trial.settled, trial.so_far)
        steps = trial.batches()
        rates = trial.learning_rate * np.array(training.factors(trial.rows_to_fit))
        best, done = learner.theta.copy(), trial.first
        evaluations = set(training.evaluations(trial.rows_to_fit))
        stops = {*evaluations, *trial.cut_after, *(n for clock, n in trial.clocks.items() if clock != "end")}
        regrows = trial.cuts is not None and trial.cuts.regrow == "gradient"
        if regrows:
            # a gradient is that of a step, at the weights it begins with
            stops |= {step - 1 for step in trial.cut_after}
        losses: list[Array] = []

        def written(theta: Array) -> dict[str, torch.Tensor]:
            learner.write(net, theta)
            return {name: value.detach().clone() for name, value in net.state_dict().items()}

        def snapshot() -> State:
            masks = {name: m.clone() for name, m in course.mask.items().items()}
            return State(done, written(learner.theta), learner.remembered(), masks)

        def keep(last: bool = False) -> None:
            clocks = [clock for clock, at in trial.clocks.items() if (last if clock == "end" else at == done)]
            if clocks:
                course.states.update(dict.fromkeys(clocks, snapshot()))

        if trial.so_far is not None:
            net.load_state_dict(dict(trial.so_far.best))
            best = learner.read(net)
        learner.write(net)
        keep()
        for until in sorted(step for step in stops if step > trial.first):
            parts = list(islice(steps, until - done))
            if done == trial.first:
                course.begin(net.state_dict(), rates[done], not learner.remembers, parts[0])
            order, cuts = batches(parts, rows.fit)
            gradient = None
            if regrows and until in trial.cut_after:
                learner.write(net)
                gradient = learner.dense_gradient(net, rows.parts["fit"][0], order)
            losses.append(learner.learn(rows.parts["fit"][0], order, cuts, rates[done:until]))
            done = until
            if until in trial.cut_after:
                learner.write(net)
                regrown = course.cut(until, net, gradient)
                learner.remask(net, course.mask, regrown)
                best = learner.theta.copy()
            keep()
            if until not in evaluations:
                continue
            course.held = course.held and learner.holds
            since = np.concatenate(losses)
            losses.clear()
            train_loss = math.fsum(since) / len(since)
            values = [math.nan, math.nan, math.nan]
            if math.isfinite(train_loss):
                values[:2] = rows.measure(learner, "val")[:2]
                if training.test_curve:
                    values[2] = rows.measure(learner, "test")[1]
            if history.record(until, train_loss, *values):
                best[:] = learner.theta
            if history.over:
                break
            if course.due(done):
                course.leave(history, snapshot(), written(best), time.perf_counter() - started)
        keep(last=True)
        seconds = time.perf_counter() - started
        finals = Finals() if history.diverged else rows.finals(learner, best)
        for theta in (learner.theta, best):
            learner.write(net, theta)
            course.look(dict(net.named_parameters()))
        return conclude(trial, history, written(best), seconds, made_by(self, device), course, finals)


class _Rows:
    """A split as the kernels read it, and what measurements on its parts mean: fit, val, train and test."""

    def __init__(self, split: Split, chain: Chain, task: Task, dtype: torch.dtype) -> None:
        data, self.split = split.data, split
        inputs, test = (chain.before(rows) for rows in (data.inputs, data.test_inputs))
        self.ones = ones_a_row(inputs) if ones_a_row(inputs) == ones_a_row(test) else 0
        train = data_of(inputs, data.targets, self.ones, dtype)
        self.fit = split.fit.numpy()
        self.parts = {
            "fit": (train, self.fit),
            "val": (train, split.val.numpy()),
            "train": (train, np.arange(len(inputs))),
            "test": (data_of(test, data.test_targets, self.ones, dtype), np.arange(len(test))),
        }
        self._accuracy = task.metric.name == "accuracy"
        self._spread: dict[str, float] = {}

    def measure(self, learner: Learner, part: str, theta: Array | None = None) -> tuple[float, float, bool]:
        """Return mean loss and metric of a part, and whether all its rows get the same outputs."""
        data, rows = self.parts[part]
        found = learner.measure(data, rows, theta)
        if self._accuracy:
            metric = float(np.float32(found.score / len(rows)))
        else:
            metric = 1 - found.score / self._squares(part) if self._squares(part) else math.nan
        return found.loss, metric, found.apart <= CONSTANT * (1 + found.most)

    def _squares(self, part: str) -> float:
        """Return Σ (y - ȳ)² of a part, exact but for one rounding: a library's sum differs from CPU to CPU."""
        if part not in self._spread:
            data, rows = self.parts[part]
            values = data.values[rows].astype(np.float64).flatten()
            mean = math.fsum(values) / len(values)
            self._spread[part] = math.fsum((values - mean) ** 2)
        return self._spread[part]

    def finals(self, learner: Learner, theta: Array) -> Finals:
        """Measure the best numbers of a network on all parts."""
        measured = {part: self.measure(learner, part, theta) for part in ("train", "val", "test")}
        return Finals(
            {part: metric for part, (_, metric, _) in measured.items()},
            measured["train"][0],
            measured["test"][2],
        )
