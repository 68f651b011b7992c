"""The order, time and place in which nodes run."""

import os

import gpu_nodes
import pytest
from fake_devices import FakeDevices
from gpu_runs import catalog_of, gpu
from gpu_runs import run as run_nodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.scheduler import by_urgency


def run(layer, nodes, **parameters):
    named = {f"params:{name}": value for name, value in parameters.items()}
    return run_nodes(nodes, {"folder": str(layer.folder), **named}, layer)


def meeting(name, *others, **resources):
    others = [f"{other}_is_here" for other in others]
    return {"me": f"{name}_is_here", "others": others, "gpu": resources}


def meet(name, kind=gpu, after=None):
    """Return a node that waits for others, which proves that it runs beside them."""
    inputs = ["folder", f"params:{name}", *([after] if after else [])]
    return kind(gpu_nodes.meet, inputs, name, name=name)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Return the results of a run with a long node here and a chain on the devices.

    The long node waits for the second of the chain, which becomes ready while it runs, and all
    wait for one on the CPU in its own process.
    """
    layer = FakeDevices(tmp_path_factory.mktemp("beside"), count=1)
    nodes = [meet("long", node), meet("first"), meet("second", after="first"), meet("isolated")]
    return run(
        layer,
        nodes,
        long=meeting("long", "second", "isolated"),
        first=meeting("first", "long", "isolated"),
        second=meeting("second", "long"),
        isolated=meeting("isolated", "long", devices=0),
    )


def test_nodes_run_beside_each_other(beside):
    assert {name: one["met"] for name, one in beside.items()} == {
        "long": True,
        "second": True,
        "isolated": True,
    }


def test_where_nodes_run_and_what_they_see(beside):
    # a library that takes any device that it finds finds none outside of a GPU node
    assert {name: one["devices"] for name, one in beside.items()} == {
        "long": "",
        "second": "GPU-fake-0",
        "isolated": "",
    }
    assert beside["long"]["pid"] == os.getpid()
    assert beside["second"]["parent"] == beside["isolated"]["parent"] == os.getpid()
    assert {one["thread"] for one in beside.values()} == {"MainThread"}


class TestSharing:
    @pytest.mark.parametrize(
        ("count", "memory_gb"), [(2, None), (1, 10)], ids=["two devices", "memory that fits"]
    )
    def test_at_the_same_time(self, tmp_path, count, memory_gb):
        results = run(
            FakeDevices(tmp_path, count=count, memory_bytes=24e9),
            [meet("one"), meet("other")],
            one=meeting("one", "other", memory_gb=memory_gb),
            other=meeting("other", "one", memory_gb=memory_gb),
        )
        assert results["one"]["met"]
        assert results["other"]["met"]
        assert len({one["devices"] for one in results.values()}) == count

    @pytest.mark.parametrize("memory_gb", [None, 13], ids=["unknown memory", "too much memory"])
    def test_one_after_the_other(self, tmp_path, memory_gb):
        layer = FakeDevices(tmp_path, count=1, memory_bytes=24e9)
        held = {"gb": 13, "seconds": 0.3, "gpu": {"memory_gb": memory_gb}}
        names = ("one", "other")
        nodes = [gpu(gpu_nodes.hold, ["folder", "params:held"], name, name) for name in names]
        results = run(layer, nodes, held=held)
        one, other = (results[name] for name in names)
        assert one["to"] <= other["from"] or other["to"] <= one["from"]


class UnluckyDevices(FakeDevices):
    """Fails when a node is about to be started on its second device."""

    def environment(self, devices):
        if any(device.index == 1 for device in devices):
            raise OSError("the second device has gone")
        return super().environment(devices)


def test_a_node_that_cannot_be_started_fails_the_run(tmp_path):
    # it becomes ready while another one runs, so that the thread of the one before starts it
    layer = UnluckyDevices(tmp_path, count=2)
    nodes = [
        gpu(gpu_nodes.start, None, "numbers", name="first"),
        gpu(sorted, "numbers", "sorted", name="second"),
        gpu(max, "numbers", "max", name="third"),
    ]
    with pytest.raises((OSError, CudaRunnerError), match="the second device has gone"):
        run(layer, nodes)


class TestOrder:
    NODES = (
        node(gpu_nodes.double, "x", "a", name="a_for_nobody"),
        node(gpu_nodes.double, "x", "b", name="b_for_one_on_a_device"),
        node(gpu_nodes.double, "x", "c", name="c_for_two_on_a_device"),
        gpu(gpu_nodes.double, "c", "d", name="d_on_a_device"),
        gpu(gpu_nodes.add, ["b", "d"], "e", name="e_on_a_device"),
    )

    def test_without_gpu_nodes_the_order_is_kedro_s(self):
        line = pipeline(self.NODES)
        assert by_urgency(line, {}) == line.nodes

    def test_in_a_run(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="kedro.runner")
        run_nodes(self.NODES, {"x": 1}, FakeDevices(tmp_path, count=1))
        start = "Completed node: "
        done = [line.removeprefix(start)[0] for line in caplog.messages if line.startswith(start)]
        assert done == ["c", "b", "a", "d", "e"]


@st.composite
def graphs(draw):
    """Draw nodes that each add up some of what was there before; at most one is a GPU node."""
    count = draw(st.integers(1, 8))
    # a process takes its time, so most graphs have none
    on_device = draw(st.sampled_from([None, None, None, draw(st.integers(0, count - 1))]))
    nodes = []
    for index in range(count):
        names = ["x", *(f"d{other}" for other in range(index))]
        inputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        kind = gpu if index == on_device else node
        nodes.append(kind(gpu_nodes.add, inputs, f"d{index}", name=f"n{index}"))
    return draw(st.permutations(nodes))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(nodes=graphs())
def test_any_graph_gives_what_kedro_s_runner_gives(tmp_path_factory, nodes):
    layer = FakeDevices(tmp_path_factory.mktemp("graph"), count=1)
    results = []
    for runner in (SequentialRunner(), CudaRunner(layer=layer)):
        outputs = runner.run(pipeline(nodes), catalog_of({"x": 1}))
        results.append({name: dataset.load() for name, dataset in outputs.items()})
    assert results[0] == results[1]
