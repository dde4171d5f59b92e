"""The store of finished steps: an entry is complete or does not exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.caching.cache import Cache, content_key
from exporter.results import ReestimateResult

KEY = content_key({"a": 1})


RESULT = ReestimateResult(norms=1, largest_shift=0.5, accuracy_before=0.5, evaluation_accuracy=0.75)


def find(cache, key=KEY):
    return cache.find(key, "reestimate")


def fill(cache, key=KEY, content="x"):
    def write(folder):
        (folder / "file").write_text(content)
        return RESULT

    stored = cache.store(key, "step", write)
    assert find(cache, key) == stored
    return stored


def test_a_stored_entry_is_found(tmp_path):
    entry = fill(Cache(tmp_path))
    assert (entry.key, entry.result) == (KEY, RESULT)
    assert entry.folder == tmp_path / KEY[:2] / KEY
    assert (entry.folder / "file").read_text() == "x"


def test_a_missing_entry_is_none(tmp_path):
    assert find(Cache(tmp_path)) is None


def test_a_failure_stores_nothing(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(FileNotFoundError):
        cache.store(KEY, "step", lambda folder: (folder / "absent" / "file").write_text("half"))
    assert find(cache) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_later_entry_replaces_an_earlier_one(tmp_path):
    cache = Cache(tmp_path)
    fill(cache, content="old")
    assert (fill(cache, content="new").folder / "file").read_text() == "new"


@pytest.mark.parametrize("kind", ["finetune", "no such kind"])
def test_an_entry_with_a_result_of_another_kind_is_none(tmp_path, kind):
    cache = Cache(tmp_path)
    fill(cache)
    assert cache.find(KEY, kind) is None


def test_sweep_removes_leftovers_and_keeps_entries(tmp_path):
    cache = Cache(tmp_path)
    entry = fill(cache)
    (tmp_path / ".tmp-1").mkdir()
    (entry.folder.parent / ".tmp-2").mkdir()
    (entry.folder.parent / ".tmp-2" / "half").write_text("x")
    cache.sweep()
    assert not list(tmp_path.rglob(".tmp-*"))
    assert find(cache) == entry


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_keys_do_not_depend_on_the_order(content):
    turned = dict(reversed(content.items()))
    assert content_key(content) == content_key(turned)
    assert len(content_key(content)) == 64


@given(st.dictionaries(st.text(), values, max_size=4), values)
def test_every_ingredient_changes_the_key(content, value):
    changed = {**content, "one more": value}
    if content != changed:
        assert content_key(content) != content_key(changed)


def test_values_that_json_cannot_represent_are_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key({"a": float("inf")})


def test_an_entry_with_a_too_deeply_nested_record_is_none(tmp_path):
    entry = fill(Cache(tmp_path))
    (entry.folder / "entry.json").write_text("[" * 100_000)
    assert find(Cache(tmp_path)) is None
