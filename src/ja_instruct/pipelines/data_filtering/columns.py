"""Pairs and verdicts as columns of a ``Dataset``, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.pipelines.data_filtering.rules import Pair, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datasets import Dataset


def iterate_pairs(pairs: Dataset) -> Iterator[Pair]:
    """Yield the two sides of each row, without the other columns."""
    for batch in pairs.select_columns(list(Pair._fields)).iter(batch_size=1000):
        yield from map(Pair, batch["instruction"], batch["response"])


def put_pairs_first(data: Dataset, pairs: list[Pair]) -> Dataset:
    """Return ``data`` with ``pairs`` as its first columns."""
    from datasets import Dataset, Features, Value

    sides = {side: [getattr(pair, side) for pair in pairs] for side in Pair._fields}
    texts = Dataset.from_dict(sides, features=Features(dict.fromkeys(sides, Value("string"))))
    joined = append_columns(data, texts)
    others = [column for column in joined.column_names if column not in sides]
    return joined.select_columns([*sides, *others])


def append_columns(data: Dataset, columns: Dataset) -> Dataset:
    """Return ``data`` with ``columns`` at its end, replacing those of the same names.

    ``datasets.concatenate_datasets`` would lose the columns of a data set without rows.
    """
    data = data.remove_columns([name for name in columns.column_names if name in data.column_names])
    for name, feature in columns.features.items():
        data = data.add_column(name, columns[name][:], feature=feature)
    return data


def build_verdicts(judged: Iterable[list[Rejection]]) -> Dataset:
    """Return the rejections of each pair as a data set of one row a pair."""
    from datasets import Dataset, Features, List, Value

    text = Value("string")
    columns: dict[str, list[Any]] = {"reason": [], "reasons": [], "reason_details": []}
    for rejections in judged:
        columns["reason"].append(rejections[0].rule if rejections else None)
        columns["reasons"].append([rejection.rule for rejection in rejections])
        columns["reason_details"].append([rejection.detail for rejection in rejections])
    features = {"reason": text, "reasons": List(text), "reason_details": List(text)}
    return Dataset.from_dict(columns, features=Features(features))


def iterate_rejections(verdicts: Dataset) -> Iterator[list[Rejection]]:
    """Yield what ``build_verdicts`` was given, row by row."""
    for batch in verdicts.iter(batch_size=1000):
        for row in zip(batch["reasons"], batch["reason_details"], strict=True):
            yield [Rejection(*reason) for reason in zip(*row, strict=True)]


def find_rows(verdicts: Dataset, *, kept: bool) -> list[int]:
    """Return the numbers of the rows to keep, or of those to drop."""
    return [row for row, reason in enumerate(verdicts["reason"]) if (reason is None) == kept]
