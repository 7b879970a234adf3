"""The ``natal`` command: thin verbs over the library; what goes wrong becomes one clear line. Starts without torch."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from natal.errors import NatalError

if TYPE_CHECKING:
    from natal.lab.plan import Plan

app = typer.Typer(
    help="The laboratory for pruning at initialisation.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _presets() -> list[str]:
    from natal.study import presets

    return list(presets())


def _names() -> list[str]:
    from natal.explain import names

    return names()


def _audits() -> list[str]:
    from natal.study.audit import audits

    return list(audits())


_Study = Annotated[
    str,
    typer.Argument(
        metavar="[STUDY]",
        help="A preset's name (see `natal list`) or a TOML file.",
        autocompletion=_presets,
    ),
]
_Directory = Annotated[Path, typer.Argument(metavar="[DIR]", help="A directory that `natal run` has filled.")]
_Out = Annotated[
    str, typer.Option("--out", metavar="DIR", help="Where the run store, tables, figures and report go.")
]
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the study; VALUE is "
        "TOML. May be given again. Example: --set 'tasks=[\"regression\"]'",
    ),
]
_Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="1,2,3", help="Run these seeds instead of the study's.")
]
_Workers = Annotated[int | None, typer.Option("--workers", help="Worker processes; by default one per core.")]
_Engine = Annotated[
    str,
    typer.Option(
        "--engine", help="`auto`: the fastest that can; `compiled`; `torch`: plain PyTorch, the oracle."
    ),
]
_Device = Annotated[str, typer.Option("--device", help="`cpu`, or `cuda` where there is one.")]
_Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start again; what DIR holds stays until all is trained anew.")
]
_Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder of MNIST's or CIFAR's files; or set NATAL_DATA."),
]
_Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="3/8",
        help="Train only this part; `natal merge` joins parts that were trained apart.",
    ),
]
_On = Annotated[
    str,
    typer.Option("--on", help="Where: `processes`, `inline`, `dask`, `ray` or `slurm`; see docs/cluster.md."),
]
_Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="Of Dask's scheduler, or of a Ray cluster (`auto`)."),
]
_Partition = Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Slurm's partition.")]
_Time = Annotated[
    str | None, typer.Option("--time", metavar="2h", help="The most that a job of Slurm may take.")
]
_Jobs = Annotated[int | None, typer.Option("--jobs", metavar="40", help="Jobs of Slurm at a time.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _version(asked: bool) -> None:
    if not asked:
        return
    from natal.machine import facts

    for name, value in facts():
        print(f"{name:<12} {value}")
    raise typer.Exit


@app.callback()
def natal_(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the versions, processor, kernels and devices here, as a report of a fault needs them.",
        ),
    ] = False,
) -> None:
    """The laboratory for pruning at initialisation."""


@app.command()
def run(
    study: _Study = "paper", out: _Out = "results", set_: _Set = None, seeds: _Seeds = None,
    workers: _Workers = None, engine: _Engine = "auto", device: _Device = "cpu", fresh: _Fresh = False,
    data: _Data = None, part: _Part = None, on: _On = "processes", address: _Address = None,
    partition: _Partition = None, time: _Time = None, jobs: _Jobs = None, quiet: _Quiet = False,
) -> None:  # fmt: skip
    """Run a study, going on from what is stored already, and write its tables, figures and report."""
    options = {"address": address, "partition": partition, "time": time, "jobs": jobs}
    directory = Path(out).absolute()  # a plugin may go elsewhere
    try:
        if device == "cpu" and workers != 1 and on == "processes":
            from natal.lab.executors import prepare

            prepare()  # workers import torch meanwhile
        import natal
        from natal.lab.run import Silent
        from natal.progress import Lines, View
        from natal.wording import describe, plural

        console = Console()
        lively = console.is_terminal and not console.is_dumb_terminal
        watcher = Silent() if quiet else View(console) if lively else Lines()
        with watcher if isinstance(watcher, View) else nullcontext():
            results = natal.run(
                study,
                out,
                overrides=_overrides(set_, seeds),
                workers=workers,
                engine=engine,
                device=device,
                fresh=fresh,
                data=data,
                part=part,
                on=on,
                options={name: value for name, value in options.items() if value is not None},
                watcher=watcher,
            )
        if not quiet:
            shown, diverged = results.count()
            print(
                f"{plural(shown, 'run')} of study {results.study.name!r} in {out}"
                f"{f', {diverged} of them diverged' if diverged else ''} "
                f"({results.manifest['elapsed_seconds']:.0f} s of training)."
            )
            print(f"Report: {Path(out) / 'report.html'}, as text {Path(out) / 'report.txt'}", flush=True)
        if results.failed:
            (first, failure), *_ = results.failed
            print(
                f"natal: {plural(len(results.failed), 'run')} failed, the first {describe(first)}: {failure.reason}; "
                f"the same command{' without --fresh' * fresh} tries them again",
                file=sys.stderr,
            )
            raise typer.Exit(1)
    except BaseException as error:
        stop = _stop_behind(error)
        if stop is None:
            raise
        _say_what_is_kept(directory, fresh)
        raise typer.Exit(128 + stop) from None


@app.command()
def plan(
    study: _Study = "paper", out: _Out = "results", set_: _Set = None, seeds: _Seeds = None,
    workers: _Workers = None, engine: _Engine = "auto", device: _Device = "cpu", fresh: _Fresh = False,
    data: _Data = None, part: _Part = None,
) -> None:  # fmt: skip
    """Show what `natal run` with the same options would do; trains nothing."""
    import natal

    planned = natal.plan(
        study,
        out,
        overrides=_overrides(set_, seeds),
        workers=workers,
        engine=engine,
        device=device,
        fresh=fresh,
        data=data,
        part=part,
    )
    for name, value in _plan_lines(planned):
        print(f"{name:<12} {value}", flush=True)


def _plan_lines(planned: Plan) -> Iterator[tuple[str, str]]:
    from natal.lab.checkpoints import EVERY
    from natal.lab.estimate import measure
    from natal.progress import outdated
    from natal.reading.wording import network, power
    from natal.wording import duration, listed, on_one_line, percent, place, plural

    study, total = planned.study, len(planned.grid)
    yield "study", f"{study.name}: {on_one_line(study.description)}" if study.description else study.name
    yield "tasks", ", ".join(study.task_names)
    for about in planned.networks:
        refused = planned.settings[about.setting].refused
        why = "".join(f", not {name}: {reason}" for name, reason in refused.items())
        yield "network", f"{network(about)}; engine {about.engine}{why}"
    yield "strategies", listed(recipe.name for recipe in study.strategies)
    yield "sparsities", listed(percent(s) for s in study.sparsities)
    yield "seeds", listed(study.seeds)
    yield "power", power(len(study.seeds))
    yield (
        "runs",
        (
            f"{total} = {plural(len(study.tasks), 'task')} x {plural(len(study.networks), 'network')} x "
            f"{plural(len(study.strategies), 'strategy')} x "
            f"{plural(len(study.sparsities), 'sparsity')} x {plural(len(study.seeds), 'seed')}"
        ),
    )
    yield (
        "shared",
        (
            f"{plural(planned.shared, 'run')} with another run's training (the dense network is the same whatever "
            f"the strategy): {plural(planned.trainings, 'training')}"
        ),
    )
    for line in planned.chains:
        yield "chain", line
    if any(planned.state_bytes):
        kept, passing = (f"{size / 1e6:.1f} MB" for size in planned.state_bytes)
        yield "states", f"{kept} to keep, at most {passing} in passing"
    yield "done", f"{len(planned.done)} of {plural(total, 'run')} stored in {place(planned.directory)}"
    if planned.part is not None:
        yield "part", f"{planned.part}: nothing of the other parts is trained here; `natal merge` joins them"
    if planned.outdated:
        yield "not used", outdated(planned)
    if planned.pending:
        again = f"; {len(planned.again)} of them stored, trained again for a state" if planned.again else ""
        yield (
            "to do",
            (
                f"{plural(len(planned.pending), 'training')} in {plural(len(planned.jobs), 'job')} on "
                f"{planned.device}, {plural(planned.workers, 'worker')}{again}"
            ),
        )
        if planned.failed:
            failure = next(iter(planned.failed.values()))
            yield (
                "failed",
                f"{len(planned.failed)} of them before, and are tried again; the first: {failure.reason}",
            )
        estimate = measure(planned)
        memory = "" if estimate.memory is None else f"; about {estimate.memory / 2**20:.0f} MB a worker"
        yield (
            "estimate",
            (
                f"at most about {duration(estimate.seconds)}, less what early stopping saves{memory} "
                "(a few steps were measured here)"
            ),
        )
        if estimate.checkpoints:
            size = f"{estimate.checkpoints / 1e6:.1f} MB"
            yield (
                "checkpoints",
                f"at most about {size} in passing, of trainings of more than {duration(EVERY)}",
            )
    else:
        yield "to do", "nothing to train; `natal run` only writes the tables, figures and report again"


@app.command()
def validate(directory: _Directory = Path("results")) -> None:
    """Check that a study is whole and that every table and figure agrees with its run store."""
    from natal.reading.validate import verdict

    text, code = verdict(directory)
    print(text)
    raise typer.Exit(code)


@app.command()
def report(directory: _Directory = Path("results")) -> None:
    """Write a study's tables, figures and report again from its run store alone."""
    from natal.reading.report import write

    for path in write(directory):
        print(path)


