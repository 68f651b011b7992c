"""The rules, the violations that they find in pairs, and the reasons that rejected pairs carry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ja_instruct.pipelines.data_filtering.batches import FIELDS, HISTORY, as_one_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa


class Rule(NamedTuple):
    """The traits of a rule; the template of the filter page describes it in words.

    Attributes:
        edited_in: The parameters or the word list to edit to loosen the rule.
        on_purpose: The rule drops Japanese text on purpose. The other rules guard against drift
            into another language, so a Japanese pair that they drop is lost.
        quotes: The reported match is a part of the pair's text.
    """

    edited_in: str
    on_purpose: bool = False
    quotes: bool = True


#: All rules in the order in which they are applied.
RULE_TRAITS = {
    "assistant_first": Rule("data_filtering.assistant_first", on_purpose=True, quotes=False),
    "unexpected_turn": Rule("data_filtering.multi_turn", on_purpose=True, quotes=False),
    "banned_substring": Rule("word_lists/banned_substrings.yml"),
    "banned_instruction_substring": Rule("word_lists/banned_instruction_substrings.yml"),
    "rare_character": Rule("data_filtering.rare_char_count_max"),
    "token_count": Rule(
        "data_filtering.pair_tokens_max, response_tokens_min", on_purpose=True, quotes=False
    ),
    "citation_mark": Rule("data_filtering.extra_rules", on_purpose=True),
    "cut_off": Rule("data_filtering.extra_rules", on_purpose=True),
    "repetition": Rule(
        "data_filtering.repeated_sentence_percent_max, repeated_ngram_percent_max", on_purpose=True
    ),
    "kana_share": Rule(
        "data_filtering.han_chars_without_kana_max, foreign_han_chars_without_kana_max"
    ),
    "contamination": Rule(
        "data_filtering.contamination_ngram_chars, contamination_share_min",
        on_purpose=True,
        quotes=False,
    ),
    "language_undetectable": Rule("data_filtering", quotes=False),
    "language": Rule("data_filtering.language_percent_min", quotes=False),
    "exact_duplicate": Rule("data_filtering.extra_rules", on_purpose=True, quotes=False),
    "near_duplicate": Rule(
        "data_filtering.near_duplicate_jaccard_min", on_purpose=True, quotes=False
    ),
    "rare_survivor_character": Rule("data_filtering.survivor_char_count_min"),
}
RULES = tuple(RULE_TRAITS)

#: Where a rule finds something: in one field, in the turns before, or in all together.
PLACES = (*FIELDS, HISTORY, "pair")


class Violation(NamedTuple):
    """One violation: row of the pair, rule, field, and the text that was matched."""

    row: int
    rule: str
    field: str
    matched: str


@dataclass(frozen=True)
class Violations:
    """Violations in columns, ordered by row, rule and field, then by position in the text.

    Attributes:
        table: One row per violation: ``row`` (int64), ``rule`` and ``field`` (int8, positions in
            ``RULES`` and ``PLACES``), ``matched`` (string).
    """

    table: pa.Table

    @classmethod
    def from_list(cls, violations: Iterable[Violation]) -> Violations:
        """Return the violations in the given order."""
        found = list(violations)
        return cls.from_arrays(
            [violation.row for violation in found],
            np.array([RULES.index(violation.rule) for violation in found], np.int64),
            [PLACES.index(violation.field) for violation in found],
            [violation.matched for violation in found],
        )

    @classmethod
    def from_arrays(
        cls,
        rows: npt.NDArray[np.int64] | Sequence[int],
        rules: npt.NDArray[np.int64],
        fields: int | Sequence[int],
        matched: Sequence[str],
    ) -> Violations:
        """Return n violations in the given order; ``fields`` may be the field of all of them."""
        import pyarrow as pa

        return cls(
            pa.table(
                {
                    "row": pa.array(rows, pa.int64()),
                    "rule": pa.array(rules.astype(np.int8)),
                    "field": pa.array(np.full(len(rows), fields, np.int8)),
                    "matched": pa.array(matched, pa.string()),
                }
            )
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Violations:
        """Return the same object: Kedro copies what it passes on, and this one is immutable."""
        return self

    def __len__(self) -> int:
        """The number of violations."""
        return len(self.table)

    def __iter__(self) -> Iterator[Violation]:
        """Yield each ``Violation``."""
        columns = (self.table.column(name).to_pylist() for name in self.table.column_names)
        for row, rule, field, matched in zip(*columns, strict=True):
            yield Violation(row, RULES[rule], PLACES[field], matched)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return ``row``, ``rule`` or ``field`` as an array."""
        return self.table.column(name).to_numpy()  # type: ignore[no-any-return]

    def rejected_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows with a violation, each once, in order."""
        return np.unique(self.column("row"))

    def kept_rows(self, total: int) -> npt.NDArray[np.int64]:
        """Return those of ``total`` rows without a violation, in order."""
        return np.setdiff1d(np.arange(total), self.column("row"))

    @cached_property
    def single_rules(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows that violate a single rule, and that rule, in order."""
        rows, rules = self.rules_of_rows
        _, first, times = np.unique(rows, return_index=True, return_counts=True)
        alone = first[times == 1]
        return rows[alone], rules[alone]

    @cached_property
    def rules_of_rows(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows and rules, in order: each row once for each rule that it violates."""
        rows, rules = self.column("row"), self.column("rule")
        new = _starts(rows) | _starts(rules)
        return rows[new], rules[new]

    def at_rows(self, rows: npt.NDArray[np.int64]) -> Violations:
        """Return the violations with row i renumbered to ``rows[i]``, which must ascend."""
        import pyarrow as pa

        renumbered = pa.array(rows[self.column("row")], pa.int64())
        return Violations(self.table.set_column(0, "row", renumbered))

    def of_rule(self, rule: str) -> pa.Table:
        """Return the violations of one rule."""
        return self.table.filter(self.column("rule") == RULES.index(rule))


def join_violations(parts: Iterable[Violations]) -> Violations:
    """Return the violations of all parts, sorted by row, rule and field."""
    import pyarrow as pa

    table = pa.concat_tables([part.table for part in (Violations.from_list([]), *parts)])
    # Arrow's sort is stable: the matches of a rule in one field stay in the order of the text
    table = table.sort_by([(name, "ascending") for name in ("row", "rule", "field")])
    return Violations(table.combine_chunks())


def build_reasons(violations: Violations) -> pa.Table:
    """Return the columns that explain each rejected pair, one row per pair, in order.

    Returns:
        ``reason``, the first rule violated; ``reasons``, all rules violated, in the order of
        ``RULES``; and ``reason_details``, a list of ``{rule, side, matched}``, one for each rule
        and field, in which ``matched`` is a list of texts.
    """
    import pyarrow as pa

    rows, rules, fields = (violations.column(name) for name in ("row", "rule", "field"))
    rule_names, field_names = pa.array(RULES), pa.array(PLACES)
    new_row = _starts(rows)
    new_rule = new_row | _starts(rules)
    row_starts, rule_starts, group_starts = (
        np.flatnonzero(new) for new in (new_row, new_rule, new_rule | _starts(fields))
    )
    matched = as_one_array(violations.table.column("matched"))
    details = pa.StructArray.from_arrays(
        [
            rule_names.take(pa.array(rules[group_starts])),
            field_names.take(pa.array(fields[group_starts])),
            pa.ListArray.from_arrays(_offsets(group_starts, len(rows)), matched),
        ],
        names=["rule", "side", "matched"],
    )
    return pa.table(
        {
            "reason": rule_names.take(pa.array(rules[row_starts])),
            "reasons": pa.ListArray.from_arrays(
                _offsets(np.searchsorted(rule_starts, row_starts), len(rule_starts)),
                rule_names.take(pa.array(rules[rule_starts])),
            ),
            "reason_details": pa.ListArray.from_arrays(
                _offsets(np.searchsorted(group_starts, row_starts), len(group_starts)), details
            ),
        }
    )


def _starts(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where a value differs from the one before it; the first always does."""
    if not len(values):
        return np.empty(0, bool)
    return np.concatenate(([True], values[1:] != values[:-1]))


def _offsets(starts: npt.NDArray[np.intp], total: int) -> pa.Array:
    """Return Arrow's offsets of lists that begin at ``starts`` and cover ``total`` values."""
    import pyarrow as pa

    return pa.array(np.append(starts, total), pa.int32())
