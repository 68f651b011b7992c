"""Processes that are forked behave as started ones, and are found and killed by their project."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# instead of Kedro and of the worker of a node
SERVER = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from benchmarks.faults import warm_server

def run(argv):
    print("here", os.getcwd(), os.environ["NAME"], flush=True)
    if argv[0] == "sleep":
        time.sleep(60)
    if argv[0] == "fail":
        raise ValueError("this failed")
    return int(argv[0])

warm_server._run = run
warm_server.Server(sys.argv[2]).serve()
"""


@pytest.fixture
def start(benchmark_module, tmp_path):
    """Return a function that starts a process in a project and returns it with its output."""
    warm_server = benchmark_module("faults.warm_server")
    address = tmp_path / "server"
    command = [sys.executable, "-c", SERVER, str(REPOSITORY), str(address)]
    project = tmp_path / "project"
    project.mkdir()

    def start_it(*argv):
        log = tmp_path / "log"
        with log.open("wb") as output:
            files = [output.fileno(), output.fileno()]
            process = warm_server.Process(
                str(address), argv, files, str(project), {"NAME": "a trial"}
            )
        return process, log

    with subprocess.Popen(command) as server:
        while not address.exists():
            time.sleep(0.02)
        yield start_it
        server.kill()


def test_exit_status_output_folder_and_environment(start, tmp_path):
    process, log = start("3")
    assert process.wait(10) == process.poll() == 3
    assert log.read_text() == f"here {tmp_path}/project a trial\n"


def test_an_exception_is_printed(start):
    process, log = start("fail")
    assert process.wait(10) == 1
    assert "ValueError: this failed" in log.read_text()


def test_processes_of_a_project_are_killed(start, benchmark_module, tmp_path):
    processes = benchmark_module("faults.processes")
    process, _ = start("sleep")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    while list(processes.processes_in(tmp_path / "project")) != [process.pid]:
        time.sleep(0.02)
    processes.kill_all(tmp_path / "project")
    assert process.wait(10) == -9
    assert processes.wait_for_orphans(tmp_path / "project", seconds=0)