@app.command()
def export(
    directory: _Directory = Path("results"),
    parquet: Annotated[bool, typer.Option("--parquet", help="runs.parquet and curves.parquet.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="runs.csv and curves.csv.")] = False,
    json: Annotated[bool, typer.Option("--json", help="results.json, the published format.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="An event file a run.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="By default DIR/export.")] = None,
) -> None:
    """Write a study's runs and curves for other programs."""
    from natal.reading.export import write

    asked = {"parquet": parquet, "csv": csv, "json": json, "tensorboard": tensorboard}
    forms = [form for form, wanted in asked.items() if wanted]
    if not forms:
        raise NatalError("say in which form: --parquet, --csv, --json or --tensorboard")
    paths = write(directory, forms, out)
    for path in paths[:20]:
        print(path)
    if len(paths) > 20:
        print(f"... and {len(paths) - 20} more")


@app.command()
def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Directories that `natal run --part` filled.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory for the whole.")],
) -> None:
    """Join parts of a study that were trained apart; refuses parts that differ in study, version or bits."""
    from natal.reading.report import write
    from natal.store.merge import merge as join

    complete, total = join(parts, out)
    write(out)
    print(f"{complete} of {total} runs are in {out}, from {len(parts)} parts.")
    print(f"Report: {out / 'report.html'}, as text {out / 'report.txt'}")


@app.command()
def verify(
    directory: _Directory = Path("results"),
    sample: Annotated[int, typer.Option("--sample", metavar="20", help="How many runs to train again.")] = 20,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the draw; by default another each time.")
    ] = None,
    workers: _Workers = None,
    data: _Data = None,
) -> None:
    """Train a random sample of stored runs again and compare; exit status 0 if they came out as stored."""
    from natal.lab.verify import verify as again

    verified = again(directory, sample, seed=seed, workers=workers, data=data)
    print("\n".join(verified.lines()))
    raise typer.Exit(1 if verified.apart else 0)


