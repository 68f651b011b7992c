"""Hooks see what they see under Kedro's own runner, wherever a node runs."""

import gpu_nodes
import pytest
from fake_devices import FakeDevices
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pickle import PickleDataset
from recording_hooks import RecordingHooks, manager_of

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import GpuNodeError
from kedro_cuda_runner.node_process import NodeProcess
from kedro_cuda_runner.transfer import NotTransferred

RUN_ID = "2026-01-01T00.00.00.000Z"


def gpu_node(function, inputs, outputs, **arguments):
    return node(function, inputs, outputs, tags="gpu", **arguments)


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    return FakeDevices(tmp_path_factory.mktemp("devices"))


@pytest.fixture
def run(layer):
    def run(nodes, catalog, *hooks, is_async=False):
        runner = CudaRunner(is_async=is_async, layer=layer)
        return runner.run(pipeline(nodes), catalog, manager_of(*hooks), run_id=RUN_ID)

    return run


def told_by(runner, nodes, folder, seconds=0.0):
    """Return the hooks of a run, and its catalog."""
    folder.mkdir()
    hooks = RecordingHooks(seconds)
    catalog = DataCatalog(
        {
            "params:factor": MemoryDataset(10),
            "numbers": MemoryDataset([3, 1, 2]),
            "scaled": JSONDataset(filepath=str(folder / "scaled.json")),
        }
    )
    runner.run(pipeline(nodes), catalog, manager_of(hooks), run_id=RUN_ID)
    return hooks, catalog


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def in_a_line(request, layer, tmp_path_factory):
    """Return the hooks of a linear pipeline under Kedro's runner and ours, and our catalog."""
    nodes = [
        gpu_node(sorted, "numbers", "sorted", name="sort"),
        gpu_node(gpu_nodes.double, "sorted", "scaled", name="double"),
        node(sum, "scaled", "total", name="total"),
        gpu_node(gpu_nodes.as_text, "total", "text", name="write"),
    ]
    folder = tmp_path_factory.mktemp("line")
    is_async = request.param
    expected, _ = told_by(SequentialRunner(is_async=is_async), nodes, folder / "kedro")
    hooks, catalog = told_by(CudaRunner(is_async=is_async, layer=layer), nodes, folder / "ours")
    return expected, hooks, catalog


@pytest.fixture(scope="module")
def side_by_side(layer, tmp_path_factory):
    """Return the slow hooks of a pipeline of parallel nodes under Kedro's runner and ours."""
    nodes = [
        gpu_node(gpu_nodes.scale, ["numbers", "params:factor"], "scaled", name="scale"),
        gpu_node(gpu_nodes.mirror, "numbers", ["plus", "minus"], name="mirror"),
        node(sorted, "numbers", "sorted", name="sort"),
        node(gpu_nodes.length, ["sorted", "scaled"], "lengths", name="count"),
    ]
    folder = tmp_path_factory.mktemp("side")
    expected, _ = told_by(SequentialRunner(), nodes, folder / "kedro", seconds=0.03)
    hooks, _ = told_by(CudaRunner(layer=layer), nodes, folder / "ours", seconds=0.03)
    return expected, hooks


class TestSameAsUnderKedro:
    def test_in_a_line(self, in_a_line):
        expected, hooks, _ = in_a_line
        assert [call.told() for call in hooks.calls] == [call.told() for call in expected.calls]
        assert len(hooks.calls) == 4 * 6

    def test_is_async_and_run_id_are_told(self, in_a_line):
        _, hooks, _ = in_a_line
        asked = [one.arguments for one in hooks.calls if one.hook == "before_node_run"]
        assert {call["run_id"] for call in asked} == {RUN_ID}
        assert len({call["is_async"] for call in asked}) == 1

    def test_the_catalog_is_the_run_s(self, in_a_line):
        _, hooks, catalog = in_a_line
        catalogs = [one.arguments["catalog"] for one in hooks.calls if "catalog" in one.arguments]
        assert len(catalogs) == 8
        assert all(one is catalog for one in catalogs)

    @pytest.mark.parametrize("name", ["sort", "double", "write"])
    def test_inputs_are_the_objects_that_were_loaded(self, in_a_line, name):
        _, hooks, _ = in_a_line
        calls = {call.hook: call.arguments for call in hooks.of(name)}
        loaded = calls["after_dataset_loaded"]
        before = calls["before_node_run"]["inputs"]
        assert before[loaded["dataset_name"]] is loaded["data"]
        assert calls["after_node_run"]["inputs"][loaded["dataset_name"]] is loaded["data"]

    def test_side_by_side(self, side_by_side):
        expected, hooks = side_by_side
        for name in ("scale", "mirror", "sort", "count"):
            wanted, told = expected.of(name), hooks.of(name)
            # of a generator's outputs there is nothing to compare but their names
            if name == "mirror":
                assert [one[0] for one in told] == [one[0] for one in wanted]
                saved = [one for one in told if one.hook == "before_dataset_saved"]
                assert [one.arguments["data"] for one in saved] == [3, -3, 1, -1, 2, -2]
            else:
                assert [one.told() for one in told] == [one.told() for one in wanted]

    def test_one_at_a_time(self, side_by_side):
        assert side_by_side[1].most_at_once == 1

    def test_a_failing_node(self, run, layer):
        failing = gpu_node(gpu_nodes.raise_value_error, "numbers", "nothing", name="fail")
        expected, hooks = RecordingHooks(), RecordingHooks()
        catalog = DataCatalog({"numbers": MemoryDataset([1])})
        with pytest.raises(ValueError, match="this cannot be"):
            SequentialRunner().run(pipeline([failing]), catalog, manager_of(expected), RUN_ID)
        with pytest.raises(GpuNodeError, match="this cannot be"):
            run([failing], catalog, hooks)
        assert [call.told() for call in hooks.calls] == [call.told() for call in expected.calls]
        assert hooks.calls[-1].hook == "on_node_error"

    def test_an_error_that_cannot_travel_is_still_an_exception(self, run):
        recording = RecordingHooks()
        catalog = DataCatalog({"numbers": MemoryDataset([1])})
        with pytest.raises(GpuNodeError, match="3: too many"):
            run([gpu_node(gpu_nodes.raise_odd_error, "numbers", None)], catalog, recording)
        error = recording.calls[-1].arguments["error"]
        assert isinstance(error, Exception)
        assert str(error) == "OddError: 3: too many"


