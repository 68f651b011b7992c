"""A node on two devices: accelerate starts a process each."""

import json
import time

import gpu_nodes
import odd_datasets
import pytest
from fake_devices import FakeDevices
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro_datasets.json import JSONDataset
from recording_hooks import RecordingHooks, manager_of

from kedro_cuda_runner import CudaRunner


class ReplacingHooks:
    @hook_impl
    def before_node_run(self, inputs):
        time.sleep(1.0)  # meanwhile the other rank, which is late, asks for its inputs
        return {"value": inputs["value"] + 100}


class Told:
    """What a run told: its hooks, what each process saw, and what was saved."""

    def __init__(self, function, folder):
        settings = {"folder": str(folder), "gpu": {"devices": 2}}
        catalog = DataCatalog(
            {
                "late": odd_datasets.LateOnOthersDataset(),
                "value": MemoryDataset(1),
                "params:two": MemoryDataset(settings),
                "seen": JSONDataset(filepath=str(folder / "seen.json")),
            }
        )
        self.hooks = RecordingHooks()
        nodes = [node(function, ["late", "value", "params:two"], "seen", name="two", tags="gpu")]
        runner = CudaRunner(layer=FakeDevices(folder / "devices", count=2))
        runner.run(pipeline(nodes), catalog, manager_of(ReplacingHooks(), self.hooks))
        self.ranks = [json.loads((folder / f"rank_{rank}").read_text()) for rank in (0, 1)]
        self.saved = json.loads((folder / "seen.json").read_text())

    def calls(self, hook):
        return [call.arguments for call in self.hooks.calls if call.hook == hook]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return Told(gpu_nodes.write_rank, tmp_path_factory.mktemp("two"))


def test_each_rank_sees_both_devices(told):
    assert [one["rank"] for one in told.ranks] == [0, 1]
    assert {one["world"] for one in told.ranks} == {2}
    assert {one["devices"] for one in told.ranks} == {"GPU-fake-0,GPU-fake-1"}
    assert told.ranks[0]["pid"] != told.ranks[1]["pid"]


def test_rank_0_saves(told):
    assert told.saved == told.ranks[0]


def test_hooks_are_called_once(told):
    names = [(call.hook, call.arguments.get("dataset_name")) for call in told.hooks.calls]
    assert names == [
        ("before_dataset_loaded", "late"),
        ("after_dataset_loaded", "late"),
        ("before_dataset_loaded", "value"),
        ("after_dataset_loaded", "value"),
        ("before_dataset_loaded", "params:two"),
        ("after_dataset_loaded", "params:two"),
        ("before_node_run", None),
        ("after_node_run", None),
        ("before_dataset_saved", "seen"),
        ("after_dataset_saved", "seen"),
    ]


def test_replaced_inputs_reach_both_ranks(told):
    assert [one["value"] for one in told.ranks] == [101, 101]


def test_hooks_are_shown_what_rank_0_was_given(told):
    loaded = {one["dataset_name"]: one["data"] for one in told.calls("after_dataset_loaded")}
    before, after = told.calls("before_node_run")[0], told.calls("after_node_run")[0]
    assert all(before["inputs"][name] is data for name, data in loaded.items())
    assert after["inputs"]["value"] == 101


def test_a_generator_runs_to_its_end_on_both(tmp_path):
    told = Told(gpu_nodes.yield_ranks, tmp_path)
    assert told.saved == told.ranks[0]
    assert len(told.calls("after_dataset_saved")) == 2
