"""Following a study while it runs: a live view on a terminal, plain lines elsewhere. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from natal.store import Outcome
from natal.study import Run
from natal.wording import brief, describe, plural

if TYPE_CHECKING:
    from natal.lab.plan import Plan


def line(position: int, total: int, run: Run, outcome: Outcome, field: str) -> str:
    """Return a finished run in the paper's form: ``[1/144] task=modular, ... seed=42 ... test_acc=0.2784``."""
    return f"[{position}/{total}] {describe(run)} ... {_result(outcome, field)}"


def _result(outcome: Outcome, field: str) -> str:
    if "never_begun" in outcome.proofs:
        return "not trained, what it starts from diverged"
    if outcome.test_metric is None:
        return f"diverged at epoch {round(outcome.epochs_trained, 2)}"
    return f"test_{field}={outcome.test_metric:.4f}"


def _left(seconds: float) -> str:
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"


def _before(plan: Plan) -> Iterator[str]:
    """Yield what to say before training begins: what is there already, and what is not used."""
    if plan.done:
        rest = "training the rest" if plan.pending else "nothing to train"
        yield f"{len(plan.done)} of {plural(len(plan.grid), 'run')} stored already; {rest}."
    if plan.outdated:
        yield f"{outdated(plan)}."


def outdated(plan: Plan) -> str:
    """Say what becomes of trainings that other versions left behind."""
    return (
        f"{plan.outdated} stored trainings were made by another revision of the engine, torch or NumPy; "
        "they are kept, but not used"
    )


class Lines:
    """One line a finished run, for logs and pipes."""

    def started(self, plan: Plan) -> None:
        """Say what is done already."""
        self.total = len(plan.grid)
        for text in _before(plan):
            print(text, flush=True)

    def training(self, runs: Sequence[Run]) -> None:
        """Say nothing: a line follows when they are finished."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Print the run's line."""
        print(line(position, self.total, run, outcome, field), flush=True)

    def failed(self, run: Run, reason: str) -> None:
        """Print why there is no result."""
        print(f"FAILED {describe(run)}: {reason}", flush=True)


class View:
    """A live view on a terminal: done of total, runs per second, time left, what is being trained, the last results."""

    RECENT = 4

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console,
        )  # fmt: skip
        self.live = Live(console=console, refresh_per_second=8, transient=False)
        self.recent: list[str] = []
        self.now = Text("starting", style="dim")  # torch takes seconds to import
        self.diverged = self.failures = 0
        self.task: TaskID = self.bar.add_task("", total=1, rate="", left="", visible=False)

    def __enter__(self) -> Self:
        self.live.__enter__()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.now = Text()
        self._show()
        self.live.__exit__(kind, error, trace)

    def started(self, plan: Plan) -> None:
        """Show the empty bar."""
        for text in _before(plan):
            self.live.console.print(text, highlight=False, markup=False)
        self.total, self.before, self.began = len(plan.grid), len(plan.done), time.monotonic()
        self.bar.update(
            self.task, description=plan.study.name, total=self.total, completed=self.before, visible=True
        )
        if not plan.pending:
            self._written_up()
        self._show()

    def training(self, runs: Sequence[Run]) -> None:
        """Show what is being trained, the runs of one cell together."""
        shown = list(dict.fromkeys(brief(run) for run in runs))
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        self.now = Text(
            "training  " + ", ".join(shown[:3]) + more, style="dim", no_wrap=True, overflow="ellipsis"
        )
        self._show()

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Move the bar on and show the run's result."""
        self.diverged += outcome.status == "diverged"
        spent = time.monotonic() - self.began
        rate = (position - self.before) / max(spent, 1e-9)
        bad = [(self.diverged, "diverged"), (self.failures, "failed")]
        failed = "".join(f"  [red]{count} {word}[/red]" for count, word in bad if count)
        self.bar.update(
            self.task,
            completed=position,
            rate=f"{rate:.1f} runs/s",
            left=(_left((self.total - position) / rate) if position < self.total else "done") + failed,
        )
        if position == self.total:
            self._written_up()
        # results first: names may be longer than the terminal is wide
        self.recent = [*self.recent, f"{_result(outcome, field):<16} {brief(run)} seed {run.seed}"][
            -self.RECENT :
        ]
        self._show()

    def failed(self, run: Run, reason: str) -> None:
        """Say why there is no result, and count it."""
        self.failures += 1
        self.live.console.print(f"FAILED {describe(run)}: {reason}", highlight=False, markup=False)

    def _written_up(self) -> None:
        self.now = Text("writing tables, figures and report", style="dim")

    def _show(self) -> None:
        recent = [Text(text, no_wrap=True, overflow="ellipsis") for text in self.recent]
        self.live.update(Group(*recent, self.bar, self.now), refresh=True)
