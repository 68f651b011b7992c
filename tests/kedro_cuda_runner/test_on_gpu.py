"""The runner on real CUDA devices."""

import functools

import cuda_nodes
import pytest
from gpu_runs import catalog_of, gpu
from gpu_runs import run as run_nodes
from kedro.framework.hooks import hook_impl
from kedro.pipeline import node, pipeline

from kedro_cuda_runner import CudaRunner, GpuNodeError
from kedro_cuda_runner.devices import default_layer

pytestmark = pytest.mark.gpu

GB = 10**9
# what the driver may keep for itself once a process has used the device
NEARLY_NOTHING = 0.1 * GB


@pytest.fixture(scope="module")
def layer():
    return default_layer()


@pytest.fixture(scope="module")
def devices(layer):
    return layer.find()


def run(nodes, **data):
    """Run without hooks, so that the runner itself shows the table; return the outputs."""
    outputs = CudaRunner().run(pipeline(nodes), catalog_of(data))
    return {name: dataset.load() for name, dataset in outputs.items()}


def gpu_node(function, inputs, output, resources=None):
    """Return a node that declares these resources."""
    declaring = functools.partial(function)
    declaring.gpu_resources = resources
    return gpu(declaring, inputs, output, output)


def test_peak_and_utilization_are_measured(shown_records):
    run([gpu_node(cuda_nodes.take, ["gb", "seconds"], "out", {"memory_gb": 3.5})], gb=3, seconds=2)
    record = shown_records["out"]
    assert 3 * GB < record.peak_bytes < 4.5 * GB
    assert record.estimated_bytes == 3.5 * GB
    assert record.mean_utilization_percent > 10
    assert record.place.startswith("cuda:0 (NVIDIA")


class TestMemoryComesBack:
    """It is free again before the next node starts, however the node ended."""

    @pytest.fixture
    def used(self, layer, devices):
        return lambda: layer.used_bytes(devices[0])

    def test_between_nodes(self, used):
        seen = []

        class Recorder:
            @hook_impl
            def before_node_run(self, node):
                seen.append(used())

        nodes = [
            gpu(cuda_nodes.take, "gb", "first", "first"),
            node(lambda first: 4, "first", "again", name="between"),
            gpu(cuda_nodes.take, "again", "second", "second"),
        ]
        before = used()
        run_nodes(nodes, {"gb": 4}, None, [Recorder()])
        assert len(seen) == 3
        assert all(level - before < NEARLY_NOTHING for level in seen)

    def test_out_of_memory(self, used, devices, shown_records):
        before = used()
        with pytest.raises(GpuNodeError) as caught:
            run([gpu_node(cuda_nodes.take_all, "x", "out", {"remedy": "ask for less"})], x=1)
        assert caught.value.reason == "out of memory"
        message = caught.value.message
        assert "node 'out' ran out of GPU memory (OutOfMemoryError" in message
        assert "remedy: ask for less" in message
        assert shown_records["out"].peak_bytes > 0.9 * shown_records["out"].available_bytes
        assert used() - before < NEARLY_NOTHING

    @pytest.mark.parametrize(
        ("function", "reason"),
        [(cuda_nodes.take_and_be_killed, "killed"), (cuda_nodes.take_and_crash, "crashed")],
    )
    def test_killed_and_crashed(self, used, function, reason):
        before = used()
        with pytest.raises(GpuNodeError) as caught:
            run([gpu_node(function, "gb", "out")], gb=4)
        assert caught.value.reason == reason
        assert used() - before < NEARLY_NOTHING
        # the device can still be used
        assert run([gpu_node(cuda_nodes.take, "gb", "out")], gb=1)["out"]["bytes"] == GB


def test_tensor_on_the_device_is_not_transferred():
    with pytest.raises(GpuNodeError, match=r"'out'.*it holds a tensor on cuda:0.*\.cpu\(\)"):
        run([gpu_node(cuda_nodes.give_a_tensor, "x", "out")], x=1)


def overlap(one, other):
    return min(one["to"], other["to"]) - max(one["from"], other["from"])


def test_two_nodes_share_a_device_where_they_fit():
    nodes = [
        gpu_node(cuda_nodes.take, ["gb", "seconds"], name, {"memory_gb": 2}) for name in ("a", "b")
    ]
    out = run(nodes, gb=1, seconds=8)
    assert overlap(out["a"], out["b"]) > 0


class TestTwoDevices:
    @pytest.fixture(autouse=True)
    def _two(self, devices):
        if len(devices) < 2:
            pytest.skip("PyTorch finds one CUDA device, two are needed")

    def test_two_nodes_at_once(self):
        nodes = [gpu_node(cuda_nodes.take, ["gb", "seconds"], name) for name in ("a", "b")]
        out = run(nodes, gb=1, seconds=8)
        assert overlap(out["a"], out["b"]) > 0
        assert set(out["a"]["uuids"]).isdisjoint(out["b"]["uuids"])

    def test_one_node_on_both(self, shown_records):
        out = run([gpu_node(cuda_nodes.sum_over_ranks, "x", "out", {"devices": 2})], x=10)
        assert out["out"] == {"total": 21, "ranks": 2}
        assert shown_records["out"].devices == (0, 1)

    def test_visible_devices_are_honoured(self, monkeypatch, devices):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        out = run([gpu_node(cuda_nodes.take, "gb", "out")], gb=1)
        assert [uuid[-12:] for uuid in out["out"]["uuids"]] == [devices[1].uuid[-12:]]
