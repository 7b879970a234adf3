"""Is anything lost? The command, its workers and its fork server are killed at random moments, a thousand times.

    python benchmarks/kills.py                 1,000 kills, some tens of minutes
    python benchmarks/kills.py --kills 50

Two studies in turn, one of independent runs, one of chains that hand states on: each is run again and again in one
directory, with one worker or two, until it is whole, and then begun anew. After every command it is checked that
nothing stored was lost or changed, and that what the command said is stored; of a whole study, that every training is
the undisturbed one's to the last bit, that none was trained twice, and that no state or process was left over.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

import natal
from machine import hardware
from natal.store import FILE
from natal.wording import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from command import Command
from conftest import toml, trainings

STUDIES: dict[str, dict[str, Any]] = {
    "independent": {
        "strategies": ["magnitude", "random", "structured"],
        "sparsities": [0.0, 0.3, 0.6, 0.9],
        "seeds": [1, 2, 3, 4],
    },
    "chains": {
        "strategies": [
            {
                "name": "ticket",
                "criterion": "magnitude",
                "scope": "layerwise",
                "at": "end",
                "rounds": "levels",
                "rewind": "10it",
            },
            {
                "name": "rewound",
                "criterion": "magnitude",
                "scope": "layerwise",
                "at": "end",
                "rounds": 2,
                "rewind": "50it",
            },
            {
                "name": "reinit",
                "criterion": "magnitude",
                "scope": "layerwise",
                "at": "end",
                "rounds": "levels",
                "rewind": "init",
                "control": "reinit",
            },
        ],
        "sparsities": [0.0, 0.3, 0.6, 0.9],
        "seeds": [1, 2],
    },
}
"""Some seconds of training each, in portions of a tenth of one."""
SHARES = {"command": 0.15, "worker": 0.65, "fork server": 0.2}
PAUSE = 0.7
"""Mean seconds between two kills, exponentially distributed."""
WRONG = (
    "trainings lost or changed", "trainings with other bits", "runs trained twice", "runs told, but not stored",
    "states left over or missing", "processes left over", "commands that ended otherwise",
)  # fmt: skip
"""What must not happen."""


def of(name: str) -> dict[str, Any]:
    """Return a whole study."""
    training = {"epochs": 600, "patience": "none", "target": "none", "learning_rate": 0.002}
    return {"name": name, "tasks": ["regression"], "hidden": 512, **STUDIES[name], "training": training}


def states(folder: Path) -> list[str]:
    """Return the state files of a results directory."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def victims(command: Command) -> dict[str, list[psutil.Process]]:
    """Return the living processes of a command by what they are."""
    found: dict[str, list[psutil.Process]] = {"command": [command.process], "worker": [], "fork server": []}
    try:
        for child in command.process.children():
            words = " ".join(child.cmdline())
            if "forkserver" in words:
                found["fork server"].append(child)
                found["worker"] += child.children()
    except psutil.NoSuchProcess:
        pass
    return found


class Trial:
    """One study in one directory, until it is whole."""

    def __init__(
        self, name: str, folder: Path, expected: dict[str, Any], left: list[str], rng: random.Random
    ) -> None:
        self.name, self.folder, self.expected, self.left, self.rng = name, folder, expected, left, rng
        self.kept: dict[str, Any] = {}
        self.stored: set[str] = set()
        folder.mkdir()
        (folder / "study.toml").write_text(toml(of(name)))

    def once(self, tally: Counter[str], most: int) -> bool:
        """Run the command, killing until ``most`` are reached in all; return whether the study is whole."""
        command = Command(self.folder, "run", "study.toml", "--workers", self.rng.choice([1, 2, 2, 2]))
        family: set[psutil.Process] = set()
        ended = False
        while command.running and not ended:
            time.sleep(self.rng.expovariate(1 / PAUSE))
            there = {kind: ones for kind, ones in victims(command).items() if ones}
            family |= {one for ones in there.values() for one in ones}
            if sum(tally[kind] for kind in SHARES) >= most:
                break
            kind = self.rng.choices([*SHARES], [*SHARES.values()])[0]
            if kind not in there:
                continue
            try:
                self.rng.choice(there[kind]).kill()
            except psutil.NoSuchProcess:
                continue
            tally[kind] += 1
            ended = kind == "command"
        result = command.wait()
        tally["commands"] += 1
        _, orphans = psutil.wait_procs([one for one in family if one.pid != command.process.pid], timeout=30)
        tally["processes left over"] += len(orphans)
        self.check(command, tally)
        if result.returncode == 2 and "workers died 3 times before they trained anything" in result.stderr:
            tally["commands whose workers were killed three times before they trained anything"] += 1
        elif result.returncode not in (0, 1, -signal.SIGKILL) or "Traceback" in result.stderr:
            tally["commands that ended otherwise"] += 1
            print(f"{result.returncode}: {result.stderr[-2000:]}", file=sys.stderr)
        tally["runs given up after three kills, and tried again"] += result.stdout.count("FAILED")
        return bool(result.returncode == 0)

    def check(self, command: Command, tally: Counter[str]) -> None:
        """Look at what is stored after a command."""
        out = self.folder / "results"
        now = trainings(out) if (out / FILE).exists() else {}
        tally["trainings lost or changed"] += sum(now.get(key) != one for key, one in self.kept.items())
        tally["trainings with other bits"] += sum(self.expected.get(key) != one for key, one in now.items())
        said = {line.partition("] ")[2].partition(" ...")[0] for line in command.lines()}
        tally["runs trained twice"] += len(said & self.stored) + len(command.lines()) - len(said)
        if now:
            found = natal.load(out)
            self.stored = {describe(run) for run in {*found.study.runs()} - {*found.missing}}
        tally["runs told, but not stored"] += len(said - self.stored)
        self.kept = now

    def end(self, tally: Counter[str]) -> None:
        """Look at the whole study."""
        tally["whole studies"] += 1
        tally["trainings lost or changed"] += len(self.expected.keys() - self.kept.keys())
        tally["states left over or missing"] += len(set(states(self.folder / "results")) ^ set(self.left))


def kills(many: int, seed: int, folder: Path) -> Counter[str]:
    """Return what came of so many kills."""
    rng, tally = random.Random(seed), Counter(dict.fromkeys((*SHARES, *WRONG), 0))
    undisturbed: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name in STUDIES:
        natal.run(of(name), folder / name, workers=1)
        undisturbed[name] = trainings(folder / name), states(folder / name)
    number = 0
    while sum(tally[kind] for kind in SHARES) < many:
        name = list(STUDIES)[number % len(STUDIES)]
        trial = Trial(name, folder / f"{number}", *undisturbed[name], rng)
        while not trial.once(tally, many):
            pass
        trial.end(tally)
        shutil.rmtree(trial.folder)
        number += 1
        if number % 10 == 0:
            print(
                f"  {number} studies, {sum(tally[kind] for kind in SHARES)} kills",
                file=sys.stderr,
                flush=True,
            )
    return tally


def main() -> None:
    """Print the tally; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(f"machine     {hardware()}")
    print(
        f"studies     {', '.join(f'{name}: {natal.plan(of(name)).trainings} trainings' for name in STUDIES)}"
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = kills(asked.kills, asked.seed, Path(folder))
    print(
        f"kills       {', '.join(f'{kind} {tally[kind]}' for kind in SHARES)}; {time.monotonic() - began:.0f} s"
    )
    for what, count in tally.items():
        if what not in SHARES:
            print(f"{count:>6}  {what}")
    sys.exit(any(tally[what] for what in WRONG))


if __name__ == "__main__":
    main()
