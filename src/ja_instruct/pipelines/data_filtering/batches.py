"""Batches of pairs as arrays, on which the rules work."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset

Item = TypeVar("Item")
Result = TypeVar("Result")

FIELDS = ("instruction", "response")
HISTORY = "history"
#: The kind of text that a turn is, by its role.
KINDS = {"user": "instruction", "assistant": "response", "system": "system"}

#: A batch of the recipe's data is about 1.4 MB: small enough for the processor's cache and for two
#: threads to share 11,000 pairs evenly, large enough to make the cost of calls into Arrow and NumPy
#: negligible.
ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Texts:
    """One field of a batch: texts that are adjacent in one buffer.

    Attributes:
        array: The texts, without nulls.
        data: Their UTF-8 bytes.
        offsets: The start of each text in ``data``, and the end of the last, shape (texts + 1,).
    """

    array: pa.StringArray
    data: memoryview
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_arrow(cls, array: pa.StringArray) -> Texts:
        """Wrap an Arrow array without copying its texts."""
        offsets_dtype = np.int64 if str(array.type) == "large_string" else np.int32
        _, offsets_buffer, data = array.buffers()
        if offsets_buffer is None or not len(array):
            return cls(array, memoryview(b""), np.zeros(len(array) + 1, np.int64))
        offsets = np.frombuffer(offsets_buffer, offsets_dtype)
        offsets = offsets[array.offset : array.offset + len(array) + 1].astype(np.int64)
        texts = memoryview(data if data is not None else b"").cast("B")[offsets[0] : offsets[-1]]
        return cls(array, texts, offsets - offsets[0])

    @cached_property
    def characters(self) -> npt.NDArray[np.uint32]:
        """The code points of all texts, one after another, shape (characters,)."""
        return np.frombuffer(str(self.data, "utf-8").encode("utf-32-le"), np.uint32)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of each text in characters, shape (texts,)."""
        import pyarrow.compute as pc

        lengths: npt.NDArray[Any] = pc.utf8_length(self.array).to_numpy(zero_copy_only=False)
        return lengths.astype(np.int64)

    def rows_at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of the text that contains each byte of ``data``."""
        return np.searchsorted(self.offsets, places, side="right") - 1

    def encoded(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Return the texts with these indices in UTF-8."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        return [bytes(self.data[start:end]) for start, end in zip(starts, ends, strict=True)]


class History(NamedTuple):
    """The turns before consecutive pairs.

    Attributes:
        contents: Their texts.
        roles: Their roles, shape (turns,).
        offsets: The first turn of each pair, and the end of the last, shape (pairs + 1,).
    """

    contents: Texts
    roles: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """The pair of each turn, shape (turns,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def join(self) -> list[str]:
        """Return the user's and assistant's texts of each pair, a line each."""
        turns = list(map(as_line, self.roles, self.contents.array.to_pylist()))
        return ["".join(turns[start:end]) for start, end in pairwise(self.offsets.tolist())]


def as_line(role: str, text: str) -> str:
    """Return the line of a turn in what duplicates are compared by: none of a system turn."""
    return f"{text}\n" if role != "system" else ""


class Part(NamedTuple):
    """Some of the texts of a batch.

    Attributes:
        place: Where they are: ``instruction``, ``response`` or ``history``.
        kind: What they are: ``instruction``, ``response`` or ``system``.
        texts: The texts.
        rows: The row of the pair of each, shape (texts,).
    """

    place: str
    kind: str
    texts: Texts
    rows: npt.NDArray[np.int64]


class PairBatch(NamedTuple):
    """The texts of consecutive pairs, of which ``start`` is the first row."""

    start: int
    instruction: Texts
    response: Texts
    history: History | None = None

    @property
    def fields(self) -> tuple[Texts, Texts]:
        """Instruction and response, in the order of ``FIELDS``."""
        return self.instruction, self.response

    @property
    def parts(self) -> list[Part]:
        """All texts: the instructions, the responses, and the turns of the history by kind."""
        import pyarrow as pa

        rows = np.arange(self.start, self.start + len(self))
        parts = [
            Part(name, name, texts, rows) for name, texts in zip(FIELDS, self.fields, strict=True)
        ]
        if self.history is not None:
            contents, roles, _ = self.history
            owners = self.history.owners
            for role, kind in KINDS.items():
                mask = roles == role
                texts = Texts.from_arrow(contents.array.filter(pa.array(mask)))
                parts.append(Part(HISTORY, kind, texts, rows[owners[mask]]))
        return parts

    def compared(self) -> tuple[list[str], list[str]]:
        """Return both fields of each pair, the instruction after the history, for comparison.

        System turns are left out: one that many conversations share would make them alike.
        """
        instructions, responses = (texts.array.to_pylist() for texts in self.fields)
        if self.history is not None:
            instructions = list(map(add, self.history.join(), instructions))
        return instructions, responses

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.instruction.array)


def iterate_batches(pairs: Dataset) -> Iterator[PairBatch]:
    """Yield all pairs, ``ROWS_PER_BATCH`` at a time."""
    from ja_instruct.tables.arrow import iterate_tables

    names = filtered_columns(pairs.column_names)
    start = 0
    for table in iterate_tables(pairs, columns=names, rows=ROWS_PER_BATCH):
        columns = {name: as_one_array(table.column(name)) for name in names}
        history = _as_history(columns[HISTORY]) if HISTORY in columns else None
        instructions, responses = (Texts.from_arrow(columns[field]) for field in FIELDS)
        yield PairBatch(start, instructions, responses, history)
        start += len(table)


def filtered_columns(names: Iterable[str]) -> list[str]:
    """Return the columns whose texts are filtered."""
    return [*FIELDS, *([HISTORY] if HISTORY in names else [])]


def _as_history(lists: pa.ListArray) -> History:
    turns = lists.flatten()
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    roles = turns.field("role").to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return History(Texts.from_arrow(turns.field("content")), roles, offsets)


def as_one_array(column: pa.ChunkedArray) -> Any:
    """Return the values as one array, without a copy if there is a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed in one thread per core.

    Threads run in parallel because Arrow releases the interpreter lock, as does waiting for another
    process. At most two items per core are in progress, which bounds the memory.
    """
    items = iter(items)
    with ThreadPoolExecutor(count_cores()) as pool:
        pending = deque(pool.submit(function, item) for item in islice(items, 2 * count_cores()))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
