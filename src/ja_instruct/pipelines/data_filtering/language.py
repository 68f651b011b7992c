"""The language of both fields, detected by CLD2."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import pycld2

from ja_instruct.pipelines.data_filtering import cld2_process
from ja_instruct.pipelines.data_filtering.batches import count_cores
from ja_instruct.pipelines.data_filtering.violations import Violation, Violations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from ja_instruct.pipelines.data_filtering.batches import PairBatch
    from ja_instruct.pipelines.data_filtering.cld2_process import Detection

    Detect = Callable[[list[bytes], str, int], list[Detection]]

logger = logging.getLogger(__name__)

#: For fewer pairs, starting worker processes takes longer than detecting their languages.
PAIRS_MIN_FOR_PROCESSES = 5000


def find_other_languages(
    batch: PairBatch,
    rows: npt.NDArray[np.int64],
    code: str,
    percent_min: int,
    detect: Detect = cld2_process.detect_all,
) -> Violations:
    """Find the texts in which CLD2 does not detect at least ``percent_min`` % of ``code``.

    The texts are read as HTML, CLD2's default. CLD2 fails on control characters and noncharacters:
    such a pair violates ``language_undetectable`` alone. It detects no language in an empty or very
    short text. As the slowest rule, it checks only the pairs left by the others: ``rows``, indices
    within the batch.
    """
    wanted = rows + batch.start
    texts: list[bytes] = []
    places: list[tuple[int, str]] = []
    for part in batch.parts:
        chosen = np.flatnonzero(np.isin(part.rows, wanted))
        texts += part.texts.encoded(chosen)
        places += [(row, part.place) for row in part.rows[chosen].tolist()]
    found = []
    for (row, place), detection in zip(places, detect(texts, code, percent_min), strict=True):
        if detection is None:
            continue
        if isinstance(detection, str):
            rule, matched = "language_undetectable", detection
        else:
            shares = [f"{name} {percent} %" for name, percent in detection]
            rule, matched = "language", ", ".join(shares) or "none"
        found.append(Violation(row, rule, place, matched))
    failed = {violation.row for violation in found if violation.rule == "language_undetectable"}
    return Violations.from_list(
        violation
        for violation in found
        if violation.rule == "language_undetectable" or violation.row not in failed
    )


@contextlib.contextmanager
def start_detectors(pairs: int) -> Iterator[Detect]:
    """Yield a function that runs CLD2 in one worker process per core.

    In threads of one process, CLD2 would wait for the interpreter lock every ten microseconds. The
    workers are started, not forked, and end with the block or with this process. If a worker dies,
    the caller detects languages in-process. For few ``pairs`` no worker is started.
    """
    if pairs < PAIRS_MIN_FOR_PROCESSES:
        yield cld2_process.detect_all
        return
    processes = [_start_process() for _ in range(count_cores())]
    idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def detect(texts: list[bytes], code: str, percent_min: int) -> list[Detection]:
        process = idle.get()
        detected = None if process is None else _ask(process, (texts, code, percent_min))
        idle.put(None if detected is None else process)
        if detected is None:
            return cld2_process.detect_all(texts, code, percent_min)
        return detected

    try:
        yield detect
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start_process() -> subprocess.Popen[bytes]:
    # -S, because site imports the finders of editable installs, which takes longer than all the
    # rest
    environment = {**os.environ, "PYTHONPATH": str(Path(pycld2.__file__).parent.parent)}
    return subprocess.Popen(  # noqa: S603 - the arguments are this package's own
        [sys.executable, "-P", "-S", cld2_process.__file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # a Ctrl-C in the terminal reaches only this process, which then ends the worker
        start_new_session=True,
    )


def _ask(
    process: subprocess.Popen[bytes], question: tuple[list[bytes], str, int]
) -> list[Detection] | None:
    """Return the worker's answer, or None if the worker has died."""
    try:
        cld2_process.write_frame(cast("IO[bytes]", process.stdin), question)
        answer: list[Detection] = cld2_process.read_frame(cast("IO[bytes]", process.stdout))
    except (OSError, EOFError):
        logger.warning("A language detection worker died; detecting in this process instead")
        return None
    return answer
