import json

import pytest

PROGRAM = """
import json, sys, time
job = json.load(open(sys.argv[1]))
json.dump({"measured": job["number"]}, open(sys.argv[2], "w"))
print("a line of the log")
if job["then"] == "hang":
    time.sleep(60)
if job["then"] == "fail":
    raise ValueError("no memory left")
"""


@pytest.fixture
def run(benchmark_module, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run_it(then, seconds=30.0):
        job = {"number": 7, "then": then}
        return benchmark_module("harness.sides").run_side(program, job, tmp_path, "ours", seconds)

    return run_it


def test_side_that_ends_well_leaves_its_result(run, tmp_path):
    result = run("end")
    assert result["status"] == "done"
    assert result["measured"] == 7
    assert "log" not in result
    assert json.loads((tmp_path / "ours.json").read_text("utf-8")) == result


def test_what_a_side_measured_before_it_failed_is_kept(run):
    result = run("fail")
    assert result["status"] == "failed with code 1"
    assert result["measured"] == 7
    assert "ValueError: no memory left" in result["log"]


def test_side_that_hangs_is_stopped(run):
    result = run("hang", seconds=1.0)
    assert result["status"] == "stopped after 1 s"
    assert result["measured"] == 7
    assert result["process_seconds"] < 10


def test_earlier_result_is_not_taken_for_that_of_a_side_that_measures_nothing(
    run, benchmark_module, tmp_path
):
    run("end")
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit(3)")
    result = benchmark_module("harness.sides").run_side(failing, {}, tmp_path, "ours", 30.0)
    assert result["status"] == "failed with code 3"
    assert "measured" not in result
