"""Figures of a pair's quality, kept as columns by which it can be ranked later."""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import TYPE_CHECKING

from ja_instruct.pipelines.data_filtering.batches import iterate_batches
from ja_instruct.pipelines.data_filtering.pairs import flatten_indices, replace_columns
from ja_instruct.pipelines.data_filtering.quality import (
    LATIN_RUNS,
    NOT_JAPANESE,
    cut_ngrams,
    measure_kana_share,
    measure_ngrams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from datasets import Dataset

#: Window of letters in which different pairs of letters are counted.
DIVERSITY_LETTERS = 100


def add_scores(pairs: Dataset) -> Dataset:
    """Return the pairs with a column ``score_<name>`` for each figure of ``score_text``."""
    import pyarrow as pa

    from ja_instruct.tables.arrow import collect

    def score() -> Iterator[pa.Table]:
        yield pa.table({f"score_{name}": pa.array([], pa.float64()) for name in score_text("", "")})
        for batch in iterate_batches(pairs):
            texts = (field.array.to_pylist() for field in batch.fields)
            rows = [score_text(*pair) for pair in zip(*texts, strict=True)]
            yield pa.table(
                {f"score_{name}": [float(row[name]) for row in rows] for name in rows[0]}
            )

    return replace_columns(flatten_indices(pairs), collect(score()), first=False)


def score_text(instruction: str, response: str) -> dict[str, float]:
    """Return figures by which a pair can be ranked later.

    Returns:
        - ``instruction_chars``, ``response_chars``: lengths in characters;
        - ``kana_share``: kana among kana and Han characters of the response, 0 to 1;
        - ``latin_share``: Latin letters among the letters of the response, 0 to 1;
        - ``repeated_share``: Japanese letters of the response in 10-grams that stood in it before,
          0 to 1 (see ``find_repetition``);
        - ``copied_share``: 10-grams of the response's Japanese letters that the instruction holds,
          0 to 1: high for extracts, low for free answers;
        - ``compression_ratio``: UTF-8 bytes of the response after zlib to those before, above 0;
          prose of 1,000 characters has about 0.5, loops less than 0.15, short texts, which zlib
          makes longer, more than 1;
        - ``diversity``: different pairs of neighbouring letters among all pairs, mean over windows
          of 100 letters, 0 to 1, so that it does not fall with length (the moving-average
          type-token ratio of Covington and McFall 2010, on pairs of letters, without overlap).

        Shares of nothing are 0, but ``kana_share`` and ``diversity`` are 1.

    >>> scores = score_text("日本の首都はどこですか。", "日本の首都は東京 (Tokyo) です。")
    >>> scores["response_chars"], scores["kana_share"], round(scores["latin_share"], 2)
    (20, 0.4, 0.33)
    """
    letters = NOT_JAPANESE.sub("", response)
    latin = sum(map(len, LATIN_RUNS.findall(response)))
    ngrams = cut_ngrams(letters)
    asked = set(cut_ngrams(NOT_JAPANESE.sub("", instruction)))
    encoded = response.encode(errors="surrogatepass")
    return {
        "instruction_chars": len(instruction),
        "response_chars": len(response),
        "kana_share": measure_kana_share(response),
        "latin_share": latin / (latin + len(letters)) if latin else 0.0,
        "repeated_share": measure_ngrams(ngrams) / len(letters) if letters else 0.0,
        "copied_share": sum(map(asked.__contains__, ngrams)) / len(ngrams) if ngrams else 0.0,
        "compression_ratio": len(zlib.compress(encoded)) / len(encoded) if encoded else 0.0,
        "diversity": _measure_diversity(letters),
    }


def _measure_diversity(letters: str) -> float:
    shares = []
    for start in range(0, max(1, len(letters) - DIVERSITY_LETTERS + 1), DIVERSITY_LETTERS):
        window = letters[start : start + DIVERSITY_LETTERS]
        pairs = list(pairwise(window))
        shares.append(len(set(pairs)) / len(pairs) if pairs else 1.0)
    return sum(shares) / len(shares)
