"""A run that is stopped ends all its processes and leaves no unfinished output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_runs import is_gone, wait_until

SCRIPT = Path(__file__).resolve().with_name("run_to_be_stopped.py")
STARTED_SECONDS = 30.0


def set_signals(ignored):
    """Handle signals as in a terminal: background jobs of a shell without one ignore Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)


class Run:
    """A run in its own process, whose node hangs while it saves and has started a child."""

    def __init__(self, folder, environment, way, ignoring=None):
        self.folder = folder
        (folder / "tmp").mkdir()
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder), way],
                env={**environment, "TMPDIR": str(folder / "tmp")},
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=lambda: set_signals(ignoring),
            )
        self.wait = self.process.wait

    def has_begun(self, way):
        return (self.folder / "here").exists() if way == "alone" else len(self.pids()) == 2

    def pids(self):
        """Return the process ids of the node and its child, as far as they have started."""
        path = self.folder / "pids"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def end(self, number, *, group=False):
        """Send a signal to the run's process, or as a terminal does to its whole group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def output(self):
        return (self.folder / "output").read_text()

    def processes_are_gone(self):
        return wait_until(lambda: all(map(is_gone, self.pids())), 5.0)

    def clean_up(self):
        for pid in [self.process.pid, *self.pids()]:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        self.wait()


@pytest.fixture
def start(tmp_path, subprocess_environment):
    """Return a function that starts a run and returns once it hangs."""
    runs = []

    def start_one(way, **arguments):
        run = Run(tmp_path, subprocess_environment, way, **arguments)
        runs.append(run)
        assert wait_until(lambda: run.has_begun(way), STARTED_SECONDS), run.output()
        return run

    yield start_one
    for one in runs:
        one.clean_up()


def check_stopped(run, code=-signal.SIGINT, seconds=20.0):
    assert run.wait(seconds) == code
    assert run.processes_are_gone(), "no process outlives the run"
    assert not (run.folder / "twice.txt").exists()
    assert not list((run.folder / "tmp").glob("cuda-runner-*"))


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGINT, False, -signal.SIGINT),
        (signal.SIGINT, True, -signal.SIGINT),
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
        (signal.SIGHUP, False, 128 + signal.SIGHUP),
    ],
)
def test_signal(number, group, code, start):
    run = start("gpu")
    run.end(number, group=group)
    check_stopped(run, code)
    message = "Stopping. Running: 'train'; unfinished outputs are removed. Resume with: kedro run"
    assert message in " ".join(run.output().split())


def test_aborted_on_the_command_line(start):
    run = start("command")
    run.end(signal.SIGINT, group=True)
    check_stopped(run, 1)
    assert run.output().rstrip().endswith("Aborted!")
    assert "Traceback" not in run.output()


def test_processes_end_with_a_killed_runner(start):
    run = start("gpu")
    run.end(signal.SIGKILL)
    assert run.wait(20.0) == -signal.SIGKILL
    assert run.processes_are_gone()


def test_node_here_is_stopped_with_the_one_beside_it(start):
    run = start("here")
    assert wait_until(lambda: (run.folder / "here").exists())
    run.end(signal.SIGINT, group=True)
    check_stopped(run)


def test_only_a_node_here(start):
    run = start("alone")
    run.end(signal.SIGTERM)
    assert run.wait(20.0) == 128 + signal.SIGTERM


def test_stubborn_process_is_killed_after_a_while(start):
    run = start("stubborn")
    started = time.monotonic()
    run.end(signal.SIGINT, group=True)
    check_stopped(run)
    assert time.monotonic() - started > 1.0


def test_second_request_kills_at_once(start):
    run = start("stubborn for long")
    run.end(signal.SIGINT, group=True)
    assert wait_until(lambda: "Stopping." in run.output())
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(1.0)
    run.end(signal.SIGINT, group=True)
    check_stopped(run, seconds=3.0)


def test_second_request_while_stopping(start):
    run = start("interrupted again")
    run.end(signal.SIGINT, group=True)
    check_stopped(run)


def test_ignored_signal_stays_ignored(start):
    """As under ``nohup``."""
    run = start("gpu", ignoring=signal.SIGHUP)
    run.end(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(1.5)
    assert not any(is_gone(pid) for pid in run.pids())
