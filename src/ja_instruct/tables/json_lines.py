"""JSON Lines: the one reader of files with a record a line."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import re
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ja_instruct.errors import InputError
from ja_instruct.tables.json_blocks import parse_plain
from ja_instruct.tables.json_types import JSONType, TypeClashError, to_arrow, widen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

logger = logging.getLogger(__name__)

# The types of the columns are learnt from the first block, record by record, so it is small.
FIRST_BLOCK_BYTES = 2**16
# 1 MiB stays in the processor's cache: 4 MiB took a tenth longer
BLOCK_BYTES = 2**20
BLOCKS_AHEAD = 2
LINE_BYTES_MAX = 2**28
GZIP_SUFFIX = ".gz"

BAD_RECORD = "bad_record"
BAD_RECORD_TYPE: dict[str, JSONType] = {"source": str, "line": int, "error": str, "text": str}
BAD_RECORD_CHARS = 200

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# CLD2 refuses a text with a noncharacter as it would refuse one with the surrogate itself
SURROGATE_STAND_IN = "\ufdd0"


class BadRecordError(ValueError):
    """A line that is no record; the text says why."""


def open_lines(path: Path) -> BinaryIO:
    """Open a file of JSON Lines for reading; ``.gz`` is decompressed."""
    return cast("BinaryIO", gzip.open(path)) if path.suffix == GZIP_SUFFIX else path.open("rb")


def read_tables(
    file: BinaryIO,
    name: str,
    *,
    declared: Mapping[str, JSONType] | None = None,
    tolerant: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pa.Table]:
    r"""Yield the records of a file, in order, as Arrow tables, in bounded memory.

    The rows are what ``json.loads`` makes of each line, null where a record lacks a key. Lines are
    split on ``\n`` alone, as Japanese texts hold U+2028; blank ones are skipped. A column gets the
    type of its first value; later tables may widen it (``ja_instruct.tables.json_types.widen``), so
    ``ja_instruct.tables.arrow.collect`` can join them.

    A bad record is a line that is not UTF-8, no JSON object, or has a value of another type than
    its column. Half a surrogate pair (``"\ud83d"`` alone), which is no text and which Arrow cannot
    hold, becomes the noncharacter U+FDD0; a warning tells how many records had one.

    Args:
        file: Open for reading bytes.
        name: Its name in messages.
        declared: Types that columns have from the start, whatever their first value is.
        tolerant: Make a bad record a row that holds nothing but the column ``bad_record``, an
            object of ``source`` (the name), ``line`` (from 1), ``error`` and ``text`` (the line's
            first 200 characters). Tables without a bad record have no such column.
        block_bytes: How much is read at a time.

    Yields:
        One table a block, with the columns in the order in which they first appeared.

    Raises:
        InputError: A bad record (file, line and column are named) unless ``tolerant``; a file that
            is no whole gzip file or has a line beyond 256 MiB; a column named ``bad_record`` where
            ``tolerant``.
    """
    reader = _Reader(name, declared or {}, tolerant)
    waiting: deque[tuple[bytes, Future[pa.Table | None]]] = deque()
    with ThreadPoolExecutor(BLOCKS_AHEAD) as pool:
        for block in _blocks(file, name, block_bytes):
            waiting.append((block, pool.submit(parse_plain, block, reader.types)))
            # nothing can be read ahead before there are types
            if len(waiting) > BLOCKS_AHEAD or not reader.types:
                yield from reader.read(*waiting.popleft())
        while waiting:
            yield from reader.read(*waiting.popleft())
    if reader.repaired:
        logger.warning(
            "%s: %d record(s) hold half a surrogate pair, which is no text; U+FDD0 stands for it",
            name,
            reader.repaired,
        )


def read_records(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """Yield the records one by one, whatever their types; the slow way, which needs no Arrow.

    Raises:
        InputError: Names the file and line of the first record that is no JSON object.
    """
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield parse_record(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except BadRecordError as error:
                raise InputError(f"{name}:{number}: {error}") from error


def parse_record(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        BadRecordError: It is not UTF-8, not JSON, or no object.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError(
            f"not UTF-8 ({error.reason} at byte {error.start}); convert the file, for example "
            f"with 'iconv -t UTF-8'"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRecordError(
            f"not JSON ({error.msg} at column {error.colno}); every line must hold one JSON object"
        ) from error
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise BadRecordError(f"JSON that cannot be read ({error}); remove it") from error
    if not isinstance(record, dict):
        raise BadRecordError(
            f"a {type(record).__name__} where a JSON object is expected, such as "
            f"{{'input': '…', 'output': '…'}}"
        )
    return record


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
        raise InputError(f"{name}: no whole gzip file ({error}); make or copy it anew") from error


class _Reader:
    """What reading a file has learnt so far."""

    def __init__(self, name: str, declared: Mapping[str, JSONType], tolerant: bool) -> None:
        self.repaired = 0
        self._name = name
        self._declared = declared
        self._tolerant = tolerant
        self.types: dict[str, JSONType] = {}
        self._next_line = 1

    def read(self, block: bytes, parsed: Future[pa.Table | None]) -> Iterator[pa.Table]:
        """Yield the records of a block of whole lines; a table unless there are none.

        Args:
            block: Comes behind the one before it.
            parsed: From ``parse_plain`` with the types of then or of some blocks before.
        """
        table = parsed.result()
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
        columns = pa.array(rows, type=pa.struct(schema)).flatten()
        if any(faults):
            schema = schema.append(pa.field(BAD_RECORD, to_arrow(BAD_RECORD_TYPE)))
            columns.append(pa.array(faults, type=schema.field(BAD_RECORD).type))
        return pa.table(columns, schema=schema)

    def _fit(self, line: bytes) -> dict[str, Any]:
        """Return the line's record, having widened the types by it."""
        record = parse_record(line)
        if b"\\u" in line:
            if _has_nul_key(record):
                raise BadRecordError("a key with the character U+0000, which ends a column's name")
            repaired = replace_surrogates(record)
            self.repaired += repaired != record
            record = repaired
        if self._tolerant and BAD_RECORD in record:
            raise InputError(
                f"{self._name}: has a column '{BAD_RECORD}', which is where bad records are put; "
                f"rename it in the file"
            )
        known = self.types
        if not record.keys() <= known.keys():
            new = {key: self._declared.get(key) for key in record if key not in known}
            known = {**known, **new}
        try:
            self.types = cast("dict[str, JSONType]", widen(known, record))
        except TypeClashError as clash:
            raise BadRecordError(
                f"the records disagree on the type of a column: '{clash.path[1:]}' is {clash}; "
                f"give every record the same type there"
            ) from clash
        return record


def _has_nul_key(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in key or _has_nul_key(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul_key, value))


def bad_record(source: str, line: int, error: str, raw: bytes) -> dict[str, Any]:
    """Return the value of the column ``bad_record``."""
    # four bytes are the longest character
    text = raw[: 4 * BAD_RECORD_CHARS].decode("utf-8", errors="replace").strip()
    return {"source": source, "line": line, "error": error, "text": text[:BAD_RECORD_CHARS]}


def replace_surrogates(value: Any) -> Any:
    """Return a JSON value with U+FDD0 for every surrogate, which is half a character."""
    if isinstance(value, str):
        return LONE_SURROGATE.sub(SURROGATE_STAND_IN, value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value
