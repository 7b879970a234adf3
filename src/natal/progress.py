"""Following a study while it runs: a live view on a terminal, plain lines elsewhere. No torch here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    from natal.lab.watcher import Watcher


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
        f"{plan.outdated} stored trainings were made by another engine or revision of it, torch or NumPy; "
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


class Note:
    """One line in a notebook's output, rewritten while runs finish.

    ``write``: shows a text in place of the one before.
    """

    PAUSE = 0.25
    """Seconds between two rewritings: a notebook draws slower than small runs finish."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.lost = 0

    def started(self, plan: Plan) -> None:
        """Say what is done already."""
        self.name, self.total, self.before = plan.study.name, len(plan.grid), len(plan.done)
        self.began = self.written = time.monotonic()
        self.write(f"{self.name}: {' '.join(_before(plan)) or plural(self.total, 'run')}")

    def training(self, runs: Sequence[Run]) -> None:
        """Say nothing: the line counts what is finished."""

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Count the run, and say how long the others take."""
        now = time.monotonic()
        if now - self.written < self.PAUSE and position < self.total:
            return
        self.written = now
        seconds = (now - self.began) / max(position - self.before, 1) * (self.total - position)
        rest = _left(seconds) if position < self.total else f"done in {now - self.began:.0f} s"
        lost = f", {self.lost} failed" * bool(self.lost)
        self.write(
            f"{self.name}: {position} of {plural(self.total, 'run')}{lost}, {rest}; the last was {brief(run)}"
        )

    def failed(self, run: Run, reason: str) -> None:
        """Count it; `natal.reading.results.Results.failed` has the reason."""
        self.lost += 1


@contextmanager
def shown(progress: bool | None) -> Iterator[Watcher]:
    """Yield what follows a study that Python code runs.

    A line in a notebook; a live view where standard error is a terminal; elsewhere nothing, or if ``progress`` is asked
    for a line a run.
    """
    from natal.lab.watcher import Silent

    console = Console(stderr=True)
    if progress is False:
        yield Silent()
    elif console.is_jupyter:
        from IPython.display import Pretty, display

        place = display(Pretty(""), display_id=True)
        yield Note(lambda text: place.update(Pretty(text)))
    elif console.is_terminal:
        with View(console) as view:
            yield view
    else:
        yield Lines() if progress else Silent()


class View:
    """A live view on a terminal: done of total, runs per second, time left, what is being trained, the last results."""

    RECENT = 4

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console,
        )  # fmt: skip
        self.recent: deque[tuple[Run, Outcome, str]] = deque(maxlen=self.RECENT)
        self.now = Text("starting", style="dim")  # torch takes seconds to import
        self.diverged = self.failures = self.position = 0
        self.begun: Sequence[Run] = ()
        self.task: TaskID = self.bar.add_task("", total=1, rate="", left="", visible=False)
        # drawn a few times a second, however many runs finish: a run costs this process no more than its numbers
        self.live = Live(console=console, refresh_per_second=4, transient=False, get_renderable=self._shown)

    def __enter__(self) -> Self:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.now, self.begun = Text(), ()
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
        self.live.refresh()

    def training(self, runs: Sequence[Run]) -> None:
        """Show what is being trained, the runs of one cell together; the first at once, however short the study."""
        first, self.begun = not self.begun, runs
        if first:
            self.live.refresh()

    def finished(self, position: int, run: Run, outcome: Outcome, field: str) -> None:
        """Move the bar on and show the run's result."""
        self.diverged += outcome.status == "diverged"
        self.position = position
        self.recent.append((run, outcome, field))
        if position == self.total:
            self._written_up()
            self.live.refresh()

    def failed(self, run: Run, reason: str) -> None:
        """Say why there is no result, and count it."""
        self.failures += 1
        self.live.console.print(f"FAILED {describe(run)}: {reason}", highlight=False, markup=False)

    def _written_up(self) -> None:
        self.begun = ()
        self.now = Text("writing tables, figures and report", style="dim")

    def _shown(self) -> Group:
        """Return what the view shows now."""
        if self.position:
            rate = (self.position - self.before) / max(time.monotonic() - self.began, 1e-9)
            counts = [(self.diverged, "diverged"), (self.failures, "failed")]
            bad = "".join(f"  [red]{count} {word}[/red]" for count, word in counts if count)
            left = _left((self.total - self.position) / rate) if self.position < self.total else "done"
            self.bar.update(self.task, completed=self.position, rate=f"{rate:.1f} runs/s", left=left + bad)
        if self.begun:
            shown = list(dict.fromkeys(brief(run) for run in self.begun))
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            words = "training  " + ", ".join(shown[:3]) + more
            self.now = Text(words, style="dim", no_wrap=True, overflow="ellipsis")
        # results first: names may be longer than the terminal is wide
        recent = [
            f"{_result(o, field):<16} {brief(run)} seed {run.seed}" for run, o, field in list(self.recent)
        ]
        lines = [Text(text, no_wrap=True, overflow="ellipsis") for text in recent]
        return Group(*lines, self.bar, self.now)
