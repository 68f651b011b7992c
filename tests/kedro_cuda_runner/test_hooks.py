"""Hooks are called as under Kedro's own runner, wherever a node runs."""

import gpu_nodes
import pytest
from gpu_runs import catalog_of, gpu, manager_of, run
from kedro.framework.hooks import hook_impl
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pickle import PickleDataset
from recording_hooks import RecordingHooks

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import GpuNodeError
from kedro_cuda_runner.node_process import NodeProcess
from kedro_cuda_runner.transfer import NotTransferred

RUN_ID = "2026-01-01T00.00.00.000Z"


def record(runner, nodes, folder, seconds=0.0):
    """Return the recorded hooks of a run, and its catalog."""
    folder.mkdir()
    hooks = RecordingHooks(seconds)
    scaled = JSONDataset(filepath=str(folder / "scaled.json"))
    catalog = catalog_of({"params:factor": 10, "numbers": [3, 1, 2], "scaled": scaled})
    runner.run(pipeline(nodes), catalog, manager_of(hooks), run_id=RUN_ID)
    return hooks, catalog


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def in_a_line(request, layer, tmp_path_factory):
    """Return the hooks of a linear pipeline under Kedro's runner and ours, and our catalog."""
    nodes = [
        gpu(sorted, "numbers", "sorted", "sort"),
        gpu(gpu_nodes.double, "sorted", "scaled"),
        node(sum, "scaled", "total", name="total"),
        gpu(gpu_nodes.as_text, "total", "text", "write"),
    ]
    folder = tmp_path_factory.mktemp("line")
    is_async = request.param
    expected, _ = record(SequentialRunner(is_async=is_async), nodes, folder / "kedro")
    hooks, catalog = record(CudaRunner(is_async=is_async, layer=layer), nodes, folder / "ours")
    return expected, hooks, catalog


@pytest.fixture(scope="module")
def side_by_side(layer, tmp_path_factory):
    """Return the slow hooks of a pipeline of parallel nodes under Kedro's runner and ours."""
    nodes = [
        gpu(gpu_nodes.scale, ["numbers", "params:factor"], "scaled"),
        gpu(gpu_nodes.mirror, "numbers", ["plus", "minus"]),
        node(sorted, "numbers", "sorted", name="sort"),
        node(gpu_nodes.length, ["sorted", "scaled"], "lengths", name="count"),
    ]
    folder = tmp_path_factory.mktemp("side")
    expected, _ = record(SequentialRunner(), nodes, folder / "kedro", seconds=0.03)
    hooks, _ = record(CudaRunner(layer=layer), nodes, folder / "ours", seconds=0.03)
    return expected, hooks


def comparable(hooks):
    return [call.comparable() for call in hooks.calls]


class TestSameAsUnderKedro:
    def test_in_a_line(self, in_a_line):
        expected, hooks, _ = in_a_line
        assert comparable(hooks) == comparable(expected)
        assert len(hooks.calls) == 4 * 6

    def test_run_s_own_arguments(self, in_a_line):
        _, hooks, catalog = in_a_line
        calls = [one.arguments for one in hooks.calls if one.hook == "before_node_run"]
        assert {call["run_id"] for call in calls} == {RUN_ID}
        assert len({call["is_async"] for call in calls}) == 1
        catalogs = [one.arguments["catalog"] for one in hooks.calls if "catalog" in one.arguments]
        assert len(catalogs) == 8
        assert all(one is catalog for one in catalogs)

    @pytest.mark.parametrize("name", ["sort", "double", "write"])
    def test_inputs_are_the_objects_that_were_loaded(self, in_a_line, name):
        _, hooks, _ = in_a_line
        calls = {call.hook: call.arguments for call in hooks.of(name)}
        loaded = calls["after_dataset_loaded"]
        for hook in ("before_node_run", "after_node_run"):
            assert calls[hook]["inputs"][loaded["dataset_name"]] is loaded["data"]

    def test_side_by_side(self, side_by_side):
        expected, hooks = side_by_side
        for name in ("scale", "sort", "count"):
            wanted, called = expected.of(name), hooks.of(name)
            assert [one.comparable() for one in called] == [one.comparable() for one in wanted]
        # outputs of a generator cannot be compared
        called = hooks.of("mirror")
        assert [one.hook for one in called] == [one.hook for one in expected.of("mirror")]
        saved = [one.arguments["data"] for one in called if one.hook == "before_dataset_saved"]
        assert saved == [3, -3, 1, -1, 2, -2]
        assert hooks.most_at_once == 1

    def test_a_failing_node(self, layer):
        failing = gpu(gpu_nodes.raise_value_error, "numbers", "nothing")
        expected, hooks = RecordingHooks(), RecordingHooks()
        catalog = catalog_of({"numbers": [1]})
        with pytest.raises(ValueError, match="this cannot be"):
            SequentialRunner().run(pipeline([failing]), catalog, manager_of(expected), RUN_ID)
        with pytest.raises(GpuNodeError, match="this cannot be"):
            run([failing], catalog, layer, [hooks], run_id=RUN_ID)
        assert comparable(hooks) == comparable(expected)
        assert hooks.calls[-1].hook == "on_node_error"


