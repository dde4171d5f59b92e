"""Photographs that Debian packages ship, by whether ImageNet has a class for what they show.

    apt-get download gcompris-qt-data opencv-doc darknet
    for package in *.deb; do dpkg -x $package DIR; done
    python tests/perf/efficientnet.py --photographs DIR

What each photograph shows was written down by eye, before any network was run on it: `photographs.tsv`
says `class` where the 1,000 classes have one for it, `near` where they have a related one, and else `none`.
So it can be told apart whether an int8 network errs on what it is made for, or orders guesses another way
where there is no right answer. No cut-outs, drawings or textures, and nothing of `natural_images.py`.
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
_NODE_BYTES = 22  # since version 2 of the format, which put a time behind each node


def load(folder: Path, size: int = 224) -> dict[str, Images]:
    """Ten squares of every photograph, by how ImageNet's classes fit; the first of ten is its whole middle.

    Args:
        folder: where the packages were unpacked.
        size: of the squares, in pixels.

    Raises:
        FileNotFoundError: a photograph is not there.
        ValueError: an archive is not what the package of Debian 12 holds.
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
    """Files below `resource/` that a Qt resource archive (`rcc --binary`) stores as they are."""
    content = path.read_bytes()
    magic, version, tree, data, names = struct.unpack(">4s4I", content[:20])
    if magic != _MAGIC or version < 2:
        raise ValueError(f"{path} is no Qt resource archive of version 2 or 3")
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
