"""A process dies at the moment that is aimed at."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sqlite3, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.faults import aimed
aimed.install()
data = Path(sys.argv[2])
(data / "before.json").write_text("before")
new = data / ".adapter.0a1b2c3d.new"
new.mkdir()
(new / "config.json").write_text("0123456789")
new.rename(data / "adapter")
(data / "mlflow").mkdir()
sqlite3.connect(data / "mlflow/mlflow.db").close()
(data / "after.json").write_text("after")
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the program and returns its exit status and its files."""
    data = tmp_path / "data"
    data.mkdir()

    def run_it(kind, target, *, size=0, victims="all", runner=None):
        aim = {"kind": kind, "target": target, "size": size, "victims": victims}
        aim |= {"data": str(data), "armed": str(tmp_path / "armed")}
        environment = {**os.environ, "JA_FAULTS_AIM": json.dumps(aim)}
        if runner is not None:
            environment["JA_FAULTS_RUNNER"] = str(runner)
        command = [sys.executable, "-c", PROGRAM, str(REPOSITORY), str(data)]
        status = subprocess.run(command, env=environment, timeout=30, check=False).returncode
        files = {
            path.relative_to(data).as_posix(): path.read_text()
            for path in sorted(data.rglob("*.json"))
        }
        return status, files

    return run_it


def test_in_the_middle_of_a_write(run):
    status, files = run("write", "adapter/config.json", size=4)
    assert status == -signal.SIGXFSZ
    assert files == {"before.json": "before", ".adapter.0a1b2c3d.new/config.json": "0123"}


def test_before_a_rename(run):
    status, files = run("before_rename", "adapter/config.json")
    assert status == -signal.SIGKILL
    assert files == {"before.json": "before", ".adapter.0a1b2c3d.new/config.json": "0123456789"}


def test_after_a_rename(run):
    status, files = run("after_rename", "adapter/config.json")
    assert status == -signal.SIGKILL
    assert files == {"before.json": "before", "adapter/config.json": "0123456789"}


def test_the_store_is_only_reported(run, tmp_path):
    status, files = run("store", "mlflow/mlflow.db")
    assert status == 0
    assert (tmp_path / "armed").read_text().isdigit()
    assert "after.json" in files


def test_a_moment_that_does_not_come(run, tmp_path):
    assert run("write", "report.json")[0] == 0
    assert not (tmp_path / "armed").exists()


def test_the_runner_is_not_a_child(run):
    assert run("before_rename", "adapter", victims="child")[0] == 0


def test_a_child_dies_alone_or_with_its_runner_killed(run):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as runner:
        status, _ = run("before_rename", "adapter", victims="parent", runner=runner.pid)
        assert runner.wait(10) == -signal.SIGKILL
    assert status == 0
