"""The comparison of two commits' outputs reports what differs."""

import json
import shutil

import pytest

LOSSES = [{"step": 0, "eval_loss": 3.4}, {"step": 1, "loss": 3.5, "seconds": 0.1}]


@pytest.fixture
def module(benchmark_module):
    return benchmark_module("equality.compare_outputs")


@pytest.fixture
def trees(module, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for pattern in module.EQUAL_BYTES:
        path = old / "data" / pattern.format(env="test")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"input": "質問"}\n', "utf-8")
    reports = old / "data/08_reporting/test"
    reports.mkdir(parents=True)
    (reports / "train_history.json").write_text(json.dumps(LOSSES), "utf-8")
    for name in module.REPORTS:
        (reports / f"{name}.json").write_text('{"summary": {"kept": 206, "seconds": 1.0}}', "utf-8")
    shutil.copytree(old, new)
    return old, new


def test_equal_outputs(module, trees):
    assert all(module.compare(*trees, "test").values())
    assert module.differences_of_reports(*trees, "test") == []


@pytest.mark.parametrize(
    "name", ["03_primary/test/rejected_pairs.jsonl", "07_model_output/test/output.jsonl"]
)
def test_a_byte_that_differs(module, trees, name):
    with (trees[1] / "data" / name).open("a") as file:
        file.write("\n")
    equal = module.compare(*trees, "test")
    assert [key for key, is_equal in equal.items() if not is_equal] == [name]


def test_a_loss_that_differs(module, trees):
    changed = [LOSSES[0], {**LOSSES[1], "loss": 3.6}]
    path = trees[1] / "data/08_reporting/test/train_history.json"
    path.write_text(json.dumps(changed), "utf-8")
    assert not module.compare(*trees, "test")["losses of test"]
    path.write_text(json.dumps([LOSSES[0], {**LOSSES[1], "seconds": 9.9}]), "utf-8")
    assert module.compare(*trees, "test")["losses of test"]


def test_keys_of_reports_that_differ(module, trees):
    path = trees[1] / "data/08_reporting/test/filter_report.json"
    path.write_text('{"summary": {"kept": 207}, "rules": ["a"]}', "utf-8")
    assert module.differences_of_reports(*trees, "test") == [
        "filter_report: rules.0: None -> 'a'",
        "filter_report: summary.kept: 206 -> 207",
        "filter_report: summary.seconds: 1.0 -> None",
    ]
