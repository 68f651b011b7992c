"""The comparison of two commits' outputs reports what differs."""

import json
import shutil

import pytest

LOSSES = [{"step": 0, "eval_loss": 3.4}, {"step": 1, "loss": 3.5, "seconds": 0.1}]
ANSWERS = "07_model_output/test/output.jsonl"
HISTORY = "08_reporting/test/train_history.json"
REPORT = "08_reporting/test/filter_report.json"


@pytest.fixture
def compare(benchmark_module):
    return benchmark_module("equality.compare_outputs").compare


@pytest.fixture
def trees(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for path, text in (
        (ANSWERS, '{"input": "質問"}\n'),
        (HISTORY, json.dumps(LOSSES)),
        (REPORT, '{"summary": {"kept": 206}}'),
    ):
        file = old / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    shutil.copytree(old, new)
    return old, new


def test_equal_outputs(compare, trees):
    assert compare(*trees) == ({ANSWERS: True, HISTORY: True}, {})


def test_a_byte_of_a_result_differs(compare, trees):
    with (trees[1] / "data" / ANSWERS).open("a") as file:
        file.write("\n")
    assert compare(*trees) == ({ANSWERS: False, HISTORY: True}, {})


def test_losses_must_be_equal_and_seconds_may_differ(compare, trees):
    path = trees[1] / "data" / HISTORY
    path.write_text(json.dumps([LOSSES[0], {**LOSSES[1], "seconds": 9.9}]), "utf-8")
    assert compare(*trees)[0][HISTORY]
    path.write_text(json.dumps([LOSSES[0], {**LOSSES[1], "loss": 3.6}]), "utf-8")
    assert not compare(*trees)[0][HISTORY]


def test_other_outputs_are_for_a_person_to_judge(compare, trees):
    (trees[1] / "data" / REPORT).write_text('{"summary": {"kept": 207}}', "utf-8")
    results, others = compare(*trees)
    assert all(results.values())
    assert list(others) == [REPORT]