class ReplacingHooks:
    @hook_impl
    def before_node_run(self, inputs):
        return {"x": inputs["x"] + 100}


class ReadingHooks:
    """Reads what comes after the inputs were replaced, and nothing before."""

    def __init__(self):
        self.inputs = None

    @hook_impl
    def after_node_run(self, inputs):
        self.inputs = inputs


class RaisingHooks:
    @hook_impl
    def after_dataset_loaded(self, dataset_name):
        raise LookupError(f"nobody wants {dataset_name}")


class ChattyHooks:
    """Returns what Kedro ignores."""

    @hook_impl
    def after_node_run(self, outputs):
        return lambda: outputs


class NamingHooks:
    @hook_impl
    def after_dataset_saved(self, dataset_name):
        self.name = dataset_name


class TestWhatHooksDo:
    def test_replaced_inputs_reach_the_node(self, run):
        reading = ReadingHooks()
        outputs = run(
            [gpu_node(gpu_nodes.double, "x", "y")],
            DataCatalog({"x": MemoryDataset(1)}),
            ReplacingHooks(),
            reading,
        )
        assert outputs["y"].load() == 202
        assert reading.inputs == {"x": 101}

    def test_an_exception_fails_the_run(self, run):
        recording = RecordingHooks()
        catalog = DataCatalog({"x": MemoryDataset(1)})
        with pytest.raises(GpuNodeError, match=r"LookupError.*nobody wants x"):
            run([gpu_node(gpu_nodes.double, "x", "y")], catalog, RaisingHooks(), recording)
        # as under Kedro, whose on_node_error is about the node's own function
        assert "on_node_error" not in {call.hook for call in recording.calls}

    def test_what_kedro_ignores_need_not_travel(self, run):
        catalog = DataCatalog({"x": MemoryDataset(1)})
        outputs = run([gpu_node(gpu_nodes.double, "x", "y")], catalog, ChattyHooks())
        assert outputs["y"].load() == 2


class TestWhatIsSent:
    def test_large_data_and_tensors_stay(self, run, tmp_path):
        recording = RecordingHooks()
        catalog = DataCatalog(
            {
                "x": MemoryDataset(1),
                "model": PickleDataset(filepath=str(tmp_path / "model")),
                "large": PickleDataset(filepath=str(tmp_path / "large")),
            }
        )
        nodes = [
            gpu_node(gpu_nodes.tensor_and_large, "x", ["model", "large"], name="make"),
            gpu_node(gpu_nodes.length, ["model", "large"], "lengths", name="count"),
        ]
        outputs = run(nodes, catalog, recording)
        assert outputs["lengths"].load() == [1, 65 * 2**20]
        made = next(call for call in recording.of("make") if call.hook == "after_node_run")
        expected = {
            "model": NotTransferred("builtins.dict", "it holds tensors"),
            "large": NotTransferred("builtins.bytes", "larger than 64 MiB"),
        }
        assert made.arguments["outputs"] == expected
        counted = next(call for call in recording.of("count") if call.hook == "before_node_run")
        assert counted.arguments["inputs"] == expected

    def test_only_what_somebody_listens_to(self, run, monkeypatch):
        sent = []
        fire = NodeProcess._call_hook

        def spy(self, name, arguments):
            sent.append((name, arguments))
            return fire(self, name, arguments)

        monkeypatch.setattr(NodeProcess, "_call_hook", spy)
        naming = NamingHooks()
        catalog = DataCatalog({"x": MemoryDataset(1)})
        run([gpu_node(gpu_nodes.double, "x", "y")], catalog, naming)
        assert naming.name == "y"
        # the data, which nobody reads, has not travelled for it
        assert sent == [("after_dataset_saved", {"dataset_name": "y", "data": None})]
