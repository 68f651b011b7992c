import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from fake_devices import GB, FakeDevices, allocate, free

from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.monitor import Monitor, Usage

INTERVAL_SECONDS = 0.01
MB = 10**6


@pytest.fixture
def layer(tmp_path):
    return FakeDevices(tmp_path)


@pytest.fixture
def monitor(layer):
    return Monitor(layer, INTERVAL_SECONDS)


def here():
    return [os.getpid()]


def sampling_threads():
    return [thread for thread in threading.enumerate() if thread.name == "gpu-monitor"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert sampling_threads() == []


def wait_until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class Counting:
    """Passes on to a layer, counting how often it samples a device."""

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
        wait_until(lambda: self.samples >= seen + count)


class TestPeak:
    def test_of_the_processes(self, layer):
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        device = layer.find()[0]
        allocate(layer.folder, device.uuid, 1)
        monitor.watch("train", [device], here)
        monitor.share("train")
        allocate(layer.folder, device.uuid, 6)
        counting.wait()
        free(layer.folder, device.uuid)
        allocate(layer.folder, device.uuid, 2)
        counting.wait()
        # what was there at the start is the process's too
        assert monitor.stop("train").peak_bytes == 7 * GB

    def test_is_the_highest_of_one_device_not_the_sum(self, layer, monitor):
        devices = layer.find()
        monitor.watch("train", devices, here)
        allocate(layer.folder, devices[0].uuid, 3)
        allocate(layer.folder, devices[1].uuid, 5)
        assert monitor.stop("train").peak_bytes == 5 * GB

    @pytest.mark.parametrize(("exclusive", "expected"), [(True, 4 * GB), (False, None)])
    def test_where_the_driver_does_not_know_processes(self, tmp_path, exclusive, expected):
        layer = FakeDevices(tmp_path, tells_processes=False)
        monitor = Monitor(layer, INTERVAL_SECONDS)
        device = layer.find()[0]
        allocate(tmp_path, device.uuid, 10)  # stands for another user's
        monitor.watch("train", [device], here)
        if not exclusive:
            monitor.share("train")
        allocate(tmp_path, device.uuid, 4)
        assert monitor.stop("train").peak_bytes == expected

    def test_of_the_device_over_time(self, tmp_path):
        layer = FakeDevices(tmp_path, tells_processes=False)
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        device = layer.find()[0]
        monitor.watch("train", [device], here)
        allocate(tmp_path, device.uuid, 4)
        counting.wait()
        free(tmp_path, device.uuid)
        assert monitor.stop("train").peak_bytes == 4 * GB

    def test_below_the_level_at_the_start_is_nothing(self, tmp_path):
        layer = FakeDevices(tmp_path, tells_processes=False)
        monitor = Monitor(layer, INTERVAL_SECONDS)
        device = layer.find()[0]
        allocate(tmp_path, device.uuid, 10)
        monitor.watch("train", [device], here)
        free(tmp_path, device.uuid)
        assert monitor.stop("train").peak_bytes == 0

    def test_shared_from_some_moment_on(self, tmp_path):
        layer = FakeDevices(tmp_path, tells_processes=False)
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        device = layer.find()[0]
        monitor.watch("train", [device], here)
        allocate(tmp_path, device.uuid, 4)
        counting.wait()
        monitor.share("train")
        counting.wait()
        assert monitor.stop("train").peak_bytes is None
        # whoever learns late of its end
        monitor.share("train")

    def test_processes_count_before_the_device(self, layer, monitor):
        device = layer.find()[0]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            monitor.watch("train", [device], lambda: [child.pid])
            path = layer.folder / device.uuid / str(child.pid)
            path.write_text(f"[{2 * GB}, {psutil.Process(child.pid).create_time()}]")
            allocate(layer.folder, device.uuid, 6)  # stands for another user's
            assert monitor.stop("train").peak_bytes == 2 * GB
        finally:
            child.communicate(b"\n")

    def test_nothing_known(self, tmp_path):
        class Silent(FakeDevices):
            def used_bytes(self, device):
                return None

        layer = Silent(tmp_path, utilization_percent=None, tells_processes=False)
        monitor = Monitor(layer, INTERVAL_SECONDS)
        monitor.watch("train", layer.find(), here)
        usage = monitor.stop("train")
        assert usage.peak_bytes is None
        assert usage.mean_utilization_percent is None

    def test_without_devices(self, monitor):
        monitor.watch("filter", [], here)
        usage = monitor.stop("filter")
        assert (usage.peak_bytes, usage.mean_utilization_percent) == (None, None)
        assert usage.host_peak_bytes > 10 * MB


class TestUtilization:
    def test_mean_of_devices(self, layer, monitor):
        # 50 and 51
        monitor.watch("train", layer.find(), here)
        monitor.share("train")
        assert monitor.stop("train").mean_utilization_percent == pytest.approx(50.5)

    def test_mean_over_time(self, layer):
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        layer.percent = 0
        monitor.watch("train", layer.find()[:1], here)
        monitor.share("train")
        counting.wait()
        layer.percent = 100
        counting.wait()
        assert 0 < monitor.stop("train").mean_utilization_percent < 100


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
    def test_processes_and_their_children(self, layer, monitor):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, "2", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            process.stdout.readline()
            monitor.watch("train", [], lambda: [process.pid])
            three = monitor.stop("train").host_peak_bytes
            alone = psutil.Process(process.pid).memory_info().rss
            # the child and its child hold as much again
            assert alone + 120 * MB < three < 3 * alone + 30 * MB
        finally:
            process.communicate()

    def test_process_that_is_given_twice_counts_once(self, monitor):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, "0", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            process.stdout.readline()
            # this process is the other one's parent
            monitor.watch("twice", [], lambda: [os.getpid(), process.pid])
            twice = monitor.stop("twice").host_peak_bytes
            both = [psutil.Process(pid).memory_info().rss for pid in (os.getpid(), process.pid)]
            assert twice < sum(both) + 30 * MB
        finally:
            process.communicate()


class TestThread:
    def test_lives_while_anything_is_watched(self, monitor):
        assert sampling_threads() == []
        monitor.watch("one", [], here)
        (thread,) = sampling_threads()
        assert thread.daemon
        monitor.watch("two", [], here)
        assert sampling_threads() == [thread]
        monitor.stop("one")
        assert sampling_threads() == [thread]
        monitor.stop("two")
        assert sampling_threads() == []
        monitor.watch("three", [], here)
        assert len(sampling_threads()) == 1
        monitor.stop("three")

    def test_samples_again_and_again(self, layer):
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        monitor.watch("train", layer.find()[:1], here)
        monitor.share("train")
        counting.wait(5)
        monitor.stop("train")
        seen = counting.samples
        time.sleep(5 * INTERVAL_SECONDS)
        assert counting.samples == seen

    @pytest.mark.parametrize(
        "error", [CudaRunnerError("lost"), psutil.NoSuchProcess(1), OSError(), RuntimeError()]
    )
    def test_failing_sample_is_skipped(self, layer, error):
        counting = Counting(layer)
        monitor = Monitor(counting, INTERVAL_SECONDS)
        device = layer.find()[0]
        counting.error = error
        monitor.watch("train", [device], here)
        monitor.share("train")
        counting.wait()
        counting.error = None
        allocate(layer.folder, device.uuid, 3)
        counting.wait()
        assert monitor.stop("train").peak_bytes == 3 * GB

    def test_failing_first_level(self, tmp_path):
        class Lost(FakeDevices):
            def used_bytes(self, device):
                raise CudaRunnerError("lost")

        layer = Lost(tmp_path, tells_processes=False)
        monitor = Monitor(layer, INTERVAL_SECONDS)
        monitor.watch("train", layer.find(), here)
        assert monitor.stop("train").peak_bytes is None

    def test_failing_list_of_processes(self, monitor):
        def closed():
            raise ValueError("process object is closed")

        monitor.watch("train", [], closed)
        assert monitor.stop("train") == Usage(None, None, 0)

    @pytest.mark.parametrize("is_waited_for", [False, True])
    def test_processes_that_are_gone(self, layer, monitor, is_waited_for):
        process = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if is_waited_for:
            process.wait()
        monitor.watch("train", layer.find(), lambda: [process.pid])
        # not even the device's level is taken: others may use it by now
        allocate(layer.folder, layer.find()[0].uuid, 3)
        assert monitor.stop("train") == Usage(None, None, 0)
        process.wait()

    def test_processes_that_come_later(self, layer, monitor):
        device = layer.find()[0]
        pids = []
        monitor.watch("train", [device], lambda: pids)
        monitor.share("train")
        pids.append(os.getpid())
        allocate(layer.folder, device.uuid, 3)
        assert monitor.stop("train").peak_bytes == 3 * GB


def test_watching_twice_is_an_error(monitor):
    monitor.watch("train", [], here)
    with pytest.raises(ValueError, match="'train' is watched already"):
        monitor.watch("train", [], here)
    monitor.stop("train")
    with pytest.raises(KeyError):
        monitor.stop("train")


def test_many_watches_from_many_threads(layer, monitor):
    device = layer.find()[0]
    allocate(layer.folder, device.uuid, 2)
    peaks = []

    def watch_often(name):
        for turn in range(10):
            monitor.watch(f"{name}-{turn}", [device], here)
            monitor.share(f"{name}-{turn}")
            peaks.append(monitor.stop(f"{name}-{turn}").peak_bytes)

    threads = [threading.Thread(target=watch_often, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peaks == [2 * GB] * 40
