"""JSON Lines: the reader of files with one record a line.

It replaces the one of ``datasets``, which turns date-like texts into timestamps, loses integers
beyond 2**53, fails on a lone surrogate, and names no line in its errors. pyarrow parses the blocks
that it reads as ``json.loads`` would; ``json.loads`` itself reads all others.
"""

from __future__ import annotations

import codecs
import gzip
import logging
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ja_instruct.errors import InputError
from ja_instruct.tables.json_records import (
    BAD_RECORD,
    BAD_RECORD_TYPE,
    BadRecordError,
    bad_record,
    make_decoder,
    parse_record,
    replace_surrogates,
)
from ja_instruct.tables.json_types import (
    JSONText,
    JSONType,
    Strict,
    TypeClashError,
    build_columns,
    holds,
    to_arrow,
    widen,
)
from ja_instruct.tables.plain_json import parse_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

logger = logging.getLogger(__name__)

# The first block sets the types of the columns and is parsed record by record, so it is small.
FIRST_BLOCK_BYTES = 2**16
# 1 MiB stays in the processor's cache: 4 MiB took a tenth longer
BLOCK_BYTES = 2**20
BLOCKS_AHEAD = 2
LINE_BYTES_MAX = 2**28
GZIP_SUFFIX = ".gz"

# The columns of conversations, and of pairs and tasks, that are read; the others, and other keys of
# turns, may hold anything.
TURNS: Strict = {"conversations": {"role": {}, "content": {}}}
TEXT_COLUMNS = frozenset({"input", "output", "instruction", "response", "prompt", "text"})
PAIRS_AND_TASKS: Strict = {"task_id": {}, **{name: {} for name in sorted(TEXT_COLUMNS)}}


def open_lines(path: Path) -> BinaryIO:
    """Open a file of JSON Lines for reading; ``.gz`` is decompressed."""
    return cast("BinaryIO", gzip.open(path)) if path.suffix == GZIP_SUFFIX else path.open("rb")


def read_tables(
    file: BinaryIO,
    name: str,
    *,
    declared: Mapping[str, JSONType] | None = None,
    strict: Strict = None,
    tolerant: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pa.Table]:
    r"""Yield the records of a file, in order, as Arrow tables, in bounded memory.

    The rows are the results of ``json.loads`` for each line, null where a record lacks a key. Lines
    are split at ``\n`` alone, because Japanese texts contain U+2028; blank ones are skipped. A
    column gets the type of its first value; later tables may widen it
    (``ja_instruct.tables.json_types.widen``), to JSON text where nothing else holds its values, so
    ``ja_instruct.tables.arrow.collect`` can join them.

    A bad record is a line that is not UTF-8, is not a JSON object, or has a value of another type
    in a strict column. A lone surrogate (``"\ud83d"``), which Arrow cannot store, becomes the
    noncharacter U+FDD0, as does U+0000 in a key; NaN and the infinities, which JSON does not have,
    become null. Warnings give the number of such records.

    Args:
        file: Opened for reading bytes.
        name: The file's name in messages.
        declared: Types that columns have from the start.
        strict: The columns, and the keys in them, that must keep their type; by default ``TURNS``,
            or ``PAIRS_AND_TASKS`` if the first record has no conversation.
        tolerant: Return a bad record as a row that has only the column ``bad_record``, an object
            of ``source`` (the name), ``line`` (from 1), ``error`` and ``text`` (the line's first
            200 characters). Tables without a bad record do not have that column.
        block_bytes: Bytes to read at a time.

    Yields:
        One table for each block, with the columns in their order of appearance.

    Raises:
        InputError: A bad record (file, line and column are named) unless ``tolerant``; a truncated
            or invalid gzip file; a line longer than 256 MiB; a column named ``bad_record`` if
            ``tolerant``.
    """
    reader = _Reader(name, declared or {}, strict, tolerant)
    waiting: deque[tuple[bytes, Future[pa.Table | None]]] = deque()
    with ThreadPoolExecutor(BLOCKS_AHEAD) as pool:
        for block in _blocks(file, name, block_bytes):
            waiting.append((block, pool.submit(parse_plain, block, reader.types)))
            # reading ahead needs the types
            if len(waiting) > BLOCKS_AHEAD or not reader.types:
                yield from reader.read(*waiting.popleft())
        while waiting:
            yield from reader.read(*waiting.popleft())
    for count, what in (
        (reader.repaired, "a lone surrogate, which is not text; U+FDD0"),
        (reader.not_finite, "NaN or an infinity, which is not JSON; null"),
    ):
        if count:
            logger.warning("%s: %d record(s) contain %s replaces it", name, count, what)


