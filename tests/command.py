"""The ``natal`` command as a process of its own, without the seconds that importing torch takes each time.

The process is forked from the fork server that natal's workers come from. Everything else about it is real:
its own arguments, directory, process group, exit status, workers, and an end by any signal.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil

from natal.lab.executors.processes import _context
from natal.store import Outcome
from natal.study import Run

PLAIN = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}
"""The environment of a command whose output is looked at: no colours, no live view."""

_context.set_forkserver_preload(
    ["natal.lab.worker", "natal.lab.run", "natal.cli", "natal.progress", "natal.reading.validate"]
)


class Command:
    """A running ``natal`` command.

    ``largest`` is the size no file of it may exceed, as on a full disk. ``pause``: so many runs it reports, and after
    the last of them, and after each that follows, it stands still, however fast the machine is.
    """

    def __init__(
        self, folder: Path, *words: object, largest: int | None = None, pause: int | None = None
    ) -> None:
        self.words = [str(word) for word in words]
        self.output, self.errors = folder / ".output", folder / ".errors"
        self.output.write_text("")
        self.errors.write_text("")
        paths = str(folder), str(self.output), str(self.errors)
        self._process = _context.Process(
            target=_be_natal, args=(self.words, *paths, largest, pause, dict(os.environ))
        )
        self._process.start()
        assert self._process.pid is not None
        self.process = psutil.Process(self._process.pid)

    def lines(self) -> list[str]:
        """Return the runs it has reported so far."""
        return [line for line in self.output.read_text().splitlines() if line.startswith("[")]

    def until_paused(self) -> None:
        """Wait until it stands still."""
        while self.process.status() != psutil.STATUS_STOPPED:
            assert self.running, self.errors.read_text()
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let it go on to the next run that it reports."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return bool(self._process.is_alive())

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return its exit status and what it wrote."""
        self._process.join()
        assert self._process.exitcode is not None
        return subprocess.CompletedProcess(
            self.words, self._process.exitcode, self.output.read_text(), self.errors.read_text()
        )

    def end(self, sent: signal.Signals) -> subprocess.CompletedProcess[str]:
        """Send it a signal, all its process group if a terminal would, and see every process of it go.

        One that stands still goes on, and finds the signal there.
        """
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may have come to its end by itself
            family = self.process.children(recursive=True)
            if sent in (signal.SIGINT, signal.SIGHUP):
                os.killpg(self.process.pid, sent)
            else:
                self.process.send_signal(sent)
            self.go_on()
        result = self.wait()
        _, orphans = psutil.wait_procs(family, timeout=30)
        assert orphans == []
        return result


def _be_natal(
    words: list[str],
    folder: str,
    output: str,
    errors: str,
    largest: int | None,
    pause: int | None,
    environment: dict[str, str],
) -> None:
    os.setsid()
    for path, descriptor in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(folder)
    # the fork server's own is of the moment it began
    os.environ.clear()
    os.environ.update(environment | PLAIN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests themselves ignore it
    # natal's workers, whose fork server this may come from, never get them; a command does
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGHUP])
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if pause is not None:
        _stand_still(pause)
    sys.argv = ["natal", *words]
    from natal.cli import main

    main()


def _stand_still(after: int) -> None:
    """Let this command stop after each run that it reports, from so many on."""
    from natal.progress import Lines

    report, reported = Lines.finished, count(1)

    def finished(self: Lines, position: int, run: Run, outcome: Outcome, field: str) -> None:
        report(self, position, run, outcome, field)
        if next(reported) >= after:
            os.kill(os.getpid(), signal.SIGSTOP)

    Lines.finished = finished  # type: ignore[method-assign]
