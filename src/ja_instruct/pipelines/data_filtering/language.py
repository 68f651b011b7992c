"""The language of both sides, by CLD2."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pycld2

from ja_instruct.pipelines.data_filtering.findings import Findings, make_findings

if TYPE_CHECKING:
    import numpy.typing as npt

    from ja_instruct.pipelines.data_filtering.texts import PairBatch


def find_other_languages(
    batch: PairBatch, rows: npt.NDArray[np.int64], code: str, percent_min: int
) -> list[Findings]:
    r"""Find the sides that CLD2 does not find to be ``percent_min`` % or more ``code``.

    The texts are read as CLD2 does by default, as HTML. It fails on control characters and
    noncharacters: such a pair, ``language_undetectable``, cannot be judged, whatever its other
    side is. It finds no language in an empty or very short side.

    Args:
        batch: The pairs.
        rows: Which of them to ask CLD2 about, as numbers within the batch: it is asked last, and
            only about what the other rules leave.
        code: CLD2's code of the language.
        percent_min: Least share of that language in each side.

    >>> from ja_instruct.pipelines.data_filtering.texts import make_batch
    >>> question = "日本の首都はどこですか。"
    >>> answers = ["首都は東京です。", "It is Tokyo, the largest city there.", "東京\x01です。"]
    >>> batch = make_batch([(question, answer) for answer in answers])
    >>> for found in find_other_languages(batch, np.arange(3), "ja", 60):
    ...     for finding in found:
    ...         print(finding.row, finding.rule, finding.side, finding.matched)
    2 language_undetectable response input contains invalid UTF-8 around byte 6 (of 16)
    1 language response en 97 %
    """
    started = time.perf_counter()
    undetectable: list[tuple[int, int, str]] = []
    foreign: list[tuple[int, int, str]] = []
    for side, texts in enumerate(batch.sides):
        for row, found in zip(rows.tolist(), _detect(texts.encoded(rows)), strict=True):
            if isinstance(found, str):
                undetectable.append((row, side, found))
                continue
            languages = found[2]
            # nearly always the first
            if languages[0][1] == code and languages[0][2] >= percent_min:
                continue
            if not any(name == code and share >= percent_min for _, name, share, _ in languages):
                shares = [f"{name} {share} %" for _, name, share, _ in languages if share]
                foreign.append((row, side, ", ".join(shares) or "none"))
    failed = {row for row, _, _ in undetectable}
    foreign = [finding for finding in foreign if finding[0] not in failed]
    seconds = time.perf_counter() - started
    return [
        *_gather("language_undetectable", undetectable, batch.start),
        *_gather("language", foreign, batch.start),
        make_findings(np.empty(0, np.int64), "language", 0, [], {"language": seconds}),
    ]


def _detect(texts: list[bytes]) -> list[Any]:
    """Return what CLD2 finds in each text, or its message where it fails."""
    try:
        # no step of Python between two calls: CLD2 returns to it every ten microseconds, and would
        # wait there for the other threads
        return list(map(pycld2.detect, texts))
    except pycld2.error:
        return [_detect_one(text) for text in texts]


def _detect_one(text: bytes) -> Any:
    try:
        return pycld2.detect(text)
    except pycld2.error as error:
        return str(error)


def _gather(rule: str, found: list[tuple[int, int, str]], start: int) -> list[Findings]:
    parts = []
    for side in (0, 1):
        of_side = [(row, matched) for row, at, matched in found if at == side]
        rows = np.array([row for row, _ in of_side], np.int64) + start
        parts.append(make_findings(rows, rule, side, [matched for _, matched in of_side]))
    return parts
