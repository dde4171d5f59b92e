"""Reading and writing `.npz` files from untrusted sources.

`numpy.load` trusts the headers of a file: a header may announce an array of petabytes, an entry may unpack
to a thousand times its size, and loading an object array runs code. This module checks every announced
size against the archive's own table, and the sum of the sizes against a limit, before it allocates memory.
"""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bench.core.errors import DataError
from bench.core.files import atomic_file

Array = npt.NDArray[Any]
DType = np.dtype[Any]

MAX_UNPACKED_BYTES = 8 * 2**30
MAX_ENTRIES = 1024
_PLAIN_KINDS = frozenset("biufUS")
_SUFFIX = ".npy"
_PIECE_BYTES = 2**20
# Exceptions that zipfile, its decompressors and numpy's header parser raise on damaged or hostile bytes.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    OSError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True)
class ArraySpec:
    """Dtype (in the native byte order) and shape of an array, without its values."""

    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Header:
    dtype: DType
    shape: tuple[int, ...]
    fortran_order: bool


@dataclass(frozen=True)
class NpzRows:
    """An `.npz` archive whose arrays are read some rows at a time.

    Attributes:
        path: the archive.
        specs: dtype and shape of each array, by name.
    """

    path: Path
    specs: Mapping[str, ArraySpec]

    def blocks(self, names: Sequence[str], rows: int) -> Iterator[dict[str, Array]]:
        """Read arrays of equal length together, `rows` rows at a time; the last block may be shorter.

        Memory use does not grow with the length, with one exception: an array in Fortran order is read
        whole, because its rows are scattered over the file.

        Raises:
            DataError: the file is damaged.
        """
        with _archive(self.path) as archive, ExitStack() as streams:
            sources = []
            for name in names:
                entry = archive.NameToInfo.get(name + _SUFFIX)
                if entry is None:
                    raise DataError(self.path, f"has no array {name!r}", "write the file again")
                stream = streams.enter_context(archive.open(entry))
                header = _read_header(self.path, name, stream, entry.file_size)
                sources.append(_rows_of(self.path, name, stream, header, rows))
            for arrays in zip(*sources, strict=True):
                yield dict(zip(names, arrays, strict=True))


def open_rows(path: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> NpzRows:
    """Read the array headers of an `.npz`, without the arrays.

    Args:
        path: the archive.
        max_bytes: limit for the total size of all unpacked arrays.

    Raises:
        DataError: the file is missing, damaged, too large, or contains objects.
    """
    specs = {}
    with _archive(path) as archive:
        entries = archive.infolist()
        _check_entries(path, entries, max_bytes)
        for entry in entries:
            name = entry.filename.removesuffix(_SUFFIX)
            with archive.open(entry) as stream:
                header = _read_header(path, name, stream, entry.file_size)
            specs[name] = ArraySpec(header.dtype.newbyteorder("="), header.shape)
    return NpzRows(path, specs)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; while it is open, turn every error that damaged bytes cause into a `DataError`."""
    if not path.is_file():
        raise DataError(path, "there is no such file", "check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _UNREADABLE as error:
        raise DataError(path, f"is not a readable .npz ({error})", "write the file again") from error


def _rows_of(path: Path, name: str, stream: IO[bytes], header: _Header, rows: int) -> Iterator[Array]:
    count, *rest = header.shape
    if header.fortran_order:
        whole = _read_values(path, name, stream, header.dtype, header.shape[::-1]).transpose()
        yield from (whole[start : start + rows] for start in range(0, count, rows))
        return
    for start in range(0, count, rows):
        yield _read_values(path, name, stream, header.dtype, (min(rows, count - start), *rest))


def read_npz(
    path: Path, *, rows: int | None = None, spread: bool = False, max_bytes: int = MAX_UNPACKED_BYTES
) -> dict[str, Array]:
    """Read all arrays of an `.npz`, or `rows` rows of each along axis 0.

    Args:
        path: the archive.
        rows: number of rows to read; `None` reads everything.
        spread: read rows at equal distances over the whole length instead of the first rows. Reading only
            the first rows does not unpack the others.
        max_bytes: limit for the total size of the arrays that are read.

    Raises:
        DataError: the file is missing, damaged, too large, or contains objects.
    """
    with _archive(path) as archive:
        entries = archive.infolist()
        # To reach rows all over the file, everything before them is unpacked, which takes time.
        bound = max_bytes if rows is None else MAX_UNPACKED_BYTES if spread else None
        _check_entries(path, entries, bound)
        arrays = {}
        left = max_bytes
        for entry in entries:
            with archive.open(entry) as stream:
                name = entry.filename.removesuffix(_SUFFIX)
                arrays[name] = _read_array(
                    path, name, stream, file_size=entry.file_size, rows=rows, spread=spread, max_bytes=left
                )
                left -= arrays[name].nbytes
        return arrays


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to a compressed `.npz`; the same arrays always result in the same bytes."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], max_bytes: int | None) -> None:
    if not entries:
        raise DataError(path, "contains no arrays", "write the file with numpy.savez")
    if len(entries) > MAX_ENTRIES:
        raise DataError(path, f"contains {len(entries)} arrays", f"store at most {MAX_ENTRIES}")
    others = [e.filename for e in entries if not e.filename.endswith(_SUFFIX)]
    if others:
        raise DataError(
            path, f"contains {others[0]!r}, which is not an array", "write the file with numpy.savez"
        )
    total = sum(entry.file_size for entry in entries)
    if max_bytes is not None and total > max_bytes:
        raise DataError(path, f"unpacks to {total} bytes, more than {max_bytes}", "split the data set")


def _read_header(path: Path, name: str, stream: IO[bytes], file_size: int) -> _Header:
    """Read the header of an entry, and check the size that it announces."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(
            path,
            f"array {name!r} has .npy version {version}; versions (1, 0) and (2, 0) are supported",
            "write the file with numpy.savez",
        )
    if dtype.kind not in _PLAIN_KINDS:
        raise DataError(
            path, f"array {name!r} has dtype {dtype}, which is not supported", "store numbers or strings"
        )
    if any(size < 0 for size in shape):
        raise DataError(
            path, f"array {name!r} has a negative size: shape {list(shape)}", "write the file again"
        )
    if math.prod(shape) * dtype.itemsize > file_size:
        raise DataError(path, f"array {name!r} is shorter than its header states", "write the file again")
    return _Header(dtype, shape, fortran_order)


