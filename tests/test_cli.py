"""The command line: one line and exit status 2 for every mistake, progress in the paper's form."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import natal
from conftest import Natal, tiny, toml
from natal import cli
from natal.lab.engines.compiled import cache
from natal.reading.report.files import json_bytes
from natal.reading.results import Results
from natal.store import FILE

Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Run ``natal`` in this process, in an empty directory; return exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    # whether kernels are compiled by now depends on what ran before
    monkeypatch.setattr(cache, "_said", True)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["natal", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["natal.reading.validate.verdict", "natal.cli.app"])
def test_a_signal_ends_every_verb_with_its_own_status(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, place: str
) -> None:
    monkeypatch.setattr(cli, "_sent", [])
    monkeypatch.setattr(place, lambda *_, **__: signal.raise_signal(sent))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(sent, signal.SIG_DFL)  # under nohup the tests themselves ignore one
    try:
        assert inside("validate") == (128 + sent, "", "")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- mistakes --------------------------------------------------------------------------------------------

MISTAKES: dict[str, list[str]] = {
    "--set=tasks=['regresion']": ["unknown task 'regresion'", "did you mean 'regression'"],
    "--set=strategies=['magnitud']": ["unknown strategy 'magnitud'", "did you mean 'magnitude'"],
    "--set=strategies=[{name='x',criterion='magnitud'}]": [
        "unknown criterion 'magnitud'",
        "did you mean 'magnitude'",
    ],
    "--set=hiden=3": ["unknown key 'hiden'", "did you mean 'hidden'"],
    "--set=training.epoch=3": ["unknown key 'training.epoch'", "did you mean 'epochs'"],
    "--set=sparsities=[1.0]": ["sparsities", "[0, 1)", "got 1.0"],
    "--set=sparsities=[-0.5]": ["sparsities", "[0, 1)", "got -0.5"],
    "--set=sparsities=[nan]": ["sparsities", "finite", "got nan"],
    "--set=sparsities=[0.5,0.5]": ["sparsities", "0.5 twice", "once"],
    "--seeds=-1": ["seeds", "[0, 2**32)", "got -1"],
    "--seeds=3,3": ["seeds", "3 twice", "once"],
    "--seeds=1,,2": ["--seeds '1,,2'", "such as 1,2,3"],
    "--seeds=one": ["--seeds 'one'", "such as 1,2,3"],
    "--seeds=99999999999999999999": ["seeds", "2**32"],
    "--set=training.epochs=0": ["training.epochs", "at least 1", "got 0"],
    "--set=training.patience=0": ["training.patience", "at least 1", "got 0"],
    "--set=training.validation_fraction=0.0": ["training.validation_fraction", "0 and 0.5", "got 0.0"],
    "--set=training.validation_fraction=0.5": ["training.validation_fraction", "0 and 0.5", "got 0.5"],
    "--set=training.learning_rate=0.0": ["training.learning_rate", "positive", "got 0.0"],
    "--set=training.learning_rate=-1": ["training.learning_rate", "positive", "got -1"],
    "--set=training.learning_rate=nan": ["training.learning_rate", "finite", "got nan"],
    "--set=tasks=regression": ["'regression'", "not a TOML literal"],
    "--set=plugins=['not_a_module']": ["plugin 'not_a_module' does not import", "ModuleNotFoundError"],
    "--set=plugins=['raises']": ["plugin 'raises' does not import: ZeroDivisionError: on two lines"],
    "--set=plugins=['leaves']": ["plugin 'leaves' does not import: SystemExit: 0"],
    "--set=plugins=['wrong']": ["plugin 'wrong' does not import: SyntaxError", "wrong.py, line 2"],
    "--set=plugins=['shapes']": [
        "criterion 'shapes'",
        "'hidden.weight'",
        "shape (32,)",
        "have shape (32, 20)",
    ],
    "--set=plugins=['nans']": ["criterion 'nans'", "'hidden.weight'", "NaN"],
    "--set=plugins=['taken']": ["criterion 'magnitude' is already registered", "choose another name"],
    "--set=plugins=['badtask']": ["task 'badtask'", "must be (rows, ...) float32", "got (4,)"],
    "--set=plugins=['fails']": [
        "task=regression, strategy=fails, sparsity=0.9, seed=1: KeyError: 'no such thing' (fails.py, line 3)"
    ],
    "--set=plugins=['flees']": ["strategy=flees, sparsity=0.9, seed=1: SystemExit: 0 (flees.py, line 3)"],
    "--set=plugins=['nodata']": ["task=nodata, network=mlp", "OSError: no data (nodata.py, line 3)"],
    "--set=plugins=['wrong.py']": ["plugins", "'wrong.py'", "without .py"],
    "--set=hidden=1000000000000": ["network 'mlp' cannot read rows of 20 numbers", "RuntimeError", "memory"],
    "--set=training=3": ["training: must be a table of keys, got 3"],
    "--set=strategies=[3]": ["strategies.0: must be a strategy's name or a table of keys, got 3"],
    "--set=strategies=[{criterion='snip',scope='globl'}]": [
        "strategies.0.scope: unknown scope 'globl'; did you mean 'global'? known: global, layerwise"
    ],
    "--set=training.learning_rate={regression=0.1,modlar=0.1}": [
        "training.learning_rate: unknown task or network 'modlar'; did you mean 'modular'?"
    ],
    "--workers=two": ["'--workers'", "integer", "see `natal VERB --help`"],
    "--sets=hidden=3": ["No such option: --sets", "see `natal VERB --help`"],
    "--out=": ["'' is not a directory"],
    "--out=tiny.toml": ["'tiny.toml' is not a directory"],
    "--workers=0": ["workers must be at least 1", "got 0"],
    "--engine=sequental": ["unknown engine 'sequental'", "did you mean 'sequential'"],
    "--device=cuda:99": ["unknown device 'cuda:99'", "this machine has: cpu"],
}
PLUGINS = {
    "fails": "@natal.criterion('fails')\ndef fails(p): {}['no such thing']\n",
    "flees": "@natal.criterion('flees')\ndef flees(p): raise SystemExit(0)\n",
    "nodata": "@natal.task('nodata', loss='squared-error', metric='R²', learning_rate=0.1, chance=0.0)\n"
    "def nodata(seed): raise OSError('no data')\n",
    "raises": "raise ZeroDivisionError('on two\\nlines')\n",
    "leaves": "import sys\nsys.exit(0)\n",
    "wrong": "x = 1\ndef\n",
    "shapes": "@natal.criterion('shapes')\n"
    "def shapes(p):\n    return {n: w[:, 0] for n, w in p.weights.items()}\n",
    "nans": "@natal.criterion('nans')\n"
    "def nans(p):\n    return {n: w * float('nan') for n, w in p.weights.items()}\n",
    "taken": "@natal.criterion('magnitude')\ndef mine(p):\n    return p.weights\n",
    "badtask": "@natal.task('badtask', loss='squared-error', metric='R²', learning_rate=0.1, chance=0.0)\n"
    "def badtask(seed):\n    x = torch.ones(4)\n    return natal.Data(x, x, x, x, outputs=1)\n",
}


@pytest.fixture
def plugins(tmp_path: Path, forgotten: None) -> None:
    """Put bad plugins beside the study file."""
    for name, text in PLUGINS.items():
        (tmp_path / f"{name}.py").write_text(
            text if name == "wrong" else f"import natal, torch\n{text}", "utf-8"
        )


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("plugins")
def test_every_mistake_is_one_line_and_leaves_no_directory(
    inside: Inside, tmp_path: Path, mistake: str
) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny()))
    change = [
        f"--set={key}=['{name}']"
        for key, names in (
            ("strategies", ("shapes", "nans", "fails", "flees")),
            ("tasks", ("badtask", "nodata")),
        )
        for name in names
        if f"'{name}'" in mistake
    ]
    for verb in ("run", "plan"):
        code, out, err = inside(verb, "tiny.toml", "--out", "results", "--workers=1", mistake, *change)
        assert (code, out) == (2, "")
        assert err.startswith("natal: ")
        assert err.count("\n") == 1
        words = [word.replace("VERB", verb) for word in MISTAKES[mistake]]
        assert [word for word in words if word not in err] == [], err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn"], "No such command 'runn'. Did you mean 'run'?; see `natal --help`"),
        (["compare", "results"], "Missing argument 'reference'; see `natal compare --help`"),
        (["run", "papr"], "unknown study 'papr'; did you mean 'paper'"),
        (["plan", "mine.toml"], "no study file 'mine.toml'; `natal list` shows the presets"),
        (["run", "broken.toml"], "broken.toml: not valid TOML: Invalid value (at line 2, column 9)"),
        (["run", "empty.toml"], "empty.toml: key 'name' is missing (and 4 more)"),
        (["show", "papr"], "unknown name 'papr'; did you mean 'paper'"),
        (["show", "digits", "--kind", "tusk"], "--kind 'tusk' is none; did you mean 'task'"),
        (["show", "snip", "--kind", "scope"], "unknown scope 'snip'; known: er, erk"),
        (["report"], "no study in 'results': study.sqlite is missing; `natal run --out results` makes one"),
        (["compare", "results", "other"], "no study in 'results'"),
    ],
)
def test_a_wrong_name_is_one_line(inside: Inside, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "broken.toml").write_text("name = 'x'\nseeds = = 3\n")
    (tmp_path / "empty.toml").write_text("")
    code, out, err = inside(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"natal: {said}")
    assert err.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"broken.toml", "empty.toml"}


def test_a_signal_that_a_library_wrapped_is_still_a_signal(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt(15)
        except KeyboardInterrupt as stop:
            raise ValueError("Error calling function: KeyboardInterrupt: 15") from stop

    monkeypatch.setattr(natal, "run", run)
    status, _, err = inside("run", "--workers=1")
    assert status == 128 + 15
    assert err.strip() == "natal: stopped, no run is stored in results; the same command goes on from there."


def test_a_signal_that_a_library_swallowed_is_still_a_signal(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise ValueError("Error calling function: KeyboardInterrupt: 15")

    monkeypatch.setattr(natal, "run", run)
    monkeypatch.setattr(cli, "_sent", [])
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, cli._stop)
        status, _, err = inside("run", "--workers=1")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 128 + signal.SIGTERM
    assert err.strip() == "natal: stopped, no run is stored in results; the same command goes on from there."


def test_too_many_open_files_are_told_with_their_cure(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "some.so")

    monkeypatch.setattr(natal, "plan", full, raising=False)
    code, out, err = inside("plan")
    assert (code, out) == (2, "")
    assert err == "natal: some.so: Too many open files; raise `ulimit -n`; nothing stored was lost\n"


def test_a_validation_that_fails_exits_with_1(inside: Inside) -> None:
    code, out, err = inside("validate", "nothing")
    assert (code, err) == (1, "")
    assert out.startswith("Validation FAILED.")


# -- progress --------------------------------------------------------------------------------------------

LINE = re.compile(
    r"^\[\d+/9\] task=regression, strategy=(magnitude|random|structured), sparsity=(0|50|90)%, seed=1 "
    r"\.\.\. test_r2=-?\d+\.\d{4}$"
)


@pytest.mark.slow
def test_a_pipe_gets_one_line_a_run_in_the_papers_form(cli: Natal, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny(seeds=[1])))
    result = cli("run", "tiny.toml", "--workers", 1, "--out", "some results")
    assert (result.returncode, result.stderr) == (0, "")
    *lines, summary, report = result.stdout.splitlines()
    assert len(lines) == 9
    assert [line for line in lines if not LINE.match(line)] == []
    assert [int(line[1:].partition("/")[0]) for line in lines] == list(range(1, 10))
    assert re.fullmatch(r"9 runs of study 'tiny' in some results \(\d+ s of training\)\.", summary)
    assert report == "Report: some results/report.html, as text some results/report.txt"
    again = cli("run", "tiny.toml", "--workers", 1, "--out", "some results", "--seeds", "1,2")
    assert again.stdout.splitlines()[0] == "9 of 18 runs stored already; training the rest."
    assert again.stdout.splitlines()[1].startswith("[10/18] ")
    assert len(again.stdout.splitlines()) == 12
    assert cli("run", "tiny.toml", "--workers", 1, "--out", "some results", "--quiet").stdout == ""


def plain(drawn: str) -> str:
    """Return what was drawn without colours and moves of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)