class ReplacingHooks:
    @hook_impl
    def before_node_run(self, inputs):
        return {"x": inputs["x"] + 100}


class ReadingHooks:
    """Reads the inputs after they were replaced, not before."""

    @hook_impl
    def after_node_run(self, inputs):
        self.inputs = inputs


class RaisingHooks:
    @hook_impl
    def after_dataset_loaded(self, dataset_name):
        raise LookupError(f"nobody wants {dataset_name}")


class ReturningHooks:
    """Returns what Kedro ignores, and what cannot be pickled."""

    @hook_impl
    def after_node_run(self, outputs):
        return lambda: outputs


class NamingHooks:
    @hook_impl
    def after_dataset_saved(self, dataset_name):
        self.name = dataset_name


DOUBLE = gpu(gpu_nodes.double, "x", "y")


class TestEffects:
    def test_replaced_inputs_reach_the_node(self, layer):
        reading = ReadingHooks()
        assert run([DOUBLE], {"x": 1}, layer, [ReplacingHooks(), reading]) == {"y": 202}
        assert reading.inputs == {"x": 101}

    def test_an_exception_fails_the_run(self, layer):
        recording = RecordingHooks()
        with pytest.raises(GpuNodeError, match=r"LookupError.*nobody wants x"):
            run([DOUBLE], {"x": 1}, layer, [RaisingHooks(), recording])
        # as under Kedro, whose on_node_error is called for the node's own function
        assert "on_node_error" not in {call.hook for call in recording.calls}

    def test_ignored_results_are_not_sent(self, layer):
        assert run([DOUBLE], {"x": 1}, layer, [ReturningHooks()]) == {"y": 2}


class TestWhatIsSent:
    def test_large_data_and_tensors_stay(self, layer, tmp_path):
        recording = RecordingHooks()
        nodes = [
            gpu(gpu_nodes.tensor_and_large, "x", ["model", "large"], "make"),
            gpu(gpu_nodes.length, ["model", "large"], "lengths", "count"),
        ]
        paths = {name: str(tmp_path / name) for name in ("model", "large")}
        data = {"x": 1, **{name: PickleDataset(filepath=path) for name, path in paths.items()}}
        assert run(nodes, data, layer, [recording]) == {"lengths": [1, 65 * 2**20]}
        expected = {
            "model": NotTransferred("builtins.dict", "it holds tensors"),
            "large": NotTransferred("builtins.bytes", "larger than 64 MiB"),
        }
        made = {call.hook: call.arguments for call in recording.of("make")}
        assert made["after_node_run"]["outputs"] == expected
        counted = {call.hook: call.arguments for call in recording.of("count")}
        assert counted["before_node_run"]["inputs"] == expected

    def test_only_arguments_that_a_hook_takes(self, layer, monkeypatch):
        sent = []
        call_hook = NodeProcess._call_hook

        def spy(self, name, arguments):
            sent.append((name, arguments))
            return call_hook(self, name, arguments)

        monkeypatch.setattr(NodeProcess, "_call_hook", spy)
        naming = NamingHooks()
        run([DOUBLE], {"x": 1}, layer, [naming])
        assert naming.name == "y"
        assert sent == [("after_dataset_saved", {"dataset_name": "y", "data": None})]
