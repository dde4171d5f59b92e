"""Archives from untrusted sources: a bad archive raises a `DataError` and no other exception."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.core import arrays as arrays_module
from bench.core.arrays import open_rows, read_npz, write_npz
from bench.core.errors import DataError, StorageError

HEADER = "{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}}}"


def npy(content=b"", *, descr="<f8", fortran=False, shape="(2,)", header=None, version=1):
    """The bytes of an `.npy` whose header may be false."""
    text = (header or HEADER.format(descr=descr, fortran=fortran, shape=shape)).encode("latin1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


@pytest.fixture
def archive(tmp_path):
    """A function that writes an archive of entries: file name -> bytes."""

    def write(entries, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "data.npz"
        with zipfile.ZipFile(path, "w", compression) as target:
            for name, content in entries.items():
                target.writestr(name, content)
        return path

    return write


def mixed_arrays():
    """Arrays of 20 rows in every layout that a file may use."""
    return {
        "x": np.arange(240, dtype=np.float32).reshape(20, 4, 3),
        "fortran": np.asfortranarray(np.arange(60.0).reshape(20, 3)),
        "foreign": np.arange(20, dtype=">i4"),
        "names": np.array([f"n{k}" for k in range(20)]),
    }


def entries_of(arrays):
    """The entries of an archive of the arrays."""
    buffers = {name: io.BytesIO() for name in arrays}
    for name, buffer in buffers.items():
        np.save(buffer, arrays[name])
    return {f"{name}.npy": buffer.getvalue() for name, buffer in buffers.items()}


@pytest.mark.parametrize("rows", [None, 0, 1, 3, 100])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_a_slice(tmp_path, order, rows):
    whole = np.asarray(np.arange(60).reshape(5, 4, 3), order=order)
    path = tmp_path / "data.npz"
    write_npz(path, {"x": whole, "names": np.array(["a", "bb", "c", "d", "e"])})
    read = read_npz(path, rows=rows)
    np.testing.assert_array_equal(read["x"], whole[:rows])
    assert read["names"].tolist() == ["a", "bb", "c", "d", "e"][:rows]
    assert read["x"].dtype == whole.dtype


def test_rows_beyond_the_first_are_not_unpacked(archive):
    row = np.arange(4.0)
    content = npy(row.tobytes() * 1000, shape="(1000, 4)")
    read = read_npz(archive({"x.npy": content}), rows=2, max_bytes=100)
    np.testing.assert_array_equal(read["x"], [row, row])


@pytest.mark.parametrize(
    ("rows", "places"), [(1, [0]), (4, [0, 5, 10, 15]), (3, [0, 6, 13]), (99, range(20))]
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_spread_rows_are_the_first_of_equal_shares(archive, compression, rows, places):
    whole = mixed_arrays()
    read = read_npz(archive(entries_of(whole), compression), rows=rows, spread=True)
    for name, array in whole.items():
        np.testing.assert_array_equal(read[name], array[list(places)])
        assert read[name].dtype.isnative


def test_spread_rows_keep_to_the_limit(archive):
    content = npy(bytes(32 * 1000), shape="(1000, 4)")
    assert read_npz(archive({"x.npy": content}), rows=3, spread=True, max_bytes=100)["x"].shape == (3, 4)
    with pytest.raises(DataError, match="exceeds the remaining limit of 100 bytes"):
        read_npz(archive({"x.npy": content}), rows=4, spread=True, max_bytes=100)


def test_spread_rows_of_a_very_large_archive_are_refused(archive, monkeypatch):
    path = archive({"x.npy": npy(bytes(32 * 1000), shape="(1000, 4)")})
    monkeypatch.setattr("bench.core.arrays.MAX_UNPACKED_BYTES", 10_000)
    assert len(read_npz(path, rows=3)["x"]) == 3
    with pytest.raises(DataError, match="more than 10000"):
        read_npz(path, rows=3, spread=True)


@given(
    st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", "<U3"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["C", "F"]),
)
def test_written_arrays_are_read_back(tmp_path_factory, dtype, shape, order):
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape).astype(dtype), order=order)
    write_npz(path, {"x": array})
    read = read_npz(path)["x"]
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


def test_equal_arrays_give_equal_bytes(tmp_path):
    arrays = {"b": np.arange(1000), "a": np.eye(3)}
    write_npz(tmp_path / "first.npz", arrays)
    write_npz(tmp_path / "second.npz", {name: array.copy() for name, array in arrays.items()})
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_a_foreign_byte_order_becomes_native(archive):
    # ONNX Runtime would read big-endian feeds as little-endian ones: wrong numbers and no error.
    content = npy(np.array([1.5, -2.0], ">f8").tobytes(), descr=">f8")
    read = read_npz(archive({"x.npy": content}))["x"]
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, [1.5, -2.0])


def test_a_large_header_format_is_read(archive):
    content = npy(np.array([1.0, 2.0]).tobytes(), version=2)
    np.testing.assert_array_equal(read_npz(archive({"x.npy": content}))["x"], [1.0, 2.0])


DATA = np.zeros(2).tobytes()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"x.npy": npy(DATA, descr="|O")}, "dtype object, which is not supported"),
        ({"x.npy": npy(DATA, descr="<M8[s]")}, "which is not supported"),
        ({"x.npy": npy(DATA, shape="(1000000000000000, 8)")}, "shorter than its header states"),
        ({"x.npy": npy(DATA, shape="(-1,)")}, r"has a negative size: shape \[-1\]"),
        ({"x.npy": npy(DATA, shape="(0, 99999999999999999999999)")}, "not a readable"),
        ({"x.npy": npy(DATA, shape="(2, True)")}, "not a readable"),
        ({"x.npy": npy(DATA, shape="(1.5,)")}, "not a readable"),
        ({"x.npy": npy(descr="|S0")}, "not a readable"),
        ({"x.npy": npy(header="[1, 2")}, "not a readable"),
        ({"x.npy": npy(header="(" * 5000)}, "not a readable"),
        ({"x.npy": npy(header="-" * 9000 + "1")}, "not a readable"),
        ({"x.npy": npy(DATA, version=3)}, r"has .npy version \(3, 0\)"),
        ({"x.npy": b""}, "not a readable"),
        ({"x.npy": b"\x80\x04pickle"}, "not a readable"),
        ({"x.npy": npy(DATA), "readme.txt": b"hello"}, "contains 'readme.txt', which is not an array"),
        ({}, "contains no arrays"),
    ],
)
@pytest.mark.parametrize("rows", [None, 1])
def test_entries_that_are_refused(archive, entries, words, rows):
    with pytest.raises(DataError, match=words):
        read_npz(archive(entries), rows=rows)


def test_object_arrays_are_refused_before_they_are_unpickled(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([{"any": "thing"}], dtype=object))
    with pytest.raises(DataError, match="dtype object, which is not supported; store numbers or strings"):
        read_npz(path)


def test_a_zip_bomb_is_refused_by_its_announced_size(archive):
    bomb = archive({"x.npy": npy(bytes(10**7), descr="|u1", shape="(10000000,)")})
    assert bomb.stat().st_size < 20_000
    with pytest.raises(DataError, match="more than 1000000; split the data set"):
        read_npz(bomb, max_bytes=10**6)


def test_a_zip_bomb_within_one_row_is_refused(archive):
    bomb = archive({"x.npy": npy(bytes(10**6), descr="|u1", shape="(1, 1000000)")})
    with pytest.raises(DataError, match="exceeds the remaining limit of 1000 bytes"):
        read_npz(bomb, rows=1, max_bytes=1000)


def test_rows_of_all_arrays_share_one_limit(archive):
    content = npy(bytes(600), descr="|u1", shape="(600,)")
    split = archive({"a.npy": content, "b.npy": content})
    assert len(read_npz(split, rows=500, max_bytes=1000)["b"]) == 500
    with pytest.raises(DataError, match="'b' exceeds the remaining limit of 400 bytes"):
        read_npz(split, rows=600, max_bytes=1000)


def test_an_entry_that_ends_early_is_refused(archive):
    # The entry's size includes the header, so a missing element is found only when the values are read.
    with pytest.raises(DataError, match="array 'x' is truncated"):
        read_npz(archive({"x.npy": npy(bytes(64), shape="(9,)")}))


def test_too_many_entries_are_refused(archive, monkeypatch):
    monkeypatch.setattr(arrays_module, "MAX_ENTRIES", 3)
    with pytest.raises(DataError, match="contains 4 arrays; store at most 3"):
        read_npz(archive({f"{k}.npy": npy(DATA) for k in range(4)}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_stream_is_refused(archive, compression):
    noise = np.random.default_rng(0).bytes(4000)
    path = archive({"x.npy": npy(noise, descr="|u1", shape="(4000,)")}, compression)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(range(60, 120))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_npz(path)


def test_an_encrypted_entry_is_refused(archive):
    path = archive({"x.npy": npy(DATA)})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        read_npz(path)


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.99])
def test_a_truncated_archive_is_refused(archive, keep):
    path = archive({"x.npy": npy(bytes(1600), shape="(200,)")})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(DataError, match="not a readable"):
        read_npz(path)


def archive_bytes():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(300.0).reshape(100, 3), labels=np.arange(100))
    return buffer.getvalue()


WHOLE = archive_bytes()


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_changed_bytes_raise_a_data_error_or_nothing(tmp_path_factory, flips, rows, spread):
    content = bytearray(WHOLE)
    for position, value in flips:
        content[position] = value
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    path.write_bytes(content)
    try:
        read = read_npz(path, rows=rows, spread=spread)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (both are correct: the file is read, or refused in one line)
    else:
        assert all(isinstance(array, np.ndarray) for array in read.values())


def streamed(path, rows=7, names=None):
    """All arrays, concatenated from blocks."""
    found = open_rows(path)
    names = list(found.specs) if names is None else names
    blocks = list(found.blocks(names, rows))
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


@pytest.mark.parametrize("rows", [1, 7, 20, 100])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_blocks_are_the_rows_in_order(archive, compression, rows):
    whole = mixed_arrays()
    found = open_rows(archive(entries_of(whole), compression))
    for _ in range(2):  # a second pass yields the same
        blocks = list(found.blocks(list(whole), rows))
        assert [len(block["x"]) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), array)
            assert all(block[name].dtype.isnative for block in blocks)
    assert {name: (spec.dtype.isnative, spec.shape) for name, spec in found.specs.items()} == {
        name: (True, array.shape) for name, array in whole.items()
    }


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"x.npy": npy(DATA, descr="|O")}, "dtype object, which is not supported"),
        ({"x.npy": npy(DATA, shape="(1000000000000000, 8)")}, "shorter than its header states"),
        ({"x.npy": npy(DATA, shape="(-1,)")}, r"has a negative size: shape \[-1\]"),
        ({"x.npy": npy(DATA, version=3)}, r"has .npy version \(3, 0\)"),
        ({"x.npy": npy(bytes(64), shape="(9,)")}, "array 'x' is truncated"),
        ({"x.npy": npy(descr="|S0")}, "not a readable"),
        ({"x.npy": b""}, "not a readable"),
        ({"x.npy": npy(np.zeros(1).tobytes(), shape="()")}, "not a readable"),
        ({"x.npy": npy(DATA), "readme.txt": b"hello"}, "contains 'readme.txt', which is not an array"),
        ({}, "contains no arrays"),
    ],
)
def test_entries_that_are_not_streamed(archive, entries, words):
    with pytest.raises(DataError, match=words):
        streamed(archive(entries))


def test_a_zip_bomb_is_not_streamed(archive):
    bomb = archive({"x.npy": npy(bytes(10**7), descr="|u1", shape="(10000000,)")})
    with pytest.raises(DataError, match="more than 1000000; split the data set"):
        open_rows(bomb, max_bytes=10**6)


def test_a_missing_archive_is_not_streamed(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        open_rows(tmp_path / "none.npz")


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_in_a_stream_raise_a_data_error_or_nothing(tmp_path_factory, flips):
    content = bytearray(WHOLE)
    for position, value in flips:
        content[position] = value
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    path.write_bytes(content)
    try:
        streamed(path, rows=30, names=["x"])
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (both are correct: the file is read, or refused in one line)


def test_a_missing_archive(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: there is no such file; check the path"):
        read_npz(tmp_path / "none.npz")


def test_object_arrays_are_not_written(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(path, {"x": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_an_archive_does_not_replace_a_folder(tmp_path):
    with pytest.raises(StorageError, match="not a regular file"):
        write_npz(tmp_path, {"x": np.zeros(3)})