def _read_array(
    path: Path,
    name: str,
    stream: IO[bytes],
    *,
    file_size: int,
    rows: int | None,
    spread: bool,
    max_bytes: int,
) -> Array:
    header = _read_header(path, name, stream, file_size)
    shape = header.shape
    if rows is not None and shape and not header.fortran_order:
        shape = (min(rows, shape[0]), *shape[1:])
    if math.prod(shape) * header.dtype.itemsize > max_bytes:
        raise DataError(
            path, f"array {name!r} exceeds the remaining limit of {max_bytes} bytes", "split the data set"
        )
    if header.fortran_order:
        whole = _read_values(path, name, stream, header.dtype, shape[::-1]).transpose()
        return whole[_spread(len(whole), rows)] if spread and rows is not None else whole[:rows]
    if not spread or shape == header.shape:
        return _read_values(path, name, stream, header.dtype, shape)
    start, row = stream.tell(), (1, *shape[1:])
    values = np.empty(shape, header.dtype.newbyteorder("="))
    for place, index in enumerate(_spread(header.shape[0], shape[0])):
        stream.seek(start + index * math.prod(row) * header.dtype.itemsize)
        values[place : place + 1] = _read_values(path, name, stream, header.dtype, row)
    return values


def _spread(count: int, rows: int) -> list[int]:
    """Indices of at most `rows` of `count` rows: the first row of each of `rows` equal parts."""
    return [index * count // rows for index in range(rows)] if rows < count else list(range(count))


def _read_values(path: Path, name: str, stream: IO[bytes], dtype: DType, shape: tuple[int, ...]) -> Array:
    """Read the next values of a stream, and convert them to the native byte order."""
    count = math.prod(shape)
    # zipfile collects the unpacked pieces of one read and then joins them, which needs memory twice. Reads
    # of small pieces keep that overhead small.
    content = np.empty(count * dtype.itemsize, np.uint8)
    view, filled = content.data, 0
    while filled < len(view) and (got := stream.readinto(view[filled : filled + _PIECE_BYTES])):  # type: ignore[attr-defined]
        filled += got
    if filled != len(view):
        raise DataError(path, f"array {name!r} is truncated", "write the file again")
    values: Array = np.frombuffer(content, dtype=dtype, count=count)
    if not dtype.isnative:  # ONNX Runtime ignores the byte order, and would read wrong numbers
        values = values.astype(dtype.newbyteorder("="))
    return values.reshape(shape)
