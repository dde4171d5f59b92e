"""Photographs from Debian packages, grouped by whether ImageNet has a class for their subject.

    apt-get download gcompris-qt-data opencv-doc darknet
    for package in *.deb; do dpkg -x $package DIR; done
    python tests/perf/efficientnet.py --photographs DIR

A person wrote down the subject of each photograph in `photographs.tsv` before any network ran on it. The
column `fit` is `class` if the 1,000 classes include the subject, `near` if they include a related one, and
`none` otherwise. This separates errors of an int8 network on known subjects from a different order of
guesses where no class is right. There are no cut-outs, drawings or textures, and no pictures of
`natural_images.py`.
"""

from __future__ import annotations

import csv
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from natural_images import Images, images_of

INDEX = Path(__file__).with_name("photographs.tsv")
FITS = ("class", "near", "none")
CROPS = 10
_RESOURCES = "gcompris-qt/rcc"
_MAGIC, _DIRECTORY, _COMPRESSED = b"qres", 2, 1 | 4
_NODE_BYTES = 22  # since version 2 of the format, which added a timestamp to each node


def load(folder: Path, size: int = 224) -> dict[str, Images]:
    """Return ten squares of every photograph, by fit. The first of the ten is the largest centred square.

    Args:
        folder: folder with the unpacked packages.
        size: side of the squares in pixels.

    Raises:
        FileNotFoundError: a photograph does not exist.
        ValueError: an archive does not have the format of the packages of Debian 12.
    """
    share = folder / "usr" / "share"
    with INDEX.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    with tempfile.TemporaryDirectory() as name:
        archives = {row["path"].partition(":")[0] for row in rows if ":" in row["path"]}
        inside = {archive: dict(_members(share / _RESOURCES / archive)) for archive in sorted(archives)}
        paths: dict[str, list[Path]] = {fit: [] for fit in FITS}
        for index, row in enumerate(rows):
            archive, _, member = row["path"].partition(":")
            path = share / archive
            if member:
                path = Path(name) / f"{index}.webp"
                path.write_bytes(inside[archive][member])
            paths[row["fit"]].append(path)
        return {fit: images_of(found, CROPS, size) for fit, found in paths.items()}


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the uncompressed files below `resource/` in a Qt resource archive (`rcc --binary`)."""
    content = path.read_bytes()
    magic, version, tree, data, names = struct.unpack(">4s4I", content[:20])
    if magic != _MAGIC or version < 2:
        raise ValueError(f"{path} is not a Qt resource archive of version 2 or 3")
    waiting = [(0, "")]
    while waiting:
        index, parent = waiting.pop()
        start = tree + index * _NODE_BYTES
        name_at, flags = struct.unpack(">IH", content[start : start + 6])
        full = parent
        if index:
            at = names + name_at
            (length,) = struct.unpack(">H", content[at : at + 2])
            full = f"{parent}/{content[at + 6 : at + 6 + 2 * length].decode('utf-16-be')}"
        if flags & _DIRECTORY:
            count, first = struct.unpack(">II", content[start + 6 : start + 14])
            waiting.extend((first + offset, full) for offset in range(count))
        elif not flags & _COMPRESSED:
            (offset,) = struct.unpack(">I", content[start + 10 : start + 14])
            (length,) = struct.unpack(">I", content[data + offset : data + offset + 4])
            yield full.partition("/resource/")[2], content[data + offset + 4 : data + offset + 4 + length]
