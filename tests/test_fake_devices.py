import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_devices import FakeDevices, OutOfMemoryError, allocate, free

ALLOCATING = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_devices import allocate
allocate(sys.argv[2], "GPU-fake-0", 5)
print("allocated", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(tmp_path):
    """Return a process that has allocated 5 GB on the first device."""
    FakeDevices(tmp_path)
    tests = Path(__file__).resolve().parent
    process = subprocess.Popen(
        [sys.executable, "-c", ALLOCATING, str(tests), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "allocated\n"
    yield process
    process.kill()
    process.communicate()


class TestFakeDevices:
    def test_memory_of_a_child_is_used_until_its_end(self, tmp_path, child):
        layer = FakeDevices(tmp_path)
        one, other = layer.find()
        assert layer.used_bytes(one) == 5e9
        assert layer.free_bytes(one) == 19e9
        assert layer.used_bytes(other) == 0
        assert layer.process_bytes(one, {child.pid}) == 5e9
        assert layer.process_bytes(other, {child.pid}) is None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # a zombie, which has no memory any more
        assert layer.used_bytes(one) == 0

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
