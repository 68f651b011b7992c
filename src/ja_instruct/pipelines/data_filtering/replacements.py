"""The replacement table, applied to many texts of which hardly any needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.pipelines.data_filtering.pairs import make_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from ja_instruct.pipelines.data_filtering.batches import PairBatch
    from ja_instruct.pipelines.data_filtering.substrings import Candidates
    from ja_instruct.tables.word_lists import Replacement


def replace_in_batch(
    batch: PairBatch, table: Sequence[Replacement], candidates: Candidates
) -> tuple[pa.Table, dict[str, int]]:
    """Apply the table, in its order, to both fields of each pair.

    Args:
        batch: The pairs.
        table: What to replace by what.
        candidates: Finds the texts that may hold a ``find``: the others are changed by none.

    Returns:
        Both fields, and how many pairs each ``find`` was replaced in.

    >>> from ja_instruct.pipelines.data_filtering.substrings import Candidates
    >>> from ja_instruct.pipelines.data_filtering.batches import make_batch
    >>> from ja_instruct.tables.word_lists import Replacement
    >>> table = [Replacement("よしmitsu", "よしみつ")]
    >>> batch = make_batch([("誰ですか。", "よしmitsuです。"), ("誰ですか。", "父です。")])
    >>> replaced, touched = replace_in_batch(batch, table, Candidates.build(["よしmitsu"]))
    >>> replaced["response"].to_pylist()
    ['よしみつです。', '父です。']
    >>> touched
    {'よしmitsu': 1}
    """
    touched: dict[str, set[int]] = {}
    columns = []
    for field in batch.fields:
        rows = candidates.find_rows(field)
        new = []
        for row, encoded in zip(rows.tolist(), field.encoded(rows), strict=True):
            text = encoded.decode()
            for find, replace in table:
                if find in text:
                    touched.setdefault(find, set()).add(row)
                    text = text.replace(find, replace)
            new.append(text)
        columns.append(_put(field.array, rows, new) if new else field.array)
    return make_fields(*columns), {find: len(rows) for find, rows in touched.items()}


def _put(texts: pa.StringArray, rows: npt.NDArray[np.int64], new: list[str]) -> pa.StringArray:
    """Return the texts with those of ``rows`` (ascending) replaced."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(new, texts.type))