def terminal(folder: Path, *words: str) -> tuple[int, str]:
    """Run ``natal`` in a pseudo-terminal of 100 columns; return its exit status and what it drew."""
    main, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-m", "natal.cli", *words],
        cwd=folder,
        stdin=end,
        stdout=end,
        stderr=end,
        env=environment,
        start_new_session=True,
    )
    os.close(end)
    drawn = b""
    with suppress(OSError):  # the other side is closed
        while part := os.read(main, 65536):
            drawn += part
    os.close(main)
    return process.wait(), drawn.decode()


@pytest.mark.slow
def test_a_terminal_gets_a_live_view(tmp_path: Path) -> None:
    study = tiny(name="a [bold]strange[/] [name]", seeds=[1])
    (tmp_path / "tiny.toml").write_text(toml(study))
    code, drawn = terminal(tmp_path, "run", "tiny.toml", "--workers", "1")
    assert code == 0, drawn
    text = plain(drawn)
    assert "a [bold]strange[/] [name]" in text
    assert "training  regression" in text
    assert "9/9" in text
    assert re.search(r"\d runs/s", text)
    assert re.search(r"test_r2=-?\d\.\d{4} +regression structured 90% seed 1", text)
    assert "\x1b[1A" in drawn  # it draws over itself
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # and gives the cursor back
    last = text[text.rindex("9/9") :]
    assert "done" in last
    assert "left" not in last
    assert "9 runs of study 'a [bold]strange[/] [name]' in results" in text


