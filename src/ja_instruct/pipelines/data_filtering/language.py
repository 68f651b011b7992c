"""The language of both fields, by CLD2."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pycld2

from ja_instruct.pipelines.data_filtering import cld2_process
from ja_instruct.pipelines.data_filtering.batches import count_cores
from ja_instruct.pipelines.data_filtering.violations import Violations, make_violations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from ja_instruct.pipelines.data_filtering.batches import PairBatch

    Detect = Callable[[list[bytes], str, int], list[Any]]

logger = logging.getLogger(__name__)

#: Fewer are asked about in less time than processes take to start.
PAIRS_MIN_FOR_PROCESSES = 5000


def find_other_languages(
    batch: PairBatch,
    rows: npt.NDArray[np.int64],
    code: str,
    percent_min: int,
    detect: Detect = cld2_process.detect_all,
) -> list[Violations]:
    r"""Find the fields that CLD2 does not find to be ``percent_min`` % or more ``code``.

    The texts are read as CLD2 does by default, as HTML. It fails on control characters and
    noncharacters: such a pair, ``language_undetectable``, cannot be judged, whatever its other
    field is. It finds no language in an empty or very short field.

    Args:
        batch: The pairs.
        rows: Which of them to ask CLD2 about, as numbers within the batch: it is asked last, and
            only about what the other rules leave.
        code: CLD2's code of the language.
        percent_min: Least share of that language in each field.
        detect: Asks CLD2, here or in another process.

    >>> from ja_instruct.pipelines.data_filtering.batches import make_batch
    >>> question = "日本の首都はどこですか。"
    >>> answers = ["首都は東京です。", "It is Tokyo, the largest city there.", "東京\x01です。"]
    >>> batch = make_batch([(question, answer) for answer in answers])
    >>> for found in find_other_languages(batch, np.arange(3), "ja", 60):
    ...     for violation in found:
    ...         print(violation.row, violation.rule, violation.field, violation.matched)
    2 language_undetectable response input contains invalid UTF-8 around byte 6 (of 16)
    1 language response en 97 %
    """
    started = time.perf_counter()
    texts = [text for field in batch.fields for text in field.encoded(rows)]
    told = detect(texts, code, percent_min)
    undetectable: list[tuple[int, int, str]] = []
    foreign: list[tuple[int, int, str]] = []
    for place, against in enumerate(told):
        if against is None:
            continue
        field, number = divmod(place, len(rows))
        if isinstance(against, str):
            undetectable.append((int(rows[number]), field, against))
        else:
            shares = ", ".join(f"{name} {percent} %" for name, percent in against)
            foreign.append((int(rows[number]), field, shares or "none"))
    failed = {row for row, _, _ in undetectable}
    foreign = [violation for violation in foreign if violation[0] not in failed]
    seconds = {"language": time.perf_counter() - started}
    return [
        *_gather("language_undetectable", undetectable, batch.start),
        *_gather("language", foreign, batch.start),
        make_violations(np.empty(0, np.int64), "language", 0, [], seconds),
    ]


def _gather(rule: str, found: list[tuple[int, int, str]], start: int) -> list[Violations]:
    parts = []
    for field in (0, 1):
        of_field = [(row, matched) for row, at, matched in found if at == field]
        rows = np.array([row for row, _ in of_field], np.int64) + start
        parts.append(make_violations(rows, rule, field, [matched for _, matched in of_field]))
    return parts


@contextlib.contextmanager
def start_detectors(pairs: int) -> Iterator[Detect]:
    """Yield what asks CLD2 for as many threads as there are cores, each in a process of its own.

    In threads alone CLD2 would wait for the interpreter every ten microseconds. The processes are
    started, not forked, and end with the block, or when this process does. One that dies is done
    without.

    Args:
        pairs: How many there are to ask about; for few no process is started.
    """
    if pairs < PAIRS_MIN_FOR_PROCESSES:
        yield cld2_process.detect_all
        return
    processes = [_start_process() for _ in range(count_cores())]
    idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def detect(texts: list[bytes], code: str, percent_min: int) -> list[Any]:
        process = idle.get()
        told = None if process is None else _ask(process, (texts, code, percent_min))
        idle.put(None if told is None else process)
        return cld2_process.detect_all(texts, code, percent_min) if told is None else told

    try:
        yield detect
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start_process() -> subprocess.Popen[bytes]:
    # without site: what it imports for packages installed in place takes longer than all the rest
    where = {"PYTHONPATH": str(Path(pycld2.__file__).parent.parent)}
    return subprocess.Popen(  # noqa: S603 - a file of this package, and nothing from outside
        [sys.executable, "-P", "-S", cld2_process.__file__],
        env={**os.environ, **where},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C is for this process, whose end is theirs
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[bytes], question: tuple[list[bytes], str, int]) -> Any:
    """Return the answer, None from a process that has died."""
    try:
        cld2_process.write_frame(process.stdin, question)
        return cld2_process.read_frame(process.stdout)
    except (OSError, EOFError):
        logger.warning("A process that asks CLD2 has died; this one asks instead")
        return None
