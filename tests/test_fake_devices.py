import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_devices import FakeDevices, OutOfMemoryError, allocate, free

from kedro_cuda_runner.devices import NoDevicesError

ALLOCATING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_devices import allocate, free
allocate(sys.argv[2], "GPU-fake-0", 5)
print("has it", flush=True)
for line in sys.stdin:
    if line.strip() == "free":
        free(sys.argv[2], "GPU-fake-0")
        print("gave it back", flush=True)
"""


@pytest.fixture
def start_allocating():
    started = []

    def start(folder):
        tests = Path(__file__).resolve().parent
        process = subprocess.Popen(
            [sys.executable, "-c", ALLOCATING, str(tests), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "has it\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TestFakeDevices:
    def test_child_s_memory_is_seen_until_it_is_dead(self, tmp_path, start_allocating):
        layer = FakeDevices(tmp_path)
        one, other = layer.find()
        process = start_allocating(tmp_path)
        assert layer.used_bytes(one) == 5e9
        assert layer.free_bytes(one) == 19e9
        assert layer.used_bytes(other) == 0
        assert layer.process_bytes(one, {process.pid}) == 5e9
        assert layer.process_bytes(other, {process.pid}) is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # a zombie still, which has no memory any more
        assert layer.used_bytes(one) == 0

    def test_child_gives_back(self, tmp_path, start_allocating):
        layer = FakeDevices(tmp_path)
        process = start_allocating(tmp_path)
        process.stdin.write("free\n")
        process.stdin.flush()
        assert process.stdout.readline() == "gave it back\n"
        assert layer.used_bytes(layer.find()[0]) == 0

    def test_allocations_add_up_to_what_there_is(self, tmp_path):
        layer = FakeDevices(tmp_path, memory_bytes=10e9)
        device = layer.find()[0]
        allocate(tmp_path, device.uuid, 4)
        allocate(tmp_path, device.uuid, 4)
        assert layer.used_bytes(device) == 8e9
        with pytest.raises(OutOfMemoryError, match="CUDA out of memory"):
            allocate(tmp_path, device.uuid, 4)
        free(tmp_path, device.uuid)
        assert layer.used_bytes(device) == 0

    def test_reused_process_id_is_another_process(self, tmp_path):
        layer = FakeDevices(tmp_path)
        device = layer.find()[0]
        (tmp_path / device.uuid / str(os.getpid())).write_text("[5, 1.0]")
        assert layer.used_bytes(device) == 0

    def test_no_devices(self, tmp_path):
        with pytest.raises(NoDevicesError):
            FakeDevices(tmp_path, count=0).find()

    def test_what_it_does_not_tell(self, tmp_path):
        layer = FakeDevices(tmp_path, utilization_percent=None, tells_processes=False)
        device = layer.find()[0]
        allocate(tmp_path, device.uuid, 1)
        assert layer.utilization_percent(device) is None
        assert layer.process_bytes(device, {os.getpid()}) is None