# -- the other verbs -------------------------------------------------------------------------------------


def test_plan_says_what_would_run_and_writes_nothing(inside: Inside, tmp_path: Path) -> None:
    code, out, err = inside("plan")
    assert (code, err) == (0, "")
    said = {line[:12].strip(): line[13:] for line in out.splitlines()}
    assert said["runs"] == "144 = 2 tasks x 1 network x 3 strategies x 8 sparsities x 3 seeds"
    assert said["shared"].startswith("12 runs with another run's training")
    assert said["shared"].endswith("132 trainings")
    assert said["done"] == "0 of 144 runs stored in results"
    assert said["to do"].startswith("132 trainings in ")
    expected = r"at most about \S+ (s|min|h), less what early stopping saves; about \d+ MB a worker \(a few steps .*\)"
    assert re.fullmatch(expected, said["estimate"])
    assert list(tmp_path.iterdir()) == []


def test_plan_knows_what_is_done(inside: Inside, tmp_path: Path, tiny_results: Results) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny()))
    _, out, _ = inside("plan", "tiny.toml", "--out", tiny_results.directory)
    assert f"done         18 of 18 runs stored in {tiny_results.directory}" in out
    assert "nothing to train" in out
    _, out, _ = inside("plan", "tiny.toml", "--out", tiny_results.directory, "--seeds", "1,2,3")
    assert "done         18 of 27 runs" in out
    assert "to do        7 trainings" in out


