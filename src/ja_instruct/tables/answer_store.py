"""Answers on the disk as they are made, so that a run that dies loses none that was finished."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from ja_instruct.tables.json_lines import BadRecordError, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)


class AnswerStore:
    """An append-only file of JSON lines, ``{"key": …, "answer": {…}}``, and what it held at first.

    It is the one thing that a node of ``inference`` writes itself: a node's outputs are saved when
    it is done, which is too late for what took hours.

    Attributes:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        A line that cannot be read, as a process leaves that is killed while it writes, is passed
        over with a warning: its answer is made again.
        """
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self._read()

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer of ``key``; None where there is none."""
        return self._answers.get(key)

    def append(self, key: str, answer: Mapping[str, Any]) -> None:
        """Add an answer; when this returns, it is on the disk.

        Several processes may append to the same file, each whole lines.

        Args:
            key: What the answer follows from.
            answer: What JSON can hold.

        Raises:
            OSError: It cannot be written, for want of space for example.
        """
        record = {"key": key, "answer": dict(answer)}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # the torn line of a process that was killed would swallow this one
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            self._sync_directory()
        self._answers[key] = record["answer"]  # type: ignore[assignment]

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        torn = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = parse_record(line)
                    key, answer = record["key"], record["answer"]
                except (BadRecordError, KeyError):
                    torn.append(number)
                    continue
                if isinstance(key, str) and isinstance(answer, dict):
                    self._answers[key] = answer
                else:
                    torn.append(number)
        if torn:
            logger.warning(
                "%s: passing over line(s) %s, which a run that was killed may have left; their "
                "answers are made again",
                self.path,
                ", ".join(map(str, torn[:10])) + (", …" if len(torn) > 10 else ""),
            )
