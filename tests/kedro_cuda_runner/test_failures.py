"""The ways in which a node's process may fail, and what the run makes of them."""

import logging
import signal
import tempfile
import time

import click
import gpu_nodes
import pytest
from click.testing import CliRunner
from fake_devices import FakeDevices, OutOfMemoryError
from gpu_runs import Errors, gpu, run
from kedro.pipeline import node
from kedro_datasets.text import TextDataset

from kedro_cuda_runner import GpuNodeError, failures, node_process
from kedro_cuda_runner.failures import Ending
from kedro_cuda_runner.report import NodeRecord
from kedro_cuda_runner.transfer import StandInError

PLACE = "on cuda:0 (Fake GPU)"
PEAK = "GPU memory: peak 2.5 GB of 24.0 GB that were free (24.0 GB in all); the estimate was 3.0 GB"
COMMAND = "Resume with: kedro run"


def fail(way, layer, hooks=()):
    data = {"folder": str(layer.folder), "way": way}
    with pytest.raises(GpuNodeError) as caught:
        run([gpu(gpu_nodes.hold_and_fail, ["folder", "way"], "out", "train")], data, layer, hooks)
    return caught.value


ENDINGS = {
    "exception": ("exception", "failed with ValueError: this cannot be"),
    "usage error": ("exception", "failed: line 3: unknown key 'sytem'"),
    "unpicklable": ("exception", "failed with HoldsFunctionError: it holds a function"),
    "not unpicklable": ("exception", "failed with TwoPartsError: two parts"),
    "out of memory": ("out of memory", "ran out of GPU memory (OutOfMemoryError: CUDA out of"),
    "SIGKILL": ("killed", "was killed (SIGKILL)"),
    "SIGTERM": ("killed", "received SIGTERM from outside"),
    "real-time signal": ("killed", f"was killed (signal {signal.SIGRTMIN + 3})"),
    "segmentation fault": ("crashed", "crashed with a segmentation fault (SIGSEGV)"),
    "SIGABRT": ("crashed", "crashed (SIGABRT)"),
    "os._exit": ("exited", "ended its process (exit code 7) before it was done"),
    "sys.exit": ("exited", "ended its process (exit code 3) before it was done"),
}


@pytest.mark.parametrize("way", ENDINGS)
def test_each_failure_is_explained_and_reported_once(way, layer, caplog):
    errors = Errors()
    error = fail(way, layer, [errors])
    reason, what = ENDINGS[way]
    message = error.message
    assert (error.reason, error.node_name) == (reason, "train")
    assert message.startswith(f"node 'train' {what}")
    assert PLACE in message
    assert PEAK in message
    assert COMMAND in message.splitlines()[-1]
    assert "what was seen before" in caplog.messages
    for line in ("  | WARNING what was seen before\n", "  | last words\n"):
        assert (line in message) == (way != "usage error"), message
    assert ("remedy: lower the number of GB" in message) == (way == "out of memory")
    assert ("when the computer's memory runs out" in message) == (way == "SIGKILL")
    assert ("Fatal Python error: Segmentation fault" in message) == (way == "segmentation fault")
    assert ("Fatal Python error: Aborted" in message) == (way == "SIGABRT")
    tracebacks = [one for one in caplog.messages if one.startswith("'train' failed:\nTraceback")]
    assert len(tracebacks) == (reason in ("exception", "out of memory") and way != "usage error")
    assert all(", in hold_and_fail\n" in one for one in tracebacks)
    assert not any("kedro/pipeline/node.py" in one for one in tracebacks)
    [(name, error)] = errors.seen
    assert name == "train"
    expected = {
        "exception": ValueError,
        "usage error": click.UsageError,
        "out of memory": OutOfMemoryError,
        "unpicklable": StandInError,
        "not unpicklable": StandInError,
    }
    assert type(error) is expected.get(way, GpuNodeError)