def test_plan_leaves_out_the_memory_that_a_system_does_not_tell(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny()))
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    code, out, err = inside("plan", "tiny.toml")
    assert (code, err) == (0, "")
    assert re.search(r"^estimate     at most .* saves \(a few steps were measured here\)$", out, re.MULTILINE)


def test_a_folder_of_data_may_lie_at_home(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "tiny.toml").write_text(toml(tiny(tasks=["cifar-10"])))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NATAL_DATA", "")
    code, _, err = inside("plan", "tiny.toml", "--data=~/data")  # which no shell expands
    assert code == 2
    assert f"they are not in '{tmp_path / 'home' / 'data'}'" in err


def test_list_names_everything_in_one_line_each(inside: Inside) -> None:
    from natal.lab.networks import networks
    from natal.lab.tasks import tasks
    from natal.pruning.criteria import criteria
    from natal.study import CONTROLS, SCOPES, STRATEGIES, presets
    from natal.study.audit import audits
    from natal.study.protocols import PROTOCOLS

    code, out, _ = inside("list")
    assert code == 0
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert {name for name, _ in lines} == {
        *presets(), *tasks, *networks, *STRATEGIES, *criteria, *SCOPES, *CONTROLS, *audits(),
        *PROTOCOLS,
    }  # fmt: skip
    assert all(len(line) == 2 for line in lines)


