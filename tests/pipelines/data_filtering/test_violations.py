"""Violations in columns, and the reasons that follow from them."""

import copy
import itertools

import numpy as np
import pyarrow as pa
from filter_pairs import make_violations
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering.pairs import select_rows
from ja_instruct.pipelines.data_filtering.violations import (
    FIELDS,
    RULES,
    Violation,
    build_reasons,
    join_violations,
)

violations_lists = st.lists(
    st.builds(
        Violation,
        row=st.integers(0, 4),
        rule=st.sampled_from(RULES[:4]),
        field=st.sampled_from(FIELDS),
        matched=st.text("翻訳𠮷", max_size=2),
    ),
    max_size=12,
)


def order_of(violation: Violation) -> tuple[int, int, int]:
    return violation.row, RULES.index(violation.rule), FIELDS.index(violation.field)


@given(violations_lists)
def test_joining_sorts_and_is_stable_within_a_field(given_: list[Violation]) -> None:
    joined = make_violations(*given_)
    assert list(joined) == sorted(given_, key=order_of)
    assert len(joined) == len(given_)
    assert joined.rejected_rows().tolist() == sorted({violation.row for violation in given_})


@given(violations_lists)
def test_reasons_match_a_plain_loop(given_: list[Violation]) -> None:
    joined = make_violations(*given_)
    expected = []
    for _, of_row in itertools.groupby(joined, lambda violation: violation.row):
        found = list(of_row)
        details = [
            {"rule": rule, "side": field, "matched": [violation.matched for violation in of_field]}
            for (rule, field), of_field in itertools.groupby(found, lambda f: (f.rule, f.field))
        ]
        rules = list(dict.fromkeys(violation.rule for violation in found))
        expected.append({"reason": rules[0], "reasons": rules, "reason_details": details})
    assert build_reasons(joined).to_pylist() == expected


def test_reasons_of_no_violations_have_their_columns() -> None:
    reasons = build_reasons(join_violations([]))
    assert reasons.num_rows == 0
    assert reasons.schema.field("reason").type == pa.string()
    assert pa.types.is_list(reasons.schema.field("reason_details").type)


def test_violations_are_not_copied() -> None:
    violations = make_violations((0, RULES[0], FIELDS[0], "翻訳"))
    assert copy.deepcopy(violations) is violations


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sets(st.integers(0, 12)))
def test_rows_are_selected_across_tables(sizes: list[int], wanted: set[int]) -> None:
    ends = np.cumsum(sizes).tolist()
    tables = [
        pa.table({"id": pa.array(range(end - size, end), pa.int64()), "reason": ["古"] * size})
        for size, end in zip(sizes, ends, strict=True)
    ]
    rows = np.array(sorted(row for row in wanted if row < ends[-1]), np.int64)
    columns = pa.table({"reason": pa.array([f"新{row}" for row in rows], pa.string())})
    picked = pa.concat_tables(select_rows(tables, rows, columns))
    assert picked.to_pylist() == [{"id": row, "reason": f"新{row}"} for row in rows.tolist()]
