"""What the rules find against pairs, and the verdicts that follow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ja_instruct.pipelines.data_filtering.batches import FIELDS, as_one_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    import pyarrow as pa

#: The id of every rule, in the order in which they are asked.
RULES = (
    "banned_substring",
    "banned_instruction_substring",
    "rare_character",
    "token_count",
    "citation_mark",
    "cut_off",
    "repetition",
    "kana_share",
    "contamination",
    "language_undetectable",
    "language",
    "exact_duplicate",
    "near_duplicate",
    "rare_survivor_character",
)

#: Where a rule finds something: in one field, or in both together.
PLACES = (*FIELDS, "pair")


class Violation(NamedTuple):
    """What speaks against a pair: the row, the rule, the field, and the text that it found."""

    row: int
    rule: str
    field: str
    matched: str


@dataclass(frozen=True)
class Violations:
    """Violations in columns, ordered by row, rule and field, then as they stand in the text.

    Attributes:
        table: One row a violation: ``row`` (int64), ``rule`` and ``field`` (int8, positions in
            ``RULES`` and ``PLACES``), ``matched`` (string).
        seconds: How long each kind of check took, summed over the threads.
    """

    table: pa.Table
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Violations:
        """Return itself: Kedro copies what it passes on, and nothing here can change."""
        return self

    def __len__(self) -> int:
        """The number of violations."""
        return len(self.table)

    def __iter__(self) -> Any:
        """Yield each ``Violation``."""
        columns = (self.table.column(name).to_pylist() for name in self.table.column_names)
        for row, rule, field, matched in zip(*columns, strict=True):
            yield Violation(row, RULES[rule], PLACES[field], matched)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return ``row``, ``rule`` or ``field`` as an array."""
        return self.table.column(name).to_numpy()  # type: ignore[no-any-return]

    def rejected_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows with a violation against them, each once, in order."""
        return np.unique(self.column("row"))

    def kept_rows(self, total: int) -> npt.NDArray[np.int64]:
        """Return those of ``total`` rows with nothing against them, in order."""
        return np.setdiff1d(np.arange(total), self.column("row"))

    @cached_property
    def rules_of_rows(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Each row with each rule against it, once: rows and rules, in order."""
        rows, rules = self.column("row"), self.column("rule")
        new = _starts(rows) | _starts(rules)
        return rows[new], rules[new]

    def at_rows(self, rows: npt.NDArray[np.int64]) -> Violations:
        """Return the violations with row i called ``rows[i]``, which must ascend."""
        import pyarrow as pa

        renamed = pa.array(rows[self.column("row")], pa.int64())
        return Violations(self.table.set_column(0, "row", renamed), self.seconds)

    def of_rule(self, rule: str) -> pa.Table:
        """Return the violations of one rule."""
        return self.table.filter(self.column("rule") == RULES.index(rule))


def make_violations(
    rows: npt.NDArray[np.int64],
    rules: npt.NDArray[np.int64] | str,
    field: int,
    matched: list[str],
    seconds: dict[str, float] | None = None,
) -> Violations:
    """Return violations in one field, ordered as they are given.

    Args:
        rows: Shape (n,).
        rules: Positions in ``RULES``, shape (n,), or the id of the one rule.
        field: Position in ``PLACES``.
        matched: n texts.
        seconds: What it took, by what was done.
    """
    import pyarrow as pa

    if isinstance(rules, str):
        rules = np.full(len(rows), RULES.index(rules))
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "rule": pa.array(rules.astype(np.int8)),
            "field": pa.array(np.full(len(rows), field, np.int8)),
            "matched": pa.array(matched, pa.string()),
        }
    )
    return Violations(table, seconds or {})


def join_violations(parts: Iterable[Violations]) -> Violations:
    """Return the violations of all parts in their order: by row, rule and field."""
    import pyarrow as pa

    empty = make_violations(np.empty(0, np.int64), RULES[0], 0, [])
    parts = [empty, *parts]
    table = pa.concat_tables([part.table for part in parts])
    # Arrow's sort is stable: what a rule found in one field stays in the order of the text
    table = table.sort_by([(name, "ascending") for name in ("row", "rule", "field")])
    seconds: dict[str, float] = {}
    for part in parts:
        for check, spent in part.seconds.items():
            seconds[check] = seconds.get(check, 0.0) + spent
    return Violations(table.combine_chunks(), seconds)


def build_reasons(violations: Violations) -> pa.Table:
    """Return the columns that explain each rejected pair, one row a pair, in order.

    ``reason`` is the first rule against it, ``reasons`` are all rules against it, in the order of
    ``RULES``, and ``reason_details`` holds for each rule and field what it found: a list of
    ``{rule, side, matched}``, ``matched`` being a list of texts.
    """
    import pyarrow as pa

    rows, rules, fields = (violations.column(name) for name in ("row", "rule", "field"))
    names, field_names = pa.array(RULES), pa.array(PLACES)
    new_row = _starts(rows)
    new_rule = new_row | _starts(rules)
    new_group = new_rule | _starts(fields)
    groups = np.flatnonzero(new_group)
    matched = as_one_array(violations.table.column("matched"))
    details = pa.StructArray.from_arrays(
        [
            names.take(pa.array(rules[groups])),
            field_names.take(pa.array(fields[groups])),
            pa.ListArray.from_arrays(_ends(groups, len(rows)), matched),
        ],
        names=["rule", "side", "matched"],
    )
    first = np.flatnonzero(new_row)
    of_rule = np.flatnonzero(new_rule)
    return pa.table(
        {
            "reason": names.take(pa.array(rules[first])),
            "reasons": pa.ListArray.from_arrays(
                _ends(np.searchsorted(of_rule, first), len(of_rule)),
                names.take(pa.array(rules[of_rule])),
            ),
            "reason_details": pa.ListArray.from_arrays(
                _ends(np.searchsorted(groups, first), len(groups)), details
            ),
        }
    )


def _starts(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where a value differs from the one before it; the first always does."""
    if not len(values):
        return np.empty(0, bool)
    return np.concatenate(([True], values[1:] != values[:-1]))


def _ends(starts: npt.NDArray[np.intp], total: int) -> pa.Array:
    """Return Arrow's offsets of lists that begin at ``starts`` and fill ``total`` values."""
    import pyarrow as pa

    return pa.array(np.append(starts, total), pa.int32())
