"""Findings in columns, and the reasons that follow from them."""

import copy
import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering.pairs import select_rows
from ja_instruct.pipelines.data_filtering.violations import (
    RULES,
    SIDES,
    Finding,
    Findings,
    build_reasons,
    join_findings,
    make_findings,
)

findings_lists = st.lists(
    st.builds(
        Finding,
        row=st.integers(0, 4),
        rule=st.sampled_from(RULES[:4]),
        side=st.sampled_from(SIDES),
        matched=st.text("翻訳𠮷", max_size=2),
    ),
    max_size=12,
)


def from_list(findings: list[Finding]) -> Findings:
    return join_findings(
        make_findings(np.array([f.row]), f.rule, SIDES.index(f.side), [f.matched], {"it": 0.5})
        for f in findings
    )


def order_of(finding: Finding) -> tuple[int, int, int]:
    return finding.row, RULES.index(finding.rule), SIDES.index(finding.side)


@given(findings_lists)
def test_findings_are_joined_in_order_and_keep_theirs_within_a_side(given_: list[Finding]) -> None:
    joined = from_list(given_)
    assert list(joined) == sorted(given_, key=order_of)
    assert len(joined) == len(given_)
    assert joined.rejected_rows().tolist() == sorted({finding.row for finding in given_})
    assert sum(joined.seconds.values()) == 0.5 * len(given_)


@given(findings_lists)
def test_reasons_are_those_of_a_plain_loop(given_: list[Finding]) -> None:
    joined = from_list(given_)
    expected = []
    for _, of_row in itertools.groupby(joined, lambda finding: finding.row):
        found = list(of_row)
        details = [
            {"rule": rule, "side": side, "matched": [finding.matched for finding in of_side]}
            for (rule, side), of_side in itertools.groupby(found, lambda f: (f.rule, f.side))
        ]
        rules = list(dict.fromkeys(finding.rule for finding in found))
        expected.append({"reason": rules[0], "reasons": rules, "reason_details": details})
    assert build_reasons(joined).to_pylist() == expected


def test_no_findings_still_have_their_columns() -> None:
    reasons = build_reasons(join_findings([]))
    assert reasons.num_rows == 0
    assert reasons.schema.field("reason").type == pa.string()
    assert pa.types.is_list(reasons.schema.field("reason_details").type)


def test_findings_are_not_copied() -> None:
    findings = from_list([Finding(0, RULES[0], SIDES[0], "翻訳")])
    assert copy.deepcopy(findings) is findings


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sets(st.integers(0, 12)))
def test_rows_are_selected_over_the_ends_of_tables(sizes: list[int], wanted: set[int]) -> None:
    ends = np.cumsum(sizes).tolist()
    tables = [
        pa.table({"id": pa.array(range(end - size, end), pa.int64()), "reason": ["古"] * size})
        for size, end in zip(sizes, ends, strict=True)
    ]
    rows = np.array(sorted(row for row in wanted if row < ends[-1]), np.int64)
    columns = pa.table({"reason": pa.array([f"新{row}" for row in rows], pa.string())})
    picked = pa.concat_tables(select_rows(tables, rows, columns))
    assert picked.to_pylist() == [{"id": row, "reason": f"新{row}"} for row in rows.tolist()]
