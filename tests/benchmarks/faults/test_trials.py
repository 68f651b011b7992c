"""The plan of the trials and the table of their results."""

import sqlite3

import pytest


@pytest.fixture
def trials(benchmark_module):
    return benchmark_module("faults.trials")


@pytest.fixture
def trial(benchmark_module):
    return benchmark_module("faults.trial")


def test_a_trial_follows_from_seed_and_number(trials):
    assert trials.plan(1, 7) == trials.plan(1, 7)
    assert trials.plan(1, 7) != trials.plan(2, 7)
    assert trials.plan(1, 7).number == 7


def test_every_pipeline_and_kind_is_planned(trials):
    planned = [trials.plan(16, number) for number in range(240)]
    cells = [(one.pipeline, one.runner) for one in planned]
    assert {cells.count(cell) for cell in trials.CELLS} == {15}
    assert {one.signal for one in planned} == {"KILL", "INT", "TERM"}
    assert {one.victims for one in planned} == {"all", "parent", "child"}
    kinds = {moment.kind for one in planned for moment in one.moments}
    assert kinds == {"uniform", "store", *trials.AIMED}
    assert {len(one.moments) for one in planned} == {1, 2, 3}
    for flag in ("is_cold", "has_store", "is_changed", "waits", "is_repeated"):
        assert {getattr(one, flag) for one in planned} == {True, False}, flag


def test_only_processes_of_nodes_are_children(trials):
    for number in range(240):
        one = trials.plan(3, number)
        if one.victims == "child":
            assert one.runner == "CudaRunner"
            assert one.pipeline in trials.IN_PROCESSES


def test_pipelines_are_those_of_the_project(trials):
    from ja_instruct.pipeline_registry import register_pipelines

    needs_more = {"gguf_export", "publishing"}  # llama.cpp, the hub
    assert set(trials.PIPELINES) == set(register_pipelines()) - needs_more


@pytest.mark.parametrize(
    ("resumed", "different", "problems", "counted", "shown"),
    [
        (True, {}, [], "equal", "equal"),
        (True, {"a.json": "other bytes"}, [], "different", "DIFFERENT"),
        (False, {}, ["the resume ended with 1"], "not resumed", "NOT RESUMED"),
        (True, {}, ["2 runs are FINISHED"], "other problems", "2 runs are FINISHED"),
    ],
)
def test_results_are_counted(
    benchmark_module, trials, trial, resumed, different, problems, counted, shown
):
    table = benchmark_module("faults.table")
    result = trial.Result(trials.plan(1, 0), 1, 0, resumed, different, problems)
    assert table.counts([result])[counted] == 1
    assert shown in result.describe()
    assert result.is_bad == (counted != "equal")
    summary = table.summarize([result], seed=1)
    assert summary["bad_trials"] == ([0] if result.is_bad else [])
    assert summary["files"] == dict.fromkeys(different, 1)


def test_a_run_that_was_stopped_is_not_finished(trials, trial, tmp_path):
    (tmp_path / "data/mlflow").mkdir(parents=True)
    store = tmp_path / trial.STORE
    assert trial.run_statuses(tmp_path) == []
    with sqlite3.connect(store) as connection:
        connection.execute("create table runs (status text)")
        connection.executemany("insert into runs values (?)", [("FINISHED",), ("FAILED",)])
    assert trial.run_statuses(tmp_path) == ["FINISHED", "FAILED"]
    planned = trials.plan(1, 0)
    assert trial.store_problems(planned, tmp_path, finished=1) == []
    assert "1 runs are FINISHED" in trial.store_problems(planned, tmp_path, finished=0)[0]
    store.write_bytes(b"half a store" * 100)
    assert "cannot be read" in trial.store_problems(planned, tmp_path, finished=1)[0]
