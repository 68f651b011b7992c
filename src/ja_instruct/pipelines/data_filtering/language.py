"""The language of both sides, by CLD2."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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
        for row, text in zip(rows.tolist(), texts.encoded(rows), strict=True):
            try:
                found = pycld2.detect(text)[2]
            except pycld2.error as error:
                undetectable.append((row, side, str(error)))
                continue
            if not any(name == code and percent >= percent_min for _, name, percent, _ in found):
                shares = ", ".join(
                    f"{name} {percent} %" for _, name, percent, _ in found if percent
                )
                foreign.append((row, side, shares or "none"))
    failed = {row for row, _, _ in undetectable}
    foreign = [finding for finding in foreign if finding[0] not in failed]
    seconds = time.perf_counter() - started
    return [
        *_gather("language_undetectable", undetectable, batch.start),
        *_gather("language", foreign, batch.start),
        make_findings(np.empty(0, np.int64), "language", 0, [], {"language": seconds}),
    ]


def _gather(rule: str, found: list[tuple[int, int, str]], start: int) -> list[Findings]:
    parts = []
    for side in (0, 1):
        of_side = [(row, matched) for row, at, matched in found if at == side]
        rows = np.array([row for row, _ in of_side], np.int64) + start
        parts.append(make_findings(rows, rule, side, [matched for _, matched in of_side]))
    return parts