def test_click_shows_the_message_alone(layer):
    @click.command()
    def command():
        data = {"folder": str(layer.folder), "way": "SIGKILL"}
        run([gpu(gpu_nodes.hold_and_fail, ["folder", "way"], "out", "train")], data, layer)

    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    shown = result.stderr[result.stderr.index("Error: ") :]
    assert shown.startswith("Error: node 'train' was killed (SIGKILL) on cuda:0")
    assert "Traceback" not in shown


class BrokenEnvironment(FakeDevices):
    """An environment in which a process fails to import a library."""

    def environment(self, devices):
        return {**super().environment(devices), "PYTHONPATH": str(self.folder / "broken")}


def test_process_that_dies_before_it_connects(tmp_path):
    layer = BrokenEnvironment(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "click.py").write_text("raise ImportError('this one is broken')")
    errors = Errors()
    with pytest.raises(GpuNodeError) as caught:
        run([gpu(gpu_nodes.double, "x", "y")], {"x": 1}, layer, [errors])
    assert caught.value.reason == "exited"
    assert "ended its process (exit code 1) before it was done" in caught.value.message
    assert "  | ImportError: this one is broken\n" in caught.value.message
    assert [error for _, error in errors.seen] == [caught.value]


def test_crash_after_the_node_is_done_is_a_warning(layer, caplog, tmp_path):
    errors = Errors()
    data = {"way": "crash", "y": TextDataset(filepath=str(tmp_path / "y.txt"))}
    run([gpu(gpu_nodes.fail_at_exit, "way", "y", "train")], data, layer, [errors])
    assert (tmp_path / "y.txt").read_text() == "kept"
    expected = "The process of 'train' ended with code -11 after its outputs were saved"
    assert expected in caplog.messages
    assert errors.seen == []


def test_process_that_never_ends_after_its_node_is_killed(layer, caplog, monkeypatch):
    monkeypatch.setattr(node_process, "EXIT_SECONDS", 0.3)
    hanging = gpu(gpu_nodes.fail_at_exit, "way", "y", "train")
    assert run([hanging], {"way": "hang"}, layer) == {"y": "kept"}
    expected = "The process of 'train' did not end within 0 s after its node; it was killed"
    assert expected in caplog.text


def test_process_ends_although_its_node_leaves_an_executor(layer, caplog, monkeypatch):
    monkeypatch.setattr(node_process, "EXIT_SECONDS", 3.0)
    node = gpu(gpu_nodes.leave_an_executor, "x", "y")
    assert run([node], {"x": 1}, layer) == {"y": 2}
    assert "did not end" not in caplog.text


def test_late_end_is_not_a_failure(layer, monkeypatch, tmp_path):
    """As if another thread held the interpreter while the process reports that it is done."""
    real_wait = node_process.wait

    def late_wait(*args, **kwargs):
        ready = real_wait(*args, **kwargs)
        if not ready:
            time.sleep(0.6)
        return ready

    monkeypatch.setattr(node_process, "wait", late_wait)
    data = {"x": 1, "y": TextDataset(filepath=str(tmp_path / "y.txt"))}
    run([gpu(gpu_nodes.pause, "x", "y")], data, layer)
    assert (tmp_path / "y.txt").read_text() == "awake"


