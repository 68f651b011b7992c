"""Batches of texts as arrays, and mapping in threads."""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from filter_pairs import make_pairs
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering import batches as module
from ja_instruct.pipelines.data_filtering.batches import Texts, iterate_batches, map_in_threads

any_texts = st.lists(st.text(st.sampled_from("aあ𠮷語\u2028\x00é"), max_size=4), max_size=6)


@given(any_texts, st.integers(0, 6), st.sampled_from([pa.string(), pa.large_string()]))
def test_arrays_match_the_texts(texts: list[str], skipped: int, kind: pa.DataType) -> None:
    wrapped = Texts.from_arrow(pa.array(texts, kind).slice(skipped))
    texts = texts[skipped:]
    assert bytes(wrapped.data) == "".join(texts).encode()
    assert wrapped.characters.tolist() == [ord(character) for character in "".join(texts)]
    assert wrapped.lengths.tolist() == [len(text) for text in texts]
    every = np.arange(len(texts))
    assert wrapped.encoded(every) == [text.encode() for text in texts]
    assert wrapped.encoded(every[1::2]) == [text.encode() for text in texts[1::2]]


def test_batches_cover_all_pairs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 3)
    pairs = make_pairs(*[(f"問{row}", f"答{row}") for row in range(8)], id=list(range(8)))
    picked = [0, 1, 5, 6, 7, 2, 3]
    for data, rows in ((pairs, list(range(8))), (pairs.select(picked), picked)):
        batches = list(iterate_batches(data))
        assert [batch.start for batch in batches] == [0, 3, 6]
        assert sum(map(len, batches)) == len(rows)
        for field, name in enumerate("問答"):
            texts = [text for batch in batches for text in batch.fields[field].array.to_pylist()]
            assert texts == [f"{name}{row}" for row in rows]
    assert list(iterate_batches(pairs.select([]))) == []


def test_threads_keep_the_order_and_read_few_items_ahead() -> None:
    taken = 0

    def count() -> object:
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    def slow_for_even(item: int) -> int:
        time.sleep(0.002 * (item % 2 == 0))
        return item * item

    results = map_in_threads(slow_for_even, count())
    assert next(results) == 0
    assert taken < 100
    assert list(results) == [item * item for item in range(1, 100)]


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("三")
        return item

    results = map_in_threads(fail, range(50))
    with pytest.raises(ValueError, match="三"):
        list(results)
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("ThreadPool") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