@app.command(name="figures")
def figures_(
    directory: _Directory = Path("results"),
    form: Annotated[str, typer.Option("--format", metavar="pdf", help="`pdf`, `svg` or `png`.")] = "pdf",
    width: Annotated[str, typer.Option("--width", metavar="3.25in", help="Such as 3.25in or 17cm.")] = "7in",
    axis: Annotated[
        str | None, typer.Option("--axis", help="`sparsity`, or `density` on a logarithmic scale.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="By default DIR/figures.")] = None,
) -> None:
    """Write a study's figures for a paper: PDF, SVG or PNG of a column's width, with their fonts."""
    from typing import cast, get_args

    from natal.reading import figures
    from natal.reading.results import load
    from natal.registry import did_you_mean

    if axis is not None and axis not in get_args(figures.Axis):
        raise NatalError(f"--axis {axis!r}{did_you_mean(axis, get_args(figures.Axis))}")
    results = load(directory)
    shape = figures.inches(width), cast("figures.Axis | None", axis)
    for path in figures.write(results, out or directory / "figures", form, *shape):
        print(path)


@app.command()
def diagnose(
    directory: _Directory = Path("results"),
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="Only this strategy.")] = None,
    sparsity: Annotated[float | None, typer.Option("--sparsity", help="Only this, such as 0.9.")] = None,
    network: Annotated[str | None, typer.Option("--network", help="Only this network.")] = None,
) -> None:
    """Say what each mask did to its network before training, gravest first; narrowed down, by layer."""
    from natal.reading.checkup import lines

    print("\n".join(lines(directory, task, strategy, sparsity, network)))