def test_temporary_folder_with_a_long_path(layer, tmp_path, monkeypatch):
    """The path of a socket has at most 107 bytes."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert run([gpu(gpu_nodes.double, "x", "y")], {"x": 2}, layer) == {"y": 4}
    assert list(folder.iterdir()) == []


class TouchOn(logging.Handler):
    """Creates a file when a message comes."""

    def __init__(self, text, path):
        super().__init__()
        self._text = text
        self._path = path

    def emit(self, record):
        if self._text in record.getMessage():
            self._path.touch()


WAIT = gpu(gpu_nodes.touch_and_wait_for, ["started", "path"], "there", "wait_for")


class TestSeveralAtOnce:
    """One node fails while another runs; the other may finish."""

    @pytest.fixture
    def signal_file(self, tmp_path, monkeypatch):
        """Return a file that appears once a failure has been dealt with."""
        path = tmp_path / "failed"
        handler = TouchOn("no further node is started", path)
        monkeypatch.setattr(logging.getLogger("kedro_cuda_runner"), "handlers", [handler])
        return path

    def data(self, tmp_path, signal_file):
        names = ("there", "after_done", "gpu_after_done", "after_failed")
        files = {name: TextDataset(filepath=str(tmp_path / f"{name}.txt")) for name in names}
        return {"x": 1, "started": str(tmp_path / "started"), "path": str(signal_file), **files}

    def after(self, failed):
        """Return nodes that could run after the one that is done, or the one that failed."""
        return [
            node(gpu_nodes.double, "there", "after_done", name="after_done"),
            gpu(gpu_nodes.double, "there", "gpu_after_done", "gpu_after_done"),
            node(gpu_nodes.double, failed, "after_failed", name="after_failed"),
        ]

    @pytest.mark.parametrize(("kind", "error"), [(node, ValueError), (gpu, GpuNodeError)])
    def test_no_further_node_starts(self, layer, tmp_path, signal_file, caplog, kind, error):
        failing = kind(gpu_nodes.fail_when, "started", "failed", name="fail")
        errors = Errors()
        with pytest.raises(error, match="this failed") as caught:
            nodes = [WAIT, failing, *self.after("failed")]
            run(nodes, self.data(tmp_path, signal_file), layer, [errors])
        assert (tmp_path / "there.txt").read_text() == "there"
        assert list(tmp_path.glob("*after*")) == []
        assert (
            "'fail' failed; no further node is started. Still running: 'wait_for'; Ctrl-C stops "
            "them"
        ) in caplog.messages
        assert [name for name, _ in errors.seen] == ["fail"]
        # nodes that finished after the failure are not run again
        assert not any("No nodes ran" in one for one in caplog.messages)
        if kind is gpu:
            assert caught.value.node_name == "fail"
            assert caught.value.message.splitlines()[-1] == (
                "Resume with: kedro run --from-nodes=after_done,fail,gpu_after_done"
            )

    def test_first_error_counts(self, layer, tmp_path, signal_file, caplog):
        nodes = [
            WAIT,
            gpu(gpu_nodes.fail_when, "started", "failed"),
            node(gpu_nodes.fail_when, "path", "y", name="fail_here"),
        ]
        with pytest.raises(GpuNodeError, match="this failed"):
            run(nodes, self.data(tmp_path, signal_file), layer)
        assert "'fail_here' failed too: this failed" in caplog.messages


GPU_RECORD = NodeRecord("train", "cuda:0", device_bytes=24 * 10**9, available_bytes=10**10)


@pytest.mark.parametrize(
    ("ending", "record", "lines"),
    [
        (Ending(), NodeRecord("train", "CPU"), []),
        (
            Ending(),
            GPU_RECORD,
            ["  GPU memory: peak unknown of 10.0 GB that were free (24.0 GB in all)"],
        ),
        (
            Ending(last_lines=[str(number) for number in range(20)]),
            NodeRecord("train", "CPU"),
            ["  its last lines:", *(f"  | {number}" for number in range(10, 20))],
        ),
        (
            Ending(unfinished=["model", "report"]),
            NodeRecord("train", "CPU"),
            ["  'model', 'report' was not finished; the part that was written is removed"],
        ),
    ],
    ids=["no GPU memory without devices", "unknown peak", "last ten lines", "unfinished outputs"],
)
def test_explanation(ending, record, lines):
    ending.exit_code = 1
    message = failures.explain(ending, record, remedy="").message
    first = f"node 'train' ended its process (exit code 1) before it was done on {record.place}"
    assert message.splitlines() == [first, *lines]