def test_every_listed_name_is_explained(inside: Inside) -> None:
    from natal.explain import explain, kinds

    for kind in kinds():
        for name in kind.names:
            text, also = explain(name, kind.word)
            assert len(text.splitlines()) >= 3, (kind.word, name)
            assert also == []
    code, out, err = inside("show", "erk")
    assert (code, err) == (0, "")
    assert "∝ Σ dims / ∏ dims (RigL; Evci et al. 2020)" in out
    code, out, _ = inside("show", "random-neurons")  # a strategy and a control
    assert code == 0
    assert out.startswith("strategy random-neurons")
    assert "network mlp" in inside("show", "mlp")[1]
    assert "task digits" in inside("show", "digits", "--kind", "task")[1]


def test_options_are_shown_as_a_study_writes_them() -> None:
    from natal.explain import explain

    text, _ = explain("mlp")
    assert "    hidden = [128]\n" in text
    assert '    activation = "relu"   one of "relu", "leaky-relu", ' in text
    assert "    embedding = unset\n" in text
    assert '    augment = []   any of "flip", "crop"' in explain("cifar-10")[0]


def test_show_prints_a_study_that_can_be_copied(inside: Inside, tmp_path: Path) -> None:
    code, out, _ = inside("show", "paper")
    assert code == 0
    (tmp_path / "mine.toml").write_text(out, "utf-8")
    assert natal.load_study("mine.toml").digest == natal.load_study("paper").digest


def test_compare_finds_the_difference_and_no_difference(
    inside: Inside, tmp_path: Path, tiny_results: Results
) -> None:
    code, out, _ = inside("compare", tiny_results.directory, tiny_results.directory)
    assert code == 0
    assert "18 runs compared" in out
    assert "all 18 matched runs identical to the last bit" in out
    theirs = json.loads((tiny_results.directory / "results.json").read_text("utf-8"))
    theirs["results"][0]["test_r2"] += 0.125
    for run in theirs["results"]:
        run["strategy"] = run["strategy"].replace("random", "chance")
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    code, out, _ = inside("compare", tiny_results.directory, "theirs.json", "--as", "chance=random")
    assert code == 1
    assert re.search(
        r"test_r2 +differs in 1 run, by -0\.0069 on average, by at most 0\.125 \(task=regression, ",
        out,
    )
    code, _, err = inside("compare", tiny_results.directory, "theirs.json", "--as", "chance")
    assert (code, err.count("\n")) == (2, 1)
    assert "--as 'chance': write it as THEIRS=OURS" in err


