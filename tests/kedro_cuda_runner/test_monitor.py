import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from fake_devices import GB, FakeDevices, allocate, free
from gpu_runs import wait_until

from kedro_cuda_runner import monitor
from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.report import NodeRecord

MB = 10**6


@pytest.fixture
def layer(tmp_path):
    return FakeDevices(tmp_path)


@pytest.fixture
def silent(tmp_path):
    """A layer that does not know the memory of single processes."""
    return FakeDevices(tmp_path, lists_processes=False)


class Watch(monitor.Watch):
    """Watches this process on the first device, and returns the record."""

    def __init__(self, layer, devices=None, pid=os.getpid, *, shared=False):
        devices = layer.find()[:1] if devices is None else devices
        super().__init__(layer, devices, pid, NodeRecord("train"))
        if shared:
            self.share()

    def stop(self):
        super().stop()
        return self._record


def sampling_threads():
    return [thread for thread in threading.enumerate() if thread.name == "gpu-monitor"]


@pytest.fixture(autouse=True)
def _fast_and_no_thread_is_left(monkeypatch):
    monkeypatch.setattr(monitor, "INTERVAL_SECONDS", 0.01)
    yield
    assert sampling_threads() == []


class Counting:
    """Passes calls on to a layer and counts the samples of a device."""

    def __init__(self, layer):
        self._layer = layer
        self.samples = 0
        self.error = None

    def utilization_percent(self, device):
        self.samples += 1
        if self.error is not None:
            raise self.error
        return self._layer.utilization_percent(device)

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def wait(self, count=2):
        seen = self.samples
        assert wait_until(lambda: self.samples >= seen + count, 20)


class TestPeak:
    def test_of_the_processes(self, layer):
        counting, uuid = Counting(layer), layer.find()[0].uuid
        allocate(layer.folder, uuid, 1)
        watching = Watch(counting, shared=True)
        allocate(layer.folder, uuid, 6)
        counting.wait()
        free(layer.folder, uuid)
        allocate(layer.folder, uuid, 2)
        counting.wait()
        # memory from before the start is the process's too
        assert watching.stop().peak_bytes == 7 * GB

    def test_highest_of_one_device_not_the_sum(self, layer):
        devices = layer.find()
        watching = Watch(layer, devices)
        allocate(layer.folder, devices[0].uuid, 3)
        allocate(layer.folder, devices[1].uuid, 5)
        assert watching.stop().peak_bytes == 5 * GB

    @pytest.mark.parametrize("shared", [False, True])
    def test_where_the_driver_does_not_know_processes(self, silent, shared):
        counting, device = Counting(silent), silent.find()[0]
        allocate(silent.folder, device.uuid, 10)  # stands for another user's
        watching = Watch(counting)
        allocate(silent.folder, device.uuid, 4)
        counting.wait()
        if shared:
            watching.share()
            counting.wait()
        free(silent.folder, device.uuid)
        assert watching.stop().peak_bytes == (None if shared else 4 * GB)
        assert watching.levels == ({} if shared else {device: 10 * GB})

    def test_below_the_level_at_the_start_is_nothing(self, silent):
        uuid = silent.find()[0].uuid
        allocate(silent.folder, uuid, 10)
        watching = Watch(silent)
        free(silent.folder, uuid)
        assert watching.stop().peak_bytes == 0

    def test_processes_count_before_the_device(self, layer):
        device = layer.find()[0]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            watching = Watch(layer, pid=lambda: child.pid)
            path = layer.folder / device.uuid / str(child.pid)
            path.write_text(f"[{2 * GB}, {psutil.Process(child.pid).create_time()}]")
            allocate(layer.folder, device.uuid, 6)  # stands for another user's
            assert watching.stop().peak_bytes == 2 * GB
        finally:
            child.communicate(b"\n")

    def test_nothing_known(self, tmp_path):
        class Silent(FakeDevices):
            def used_bytes(self, device):
                return None

        layer = Silent(tmp_path, utilization_percent=None, lists_processes=False)
        watching = Watch(layer, layer.find())
        record = watching.stop()
        assert (record.peak_bytes, record.mean_utilization_percent) == (None, None)
        assert watching.levels == {}

    def test_without_devices(self, layer):
        usage = Watch(layer, []).stop()
        assert (usage.peak_bytes, usage.mean_utilization_percent) == (None, None)
        assert usage.host_peak_bytes > 10 * MB


class TestUtilization:
    def test_mean_of_devices(self, layer):
        # 50 and 51
        usage = Watch(layer, layer.find()).stop()
        assert usage.mean_utilization_percent == pytest.approx(50.5)

    def test_mean_over_time(self, layer):
        counting = Counting(layer)
        layer.percent = 0
        watching = Watch(counting)
        counting.wait()
        layer.percent = 100
        counting.wait()
        assert 0 < watching.stop().mean_utilization_percent < 100


CHILD = """
import subprocess, sys
depth = int(sys.argv[1])
if depth > 0:
    child = subprocess.Popen(
        [sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    child.stdout.readline()
held = bytearray(b"1") * 60_000_000
print("ready", flush=True)
sys.stdin.read()
"""


def test_host_memory_of_process_and_children(layer):
    command = [sys.executable, "-c", CHILD, "2", CHILD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    three = Watch(layer, [], lambda: process.pid).stop().host_peak_bytes
    alone = psutil.Process(process.pid).memory_info().rss
    process.communicate()
    # the child and its child hold as much again
    assert alone + 120 * MB < three < 3 * alone + 30 * MB


class TestThread:
    def test_samples_until_stopped(self, layer):
        counting = Counting(layer)
        watching = Watch(counting)
        (thread,) = sampling_threads()
        assert thread.daemon
        counting.wait(5)
        watching.stop()
        seen = counting.samples
        time.sleep(0.05)
        assert counting.samples == seen

    @pytest.mark.parametrize(
        "error", [CudaRunnerError("lost"), psutil.NoSuchProcess(1), OSError(), RuntimeError()]
    )
    def test_failing_sample_is_skipped(self, layer, error):
        counting = Counting(layer)
        counting.error = error
        watching = Watch(counting, shared=True)
        counting.wait()
        counting.error = None
        allocate(layer.folder, layer.find()[0].uuid, 3)
        counting.wait()
        assert watching.stop().peak_bytes == 3 * GB

    def test_failing_first_level(self, tmp_path):
        class Lost(FakeDevices):
            def used_bytes(self, device):
                raise CudaRunnerError("lost")

        assert Watch(Lost(tmp_path, lists_processes=False)).stop().peak_bytes is None

    @pytest.mark.parametrize("is_waited_for", [False, True])
    def test_processes_that_are_gone(self, layer, is_waited_for):
        process = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if is_waited_for:
            process.wait()
        watching = Watch(layer, pid=lambda: process.pid)
        # the device's total use is not sampled either: others may use it by now
        allocate(layer.folder, layer.find()[0].uuid, 3)
        assert watching.stop() == NodeRecord("train")
        assert watching.levels == {layer.find()[0]: 0}
        process.wait()