@app.command()
def compare(
    directory: _Directory,
    reference: Annotated[Path, typer.Argument(help="A results.json, or a directory that `natal run` has filled.")],
    rename: Annotated[list[str] | None, typer.Option("--as", metavar="THEIRS=OURS", help="A strategy goes by another "
                      "name in DIR. May be given again.")] = None,
) -> None:  # fmt: skip
    """Compare two studies run by run, field by field; exit status 0 if they are identical to the last bit."""
    from natal.reading.results import compare as compare_runs
    from natal.reading.results import load, published_objects, read_published

    comparison = compare_runs(published_objects(load(directory)), read_published(reference), _renamed(rename))
    print("\n".join(comparison.lines()))
    raise typer.Exit(0 if comparison.identical else 1)


def _renamed(pairs: list[str] | None) -> dict[str, str]:
    """Return what ``--as`` says: our name for each of theirs."""
    names = {}
    for pair in pairs or ():
        theirs, equals, ours = pair.partition("=")
        if not equals:
            raise NatalError(
                f"--as {pair!r}: write it as THEIRS=OURS, such as random=random-from-init-stream"
            )
        names[theirs] = ours
    return names


@app.command()
def audit(
    file: Annotated[
        str,
        typer.Argument(
            help="A paper's claims: a shipped audit's name (see `natal list`) or a TOML file.",
            autocompletion=_audits,
        ),
    ],
    directory: _Directory = Path("results"),
    rename: Annotated[list[str] | None, typer.Option("--as", metavar="THEIRS=OURS", help="A task, network or strategy "
                      "of DIR goes by another name in FILE. May be given again.")] = None,
) -> None:  # fmt: skip
    """Hold a paper's claims against any results: each is supported, contradicted or something between, and why."""
    from natal.reading.audit import lines

    print("\n".join(lines(file, directory, _renamed(rename))))


@app.command(name="list")
def list_() -> None:
    """List studies, tasks, networks, strategies, criteria, scopes and controls, one line each."""
    from natal.explain import lab_missing, sections

    for title, entries in sections():
        _section(title, entries)
    missing = lab_missing()
    if missing:  # only what reads results is installed
        print(f"tasks, networks and criteria are not listed: {missing}")


def _section(title: str, entries: Iterator[tuple[str, str]]) -> None:
    print(title)
    margin = f"  {'':<16} "
    room = shutil.get_terminal_size().columns - len(margin) if sys.stdout.isatty() else sys.maxsize
    for name, summary in entries:
        print(f"  {name:<16} " + f"\n{margin}".join(textwrap.wrap(summary, max(room, 20))))


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name that `natal list` lists.", autocompletion=_names)
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="`study`, `task`, `criterion`, ...: which is meant of several, such as digits."
        ),
    ] = None,
) -> None:
    """Print a study file to copy and edit, or explain a criterion, scope, control, task, network, protocol or audit."""
    from natal.explain import explain

    text, also = explain(name, kind)
    print(text)
    if also:
        others = ", ".join(f"natal show {name} --kind {word}" for word in also)
        print(f"natal: {name!r} names more: {others}", file=sys.stderr)


