import json
import sys

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


@pytest.fixture(scope="module")
def sides(benchmark_module):
    return benchmark_module("harness.sides")


@pytest.fixture
def run(sides, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run_it(then, seconds=30.0):
        return sides.run_side(program, {"number": 7, "then": then}, tmp_path, "ours", seconds)

    return run_it


def test_result_of_a_side_is_returned_and_kept(run, tmp_path):
    result = run("end")
    assert result["status"] == "done"
    assert result["measured"] == 7
    assert "log" not in result
    assert json.loads((tmp_path / "ours.json").read_text("utf-8")) == result


def test_figures_from_before_a_failure_are_kept(run):
    result = run("fail")
    assert result["status"] == "failed with code 1"
    assert result["measured"] == 7
    assert "ValueError: no memory left" in result["log"]


def test_side_that_hangs_is_stopped(run):
    result = run("hang", seconds=1.0)
    assert result["status"] == "stopped after 1 s"
    assert result["measured"] == 7
    assert result["process_seconds"] < 10


def test_earlier_result_is_not_used_for_a_failed_side(run, sides, tmp_path):
    run("end")
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit(3)")
    result = sides.run_side(failing, {}, tmp_path, "ours", 30.0)
    assert result["status"] == "failed with code 3"
    assert "measured" not in result


def test_settings_change_one_side_and_may_add_one(sides):
    new = {"steps": None, "memory_gb": 24, "changes": {}}
    known = {"ours": new, "ours-24gb": {**new, "steps": 3}}
    settings = ["ours:a.b=4096", "ours-24gb:memory_gb=null", "ours-8k:steps=2", "ours-8k:c=x"]
    assert sides.apply_settings(known, settings, new) == {
        "ours": {"steps": None, "memory_gb": 24, "changes": {"a.b": 4096}},
        "ours-24gb": {"steps": 3, "memory_gb": None, "changes": {}},
        "ours-8k": {"steps": 2, "memory_gb": 24, "changes": {"c": "x"}},
    }
    assert new["changes"] == {}
    with pytest.raises(SystemExit, match="give SIDE:NAME=VALUE"):
        sides.apply_settings(known, ["ours:steps"], new)


def test_unknown_side_is_named(sides):
    assert sides.choose("b,,a", "ab") == ["b", "a"]
    with pytest.raises(SystemExit, match=r"unknown sides: c\. Known are a, b"):
        sides.choose("a,c", "ab")


def test_memory_of_a_commands_child_is_measured(benchmark_module):
    code = "x = bytearray(50_000_000)\nprint(len(x), flush=True)\nimport time; time.sleep(0.3)"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])\n"
    measure = benchmark_module("harness.memory").run_measured
    usage, printed = measure([sys.executable, "-c", child])
    assert printed == "50000000\n"
    assert 50 < usage.private_mb < usage.resident_mb + 1
    with pytest.raises(SystemExit, match="failed"):
        measure([sys.executable, "-c", "raise ValueError"])


def test_table_shows_nested_figures_and_dashes(benchmark_module, capsys):
    rows = {"ours": {"n": 1.25, "memory": {"gb": 3}}, "theirs": {"memory": None}}
    columns = {"number": "n:.1f", "GB": "memory.gb"}
    benchmark_module("harness.recording").print_table(rows, columns, "side")
    assert capsys.readouterr().out.split("\n") == [
        "",
        "side    number  GB",
        "ours       1.2   3",
        "theirs       -   -",
        "",
    ]