def test_a_directory_may_have_a_name_that_is_no_text(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(toml(tiny(seeds=[1], sparsities=[0.0])))
    latin = "caf\udce9"  # the byte E9, as Python reads it
    code, _, err = inside("run", "tiny.toml", "--quiet", "--workers=1", "--out", latin)
    assert (code, err) == (0, "")
    results = natal.load(tmp_path / latin)
    assert results.manifest["command"].endswith("--out caf\\udce9")
    # stores of before hold the byte itself
    cast("dict[str, Any]", results.manifest)["command"] = latin
    assert json.loads(json_bytes(results))["metadata"]["natal"]["command"] == latin


def test_report_writes_the_same_bytes_again(inside: Inside, tmp_path: Path, tiny_results: Results) -> None:
    (tmp_path / FILE).write_bytes((tiny_results.directory / FILE).read_bytes())
    code, out, _ = inside("report", tmp_path)
    assert code == 0
    names = [str(Path(line).relative_to(tmp_path)) for line in out.splitlines()]
    assert "report.txt" in names
    assert "results.json" in names
    for name in names:
        assert (tmp_path / name).read_bytes() == (tiny_results.directory / name).read_bytes(), name


# -- starting --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_looking_never_imports_torch_nor_planning_its_compiler(tmp_path: Path, tiny_results: Results) -> None:
    shutil.copytree(tiny_results.directory, tmp_path / "results")
    code = (
        "import sys, natal, natal.cli\n"
        "def torchless(*words):\n"
        "    sys.argv = ['natal', *words]\n"
        "    try:\n"
        "        natal.cli.main()\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    assert 'torch' not in sys.modules, words\n"
        "torchless('--help'); torchless('run', '--help'); torchless('show', 'paper')\n"
        "torchless('report', PLACE); torchless('validate', PLACE)\n"
        "assert len(natal.load(PLACE).runs) == 18\n"
        "natal.load_study('paper')\n"
        "assert 'torch' not in sys.modules\n"
        "natal.select\n"
        "assert 'torch' in sys.modules\n"
        "natal.plan('paper', 'nothing')\n"
        "from natal.lab import birth\n"
        "birth.trial(natal.load_study('paper'), natal.Run('regression', 'magnitude', 0.5, 1), 0.01)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    ).replace("PLACE", repr(str(tmp_path / "results")))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_version_says_what_a_report_of_a_fault_needs_and_needs_no_torch() -> None:
    code = (
        "import sys, natal; from natal.machine import facts; print(dict(facts())['torch'], natal.__version__); "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", f"{torch.__version__} {natal.__version__}\n")


def test_the_command_starts_as_a_module_and_without_signals_that_others_have(tmp_path: Path) -> None:
    code = (
        "import runpy, signal, sys\n"
        "for name in ('SIGHUP', 'SIGPIPE', 'SIGTERM'): delattr(signal, name)\n"
        "sys.argv = ['natal', '--version']\n"
        "runpy.run_module('natal', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"natal        {natal.__version__}, in ")


@pytest.mark.parametrize(("typed", "word"), [("run pap", "paper"), ("audit gro", "grokking-tickets")])
def test_a_shell_completes_verbs_and_names(typed: str, word: str) -> None:
    environment = {
        **os.environ, "_NATAL_COMPLETE": "complete_bash", "COMP_WORDS": f"natal {typed}", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "natal"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == ([word], "")


@pytest.mark.parametrize(("words", "said"), [
    (["plan", "--set=sparsities=[95.0]"], "sparsities: sparsity must lie in [0, 1), got 95.0; did you mean 0.95?"),
    (["plan", "--out", "full"], "'full' holds files that are not natal's; name a new or empty directory with --out"),
    (["diagnose", "notes.txt"], "'notes.txt' is a file; name a directory that `natal run` has filled"),
])  # fmt: skip
def test_a_slip_is_answered_with_its_cure(
    inside: Inside, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    code, out, err = inside(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_text_is_no_list_of_overrides() -> None:
    with pytest.raises(
        natal.NatalError, match=r"overrides must be a list, such as \['seeds=\[1\]'\], got text"
    ):
        natal.load_study("paper", overrides="seeds=[1]")


def test_help_names_every_verb_with_a_line(inside: Inside) -> None:
    code, out, _ = inside("--help")
    assert code == 0
    verbs = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in cli.app.registered_commands
    }
    assert {"run", "plan", "validate", "report", "compare", "list", "show"} <= verbs
    for verb in verbs:  # GitHub's machines see them in colour
        assert re.search(rf"\b{verb}\b +\w+", plain(out)), verb


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_letter_shows_another(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "natal.cli", "show", "paper"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    listed = subprocess.run(
        [sys.executable, "-m", "natal.cli", "list"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert b"|??|" in listed.stdout
