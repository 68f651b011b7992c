"""What runs when, and where."""

import os
import threading

import gpu_nodes
import pytest
from fake_devices import FakeDevices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.resources import Resources
from kedro_cuda_runner.scheduler import by_urgency


def gpu_node(function, inputs, outputs, **arguments):
    return node(function, inputs, outputs, tags="gpu", **arguments)


def run(layer, nodes, **data):
    catalog = DataCatalog({"folder": MemoryDataset(str(layer.folder))})
    for name, value in data.items():
        catalog[f"params:{name}"] = MemoryDataset(value)
    outputs = CudaRunner(layer=layer).run(pipeline(nodes), catalog)
    return {name: dataset.load() for name, dataset in outputs.items()}


def meeting(name, *others, **gpu):
    return {"me": f"{name}_is_here", "others": [f"{other}_is_here" for other in others], "gpu": gpu}


def meet(name, kind=gpu_node, after=None):
    """Return a node that waits for others, which proves that it runs beside them."""
    inputs = ["folder", f"params:{name}", *([after] if after else [])]
    return kind(gpu_nodes.meet_after if after else gpu_nodes.meet, inputs, name, name=name)


def overlap(one, other):
    return one["from"] < other["to"] and other["from"] < one["to"]


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Return what the nodes told of a run with a long node here and a chain on the devices.

    The long node waits for the second of the chain, which becomes ready while it runs, and all
    wait for one on the CPU in a process of its own.
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


class TestBeside:
    def test_all_have_met(self, beside):
        assert {name: one["met"] for name, one in beside.items()} == {
            "long": True,
            "second": True,
            "isolated": True,
        }

    def test_a_node_here_runs_in_this_thread(self, beside):
        assert beside["long"]["pid"] == os.getpid()
        assert beside["long"]["thread"] == threading.current_thread().name == "MainThread"
        assert beside["long"]["devices"] == ""  # a library that takes what it finds finds nothing

    def test_a_node_without_devices_is_isolated_and_sees_none(self, beside):
        assert beside["isolated"]["parent"] == os.getpid()
        assert beside["isolated"]["devices"] == ""

    def test_a_gpu_node_sees_its_device_in_its_own_main_thread(self, beside):
        assert beside["second"]["parent"] == os.getpid()
        assert beside["second"]["devices"] == "GPU-fake-0"
        assert beside["second"]["thread"] == "MainThread"


class TestSharing:
    @pytest.mark.parametrize(
        ("count", "memory_gb"), [(2, None), (1, 10)], ids=["two devices", "needs that fit"]
    )
    def test_at_the_same_time(self, tmp_path, count, memory_gb):
        layer = FakeDevices(tmp_path, count=count, memory_bytes=24e9)
        told = run(
            layer,
            [meet("one"), meet("other")],
            one=meeting("one", "other", memory_gb=memory_gb),
            other=meeting("other", "one", memory_gb=memory_gb),
        )
        assert told["one"]["met"]
        assert told["other"]["met"]
        assert len({told["one"]["devices"], told["other"]["devices"]}) == count

    @pytest.mark.parametrize("memory_gb", [None, 13], ids=["unknown needs", "needs that do not"])
    def test_one_after_the_other(self, tmp_path, memory_gb):
        layer = FakeDevices(tmp_path, count=1, memory_bytes=24e9)
        settings = {"gb": 13, "seconds": 0.3, "gpu": {"memory_gb": memory_gb}}
        nodes = [
            gpu_node(gpu_nodes.hold_as, ["folder", "params:held"], name, name=name)
            for name in ("one", "other")
        ]
        told = run(layer, nodes, held=settings)
        assert not overlap(told["one"], told["other"])


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
        gpu_node(gpu_nodes.start, None, "numbers", name="first"),
        gpu_node(sorted, "numbers", "sorted", name="second"),
        gpu_node(max, "numbers", "max", name="third"),
    ]
    with pytest.raises((OSError, CudaRunnerError), match="the second device has gone"):
        run(layer, nodes)


class TestOrder:
    NODES = (
        node(gpu_nodes.double, "x", "a", name="a_for_nobody"),
        node(gpu_nodes.double, "x", "b", name="b_for_one_on_a_device"),
        node(gpu_nodes.double, "x", "c", name="c_for_two_on_a_device"),
        gpu_node(gpu_nodes.double, "c", "d", name="d_on_a_device"),
        gpu_node(gpu_nodes.add, ["b", "d"], "e", name="e_on_a_device"),
    )

    def test_what_gpu_nodes_wait_for_comes_first(self):
        line = pipeline(self.NODES)
        resources = {one: Resources() for one in line.nodes if "gpu" in one.tags}
        here = [one.name[0] for one in by_urgency(line, resources) if one not in resources]
        assert here == ["c", "b", "a"]

    def test_without_gpu_nodes_the_order_is_kedro_s(self):
        line = pipeline(self.NODES)
        assert by_urgency(line, {}) == line.nodes

    def test_in_a_run(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="kedro.runner")
        catalog = DataCatalog({"x": MemoryDataset(1)})
        CudaRunner(layer=FakeDevices(tmp_path, count=1)).run(pipeline(self.NODES), catalog)
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
        kind = gpu_node if index == on_device else node
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
        outputs = runner.run(pipeline(nodes), DataCatalog({"x": MemoryDataset(1)}))
        results.append({name: dataset.load() for name, dataset in outputs.items()})
    assert results[0] == results[1]