def read_records(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """Yield the records one by one, with any types; slow, without Arrow.

    Raises:
        InputError: Names the file and line of the first record that is not a JSON object.
    """
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield parse_record(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except BadRecordError as error:
                raise InputError(f"{name}:{number}: {error}") from error


def _blocks(file: BinaryIO, name: str, block_bytes: int) -> Iterator[bytes]:
    """Yield whole lines, about ``block_bytes`` at a time."""
    size = min(FIRST_BLOCK_BYTES, block_bytes)
    prefix = codecs.BOM_UTF8
    try:
        while block := file.read(size):
            if not block.endswith(b"\n"):
                rest = file.readline(LINE_BYTES_MAX)
                if len(rest) == LINE_BYTES_MAX and not rest.endswith(b"\n"):
                    raise InputError(
                        f"{name}: a line is longer than {LINE_BYTES_MAX >> 20} MiB; every line "
                        f"must hold one record, such as {{'input': '…', 'output': '…'}}"
                    )
                block += rest
            yield block.removeprefix(prefix)
            size, prefix = block_bytes, b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{name}: truncated or invalid gzip file ({error}); re-create or re-copy it"
        ) from error


class _Reader:
    """The state of reading one file: column types, line number, repaired records."""

    def __init__(
        self, name: str, declared: Mapping[str, JSONType], strict: Strict, tolerant: bool
    ) -> None:
        self.repaired = 0
        self.not_finite = 0
        self.types: dict[str, JSONType] = {}
        self._name = name
        self._declared = declared
        self._strict = strict
        self._tolerant = tolerant
        self._replaced: list[str] = []
        self._decoder = make_decoder(self._replaced)
        self._next_line = 1

    def read(self, block: bytes, parsed: Future[pa.Table | None]) -> Iterator[pa.Table]:
        """Yield the table of a block of whole lines, unless it has no records.

        Args:
            block: The block that follows the previous one.
            parsed: The result of ``parse_plain``; the types may have widened since.
        """
        # values of a column that has become JSON text are kept as the line has them
        table = None if holds(self.types, JSONText) else parsed.result()
        if table is None:
            table = self._read_lines(block)
        else:
            self._next_line += int(table.num_rows)
        if table.num_rows:
            yield table

    def _read_lines(self, block: bytes) -> pa.Table:
        import pyarrow as pa

        rows: list[dict[str, Any] | None] = []
        faults: list[dict[str, Any] | None] = []
        lines = block.split(b"\n")
        for number, line in enumerate(lines, start=self._next_line):
            if not line.strip():
                continue
            try:
                rows.append(self._fit(line))
                faults.append(None)
            except BadRecordError as error:
                if not self._tolerant:
                    raise InputError(f"{self._name}:{number}: {error}") from error
                rows.append(None)
                faults.append(bad_record(self._name, number, str(error), line))
        self._next_line += len(lines) - (not lines[-1])
        schema = pa.schema(to_arrow(self.types))
        columns = build_columns(rows, self.types)
        if any(faults):
            schema = schema.append(pa.field(BAD_RECORD, to_arrow(BAD_RECORD_TYPE)))
            columns.append(pa.array(faults, type=schema.field(BAD_RECORD).type))
        return pa.table(columns, schema=schema)

    def _fit(self, line: bytes) -> dict[str, Any]:
        """Return the line's record after widening the types by it."""
        self._replaced.clear()
        record = parse_record(line, self._decoder)
        self.not_finite += bool(self._replaced)
        if b"\\u" in line:
            repaired = replace_surrogates(record)
            self.repaired += repaired != record
            record = repaired
        if self._tolerant and BAD_RECORD in record:
            raise InputError(
                f"{self._name}: has a column '{BAD_RECORD}', the name of the column for bad "
                f"records; rename it in the file"
            )
        if self._strict is None:
            self._strict = TURNS if "conversations" in record else PAIRS_AND_TASKS
        known = self.types
        if not record.keys() <= known.keys():
            new = {key: self._declared.get(key) for key in record if key not in known}
            known = {**known, **new}
        try:
            self.types = cast("dict[str, JSONType]", widen(known, record, self._strict))
        except TypeClashError as clash:
            raise BadRecordError(
                f"a value of another type: '{clash.path[1:]}' is {clash}; "
                f"give every record the expected type there"
            ) from clash
        return record
