"""Parts of a study that are trained apart make the whole, to the last bit, and runs come out again."""

from __future__ import annotations

from pathlib import Path

import pytest

import natal
import reference_store
from conftest import tiny, trainings
from natal import NatalError
from natal.lab import verify as verifying
from natal.lab.plan import part_of
from natal.reading import report
from natal.store import Failure, Store
from natal.store.merge import merge

PARTS = 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny study in two parts, with a lottery ticket's chain in it."""
    folder = tmp_path_factory.mktemp("parts")
    places = [folder / str(i) for i in range(PARTS)]
    for i, place in enumerate(places, 1):
        _trained(place, part=f"{i}/{PARTS}")
    return places


def _trained(place: Path, part: str | None = None) -> Path:
    """The chained study, or a part of it, without a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda directory, **_: [])
        return natal.run(CHAINED, place, part=part, workers=1).directory


CHAINED = tiny(
    strategies=[
        "random",
        {"name": "ticket", "criterion": "magnitude", "at": "end", "rewind": "init", "rounds": 2},
    ],
    training={"patience": "none", "target": "none"},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("whole") / "w")


def test_parts_are_disjoint_and_make_the_whole(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    kept = [trainings(place) for place in parts]
    assert all(kept)
    assert not set(kept[0]) & set(kept[1])
    assert merge(parts, tmp_path / "merged") == (12, 12)
    assert trainings(tmp_path / "merged") == trainings(whole)
    merged, once = natal.load(tmp_path / "merged"), natal.load(whole)
    assert merged.frame().drop(columns="seconds").equals(once.frame().drop(columns="seconds"))
    assert merged.digest == once.digest
    assert merged.manifest["finished_at"] is not None
    assert {p.name for p in (tmp_path / "merged" / "states").iterdir()} == {
        p.name for p in (whole / "states").iterdir()
    }
    planned = natal.plan(CHAINED, tmp_path / "merged")
    assert (len(planned.done), planned.pending) == (12, [])


def test_a_part_tells_what_it_is_and_is_not_whole(parts: list[Path], tmp_path: Path) -> None:
    results = natal.load(parts[0])
    assert 0 < len(results.runs) < 12
    assert results.manifest["finished_at"] is None
    planned = natal.plan(CHAINED, parts[0], part="2/2")
    assert len(planned.done) == len(results.runs)
    other = {training.key for training in planned.pending}
    assert other == set(trainings(parts[1]))
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(NatalError, match="write it as 3/8, the third of eight"):
            part_of(wrong)


def test_conflicting_bits_are_refused_and_named(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    results = natal.load(parts[0])
    row = next(row for row in results.runs if row.sparsity)
    _trained(tmp_path / "twice", "1/2")
    merge([parts[0], tmp_path / "twice"], tmp_path / "same")  # the same bits twice are no conflict
    reference_store.tamper(
        tmp_path / "twice", f"UPDATE training SET test_metric = 0.5 WHERE key = '{row.key}'"
    )
    with pytest.raises(
        NatalError, match=r"parts disagree: task=.* has test_metric .* and 0.5 in .*; nothing was merged"
    ):
        merge([parts[0], tmp_path / "twice"], tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_parts_of_other_studies_or_versions_are_refused(parts: list[Path], tmp_path: Path) -> None:
    other = reference_store.build(tmp_path / "other")
    with pytest.raises(NatalError, match="are not of one study"):
        merge([parts[0], other], tmp_path / "out")
    newer = reference_store.build(tmp_path / "newer", torch_version="2.14.0")
    with pytest.raises(NatalError, match=r"has torch_version 2.13.0\+cpu, .* 2.14.0; train the parts"):
        merge([other, newer], tmp_path / "out")
    rekeyed = reference_store.build(tmp_path / "rekeyed")
    reference_store.tamper(rekeyed, "UPDATE grid SET key = 'x' WHERE position = 5")
    with pytest.raises(NatalError, match="want different trainings for task=modular"):
        merge([other, rekeyed], tmp_path / "out")
    with pytest.raises(NatalError, match="is not empty"):
        merge([other, other], other)
    with pytest.raises(NatalError, match="two directories at least"):
        merge([other], tmp_path / "out")
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(NatalError, match=r"'.*link' is named twice; name every part once"):
        merge([other, tmp_path / "link"], tmp_path / "out")


def test_what_failed_in_every_part_is_failed_in_the_whole(tmp_path: Path) -> None:
    study = reference_store.reference_study()
    runs = [study.runs()[place] for place in (7, 9)]
    outcomes = {
        run: outcome for run, outcome in reference_store.reference_outcomes().items() if run != runs[0]
    }
    one = reference_store.build(tmp_path / "one", {r: o for r, o in outcomes.items() if r != runs[1]})
    other = reference_store.build(tmp_path / "other", outcomes)
    with Store.create(one) as store:
        keys = dict(store.grid())
        store.add((), [Failure(keys[run], "no luck", 2, "2026-11-26 10:00:00") for run in runs])
    assert merge([one, other], tmp_path / "whole") == (143, 144)
    told = [(run, failure.tries, failure.at) for run, failure in natal.load(tmp_path / "whole").failed]
    assert told == [(runs[0], 2, "2026-11-26 10:00:00")]


def test_a_sample_comes_out_again(whole: Path) -> None:
    before = trainings(whole)
    verified = verifying.verify(whole, 5, seed=0, workers=1)
    assert (verified.runs, verified.same, verified.exact, verified.apart) == (5, 5, True, ())
    assert list(verified.lines()) == ["5 of 5 runs trained again came out as stored, to the last bit"]
    assert trainings(whole) == before
    with pytest.raises(NatalError, match="sample must be at least 1"):
        verifying.verify(whole, 0)


@pytest.mark.usefixtures("no_report")
def test_a_sample_of_searched_rates_comes_out_again(tmp_path: Path) -> None:
    searched = {"learning_rate": {"search": [1e-6, 0.01, 0.02]}, "epochs": 6}
    natal.run(tiny(strategies=["random"], training=searched), tmp_path, workers=1)
    for seed in range(2):  # of one seed of two, whatever that would choose alone
        verified = verifying.verify(tmp_path, 2, seed=seed, workers=1)
        assert (verified.same, verified.exact, verified.apart) == (2, True, ())


@pytest.mark.usefixtures("no_report")
def test_what_does_not_come_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    natal.run(tiny(seeds=[1], strategies=["random"]), tmp_path, workers=1)
    with Store.read(tmp_path) as store:
        [stored] = [o.test_metric for o in store.outcomes({store.grid()[-1][1]})]
    assert stored is not None
    reference_store.tamper(tmp_path, f"UPDATE training SET test_metric = {stored + 0.01} WHERE id > 0")
    verified = verifying.verify(tmp_path, 3, seed=0, workers=1)
    assert verified.same == 0
    assert all("and is stored as" in said for _, said in verified.apart)
    # with other versions the keys differ, and a hundredth more is within what that may do
    monkeypatch.setattr(verifying, "processor", lambda: "another")
    monkeypatch.setattr(verifying, "_why_not_exact", lambda *_: "this is another processor")
    loose = verifying.verify(tmp_path, 3, seed=0, workers=1)
    assert not loose.exact
    assert f"within {verifying.TOLERANCE} of each metric, since this is another" in next(loose.lines())