def _overrides(changes: list[str] | None, seeds: str | None) -> list[str]:
    """Return ``--set`` and ``--seeds`` as overrides of a study's keys."""
    overrides = list(changes or ())
    if seeds is not None:
        if not all(seed.strip().lstrip("-").isdigit() for seed in seeds.split(",")):
            raise NatalError(f"--seeds {seeds!r}: write whole numbers with commas between, such as 1,2,3")
        overrides.append(f"seeds=[{seeds}]")
    return overrides


def _say_what_is_kept(directory: Path, fresh: bool) -> None:
    from natal.store import FILE, Store
    from natal.wording import place

    written = directory / ".fresh" if fresh else directory
    kept = total = 0
    if (written / FILE).is_file():
        with Store.read(written) as store:
            kept, total = store.complete()
    start = "\n" if sys.stderr.isatty() else ""  # the terminal has just shown ^C
    runs = f"{kept} of {total} runs are" if total else "no run is"
    before = (
        f"; {place(directory)} keeps what it held until all are"
        if fresh and (directory / FILE).is_file()
        else ""
    )
    print(
        f"{start}natal: stopped, {runs} stored in {place(written)}; the same command goes on from there{before}.",
        file=sys.stderr,
    )


_sent: list[int] = []
"""The signals that asked this command to stop."""
_PIPE = int(getattr(signal, "SIGPIPE", 13))
"""What a closed pipe would send, on a system that sends anything."""


def _stop(number: int, _: object) -> None:
    _sent.append(number)
    raise KeyboardInterrupt(number)


def _stop_behind(error: BaseException | None) -> int | None:
    """Return the signal behind ``error``, a closed pipe's included, if there is one.

    Once a signal has come, whatever goes wrong comes from it: pydantic wraps what passes it, with or without its cause.
    """
    if isinstance(error, BrokenPipeError):
        return _PIPE
    if _sent:
        return _sent[0]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return None if error is None else error.args[0] if error.args else signal.SIGINT


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 2."""
    try:
        yield
    except NatalError as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:  # before the verb has begun
        sys.exit(128 + (_sent[0] if _sent else signal.SIGINT))
    except BrokenPipeError:  # `natal list | head`
        sys.exit(128 + _PIPE)
    except OSError as error:
        cure = "raise `ulimit -n`; " if error.errno == errno.EMFILE else ""
        sys.exit(_complain(f"{error.filename or 'output'}: {error.strerror}; {cure}nothing stored was lost"))
    except Exception as error:
        if sys.stdout is None or sys.stdout.closed:
            sys.exit(_complain("a plugin has closed the standard output; nothing stored was lost"))
        if not hasattr(error, "format_message"):  # an option or a verb that is none, as Typer has it
            raise
        said = " ".join(error.format_message().split())
        verb = getattr(getattr(error, "ctx", None), "command_path", "natal")
        sys.exit(_complain(f"{said.rstrip('.')}; see `{verb} --help`"))
    finally:
        _leave_closed_pipe()


def _complain(text: object) -> int:
    with suppress(ValueError):  # a plugin has closed it
        print(f"natal: {text}", file=sys.stderr)
    return 2


def _leave_closed_pipe() -> None:
    """Let Python end in silence where nobody reads its output any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, ValueError):  # a plugin has put nothing in its place, or closed it
        pass


def _open_streams() -> None:
    """Put nothing in the place of standard streams that are closed, as by ``natal list >&-``.

    Else a store would be opened there, and whatever is printed be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            setattr(sys, name, os.fdopen(opened, mode))


def main() -> None:
    """Run the command line."""
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show θ shows ?
    # not every system has all of them
    numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    for number in numbers:
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    with _plain_errors():
        status = app(sys.argv[1:] or ["--help"], prog_name="natal", standalone_mode=False)
        # Typer takes every signal for Ctrl-C
        sys.exit(128 + _sent[0] if _sent and status == 128 + signal.SIGINT else status)


if __name__ == "__main__":
    main()
