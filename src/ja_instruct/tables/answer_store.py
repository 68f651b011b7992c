"""Answers are stored as they are generated, so that a killed run loses none."""

from __future__ import annotations

import codecs
import fcntl
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from ja_instruct.disk_errors import writing
from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import sync
from ja_instruct.tables.json_records import BadRecordError, parse_record
from ja_instruct.tables.json_text import portable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

# of every line: what a process that is killed while it writes its first answer leaves
_BEGINNING = b'{"key": "'
_REMEDY = (
    "restore the file, or move it away: the answers that are not in the store are generated again"
)


class AnswerStore:
    """An append-only JSON Lines file of records ``{"key": …, "answer": {…}}``, held in memory too.

    The nodes of ``inference`` append to it themselves: Kedro saves a node's outputs when it ends,
    which is too late for hours of work.

    Attributes:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Read the file if it exists.

        A line that cannot be parsed, left by a process that was killed while it wrote, is skipped
        with a warning: its answer is generated again.

        Raises:
            InputError: The file cannot be read, or none of its lines is an answer.
        """
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self._read()
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer of ``key``, or None."""
        return self._answers.get(key)

    def append(self, key: str, answer: Mapping[str, Any]) -> None:
        """Add an answer and flush it to the disk.

        Several processes may append to the same file.

        Args:
            key: See ``answer_keys``.
            answer: Serializable as JSON.

        Raises:
            InputError: The disk is full, or the file cannot be written to.
        """
        record = {"key": key, "answer": dict(answer)}
        line = json.dumps(portable(record), ensure_ascii=False, allow_nan=False)
        with writing(self.path):
            self._append(line.encode("utf-8", "backslashreplace") + b"\n")
        self._answers[key] = record["answer"]  # type: ignore[assignment]

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                # an incomplete last line, of a killed process, must not swallow this one
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        if is_new:
            sync(self.path.parent)

    def _read(self) -> None:
        torn, fault, first = [], "", b""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                first = first or line.removeprefix(codecs.BOM_UTF8)
                try:
                    record = parse_record(first if number == 1 else line)
                    key, answer = record["key"], record["answer"]
                    if not isinstance(key, str) or not isinstance(answer, dict):
                        raise BadRecordError("'key' is not text, or 'answer' is not an object")
                except (BadRecordError, KeyError) as error:
                    torn.append(number)
                    fault = fault or str(error)
                else:
                    self._answers[key] = answer
        is_beginning = len(torn) == 1 and first.startswith(_BEGINNING[: len(first)])
        if torn and not self._answers and not is_beginning:
            raise InputError(
                f"{self.path}: none of {len(torn)} line(s) is an answer (line {torn[0]}: {fault}); "
                f"{_REMEDY}"
            )
        if torn:
            logger.warning(
                "%s: skipping line(s) %s, which a killed run may have left incomplete (line %d: "
                "%s); their answers are generated again",
                self.path,
                ", ".join(map(str, torn[:10])) + (", …" if len(torn) > 10 else ""),
                torn[0],
                fault,
            )
