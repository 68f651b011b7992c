import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from fake_devices import GB, FakeDevices, allocate, free
from gpu_runs import wait_until

from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.monitor import Usage, Watch

INTERVAL_SECONDS = 0.01
MB = 10**6


@pytest.fixture
def layer(tmp_path):
    return FakeDevices(tmp_path)


@pytest.fixture
def silent(tmp_path):
    """A layer that does not know the memory of single processes."""
    return FakeDevices(tmp_path, tells_processes=False)


def watch(layer, devices=None, pids=None, *, shared=False):
    devices = layer.find()[:1] if devices is None else devices
    started = Watch(layer, devices, pids or (lambda: [os.getpid()]), INTERVAL_SECONDS)
    if shared:
        started.share()
    return started


def sampling_threads():
    return [thread for thread in threading.enumerate() if thread.name == "gpu-monitor"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
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
        watching = watch(counting, shared=True)
        allocate(layer.folder, uuid, 6)
        counting.wait()
        free(layer.folder, uuid)
        allocate(layer.folder, uuid, 2)
        counting.wait()
        # memory from before the start is the process's too
        assert watching.stop().peak_bytes == 7 * GB

    def test_highest_of_one_device_not_the_sum(self, layer):
        devices = layer.find()
        watching = watch(layer, devices)
        allocate(layer.folder, devices[0].uuid, 3)
        allocate(layer.folder, devices[1].uuid, 5)
        assert watching.stop().peak_bytes == 5 * GB

    @pytest.mark.parametrize(("shared", "expected"), [(False, 4 * GB), (True, None)])
    def test_where_the_driver_does_not_know_processes(self, silent, shared, expected):
        device = silent.find()[0]
        allocate(silent.folder, device.uuid, 10)  # stands for another user's
        watching = watch(silent, shared=shared)
        allocate(silent.folder, device.uuid, 4)
        usage = watching.stop()
        assert usage.peak_bytes == expected
        assert usage.levels == ({} if shared else {device: 10 * GB})

    @pytest.mark.parametrize(("shared", "expected"), [(False, 4 * GB), (True, None)])
    def test_of_the_device_over_time(self, silent, shared, expected):
        counting, uuid = Counting(silent), silent.find()[0].uuid
        watching = watch(counting)
        allocate(silent.folder, uuid, 4)
        counting.wait()
        if shared:
            watching.share()
            counting.wait()
        free(silent.folder, uuid)
        assert watching.stop().peak_bytes == expected

    def test_below_the_level_at_the_start_is_nothing(self, silent):
        uuid = silent.find()[0].uuid
        allocate(silent.folder, uuid, 10)
        watching = watch(silent)
        free(silent.folder, uuid)
        assert watching.stop().peak_bytes == 0

    def test_processes_count_before_the_device(self, layer):
        device = layer.find()[0]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            watching = watch(layer, pids=lambda: [child.pid])
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

        layer = Silent(tmp_path, utilization_percent=None, tells_processes=False)
        usage = watch(layer, layer.find()).stop()
        assert (usage.peak_bytes, usage.mean_utilization_percent, usage.levels) == (None, None, {})

    def test_without_devices(self, layer):
        usage = watch(layer, []).stop()
        assert (usage.peak_bytes, usage.mean_utilization_percent) == (None, None)
        assert usage.host_peak_bytes > 10 * MB


class TestUtilization:
    def test_mean_of_devices(self, layer):
        # 50 and 51
        usage = watch(layer, layer.find()).stop()
        assert usage.mean_utilization_percent == pytest.approx(50.5)

    def test_mean_over_time(self, layer):
        counting = Counting(layer)
        layer.percent = 0
        watching = watch(counting)
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


class TestHost:
    @pytest.fixture
    def start(self):
        """Return a function that starts a process with as many generations of children."""
        started = []

        def start(depth):
            command = [sys.executable, "-c", CHILD, str(depth), CHILD]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            started[-1].stdout.readline()
            return started[-1].pid

        yield start
        for process in started:
            process.communicate()

    def test_processes_and_their_children(self, layer, start):
        pid = start(2)
        three = watch(layer, [], lambda: [pid]).stop().host_peak_bytes
        alone = psutil.Process(pid).memory_info().rss
        # the child and its child hold as much again
        assert alone + 120 * MB < three < 3 * alone + 30 * MB

    def test_process_that_is_given_twice_counts_once(self, layer, start):
        # this process is the other one's parent
        pids = [os.getpid(), start(0)]
        twice = watch(layer, [], lambda: pids).stop().host_peak_bytes
        assert twice < sum(psutil.Process(pid).memory_info().rss for pid in pids) + 30 * MB


class TestThread:
    def test_samples_until_stopped(self, layer):
        counting = Counting(layer)
        watching = watch(counting)
        (thread,) = sampling_threads()
        assert thread.daemon
        counting.wait(5)
        watching.stop()
        seen = counting.samples
        time.sleep(5 * INTERVAL_SECONDS)
        assert counting.samples == seen

    @pytest.mark.parametrize(
        "error", [CudaRunnerError("lost"), psutil.NoSuchProcess(1), OSError(), RuntimeError()]
    )
    def test_failing_sample_is_skipped(self, layer, error):
        counting = Counting(layer)
        counting.error = error
        watching = watch(counting, shared=True)
        counting.wait()
        counting.error = None
        allocate(layer.folder, layer.find()[0].uuid, 3)
        counting.wait()
        assert watching.stop().peak_bytes == 3 * GB

    def test_failing_first_level(self, tmp_path):
        class Lost(FakeDevices):
            def used_bytes(self, device):
                raise CudaRunnerError("lost")

        assert watch(Lost(tmp_path, tells_processes=False)).stop().peak_bytes is None

    @pytest.mark.parametrize("is_waited_for", [False, True])
    def test_processes_that_are_gone(self, layer, is_waited_for):
        process = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if is_waited_for:
            process.wait()
        watching = watch(layer, pids=lambda: [process.pid])
        # the device's total use is not sampled either: others may use it by now
        allocate(layer.folder, layer.find()[0].uuid, 3)
        assert watching.stop() == Usage(None, None, 0, {layer.find()[0]: 0})
        process.wait()

    def test_processes_that_come_later(self, layer):
        pids = []
        watching = watch(layer, pids=lambda: pids, shared=True)
        pids.append(os.getpid())
        allocate(layer.folder, layer.find()[0].uuid, 3)
        assert watching.stop().peak_bytes == 3 * GB

    def test_several_at_once(self, layer):
        allocate(layer.folder, layer.find()[0].uuid, 2)
        watches = [watch(layer, shared=True) for _ in range(8)]
        assert [one.stop().peak_bytes for one in watches] == [2 * GB] * 8
