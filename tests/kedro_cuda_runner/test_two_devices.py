"""A node on two devices: accelerate starts a process each."""

import json
import time

import gpu_nodes
import odd_datasets
import pytest
from fake_devices import FakeDevices
from gpu_runs import gpu, run
from kedro.framework.hooks import hook_impl
from kedro_datasets.json import JSONDataset
from recording_hooks import RecordingHooks


class ReplacingHooks:
    @hook_impl
    def before_node_run(self, inputs):
        time.sleep(1.0)  # meanwhile the other rank, which is late, requests its inputs
        return {"value": inputs["value"] + 100}


class Run:
    """A run with its hooks, what each process saw, and what was saved."""

    def __init__(self, function, folder):
        data = {
            "late": odd_datasets.LateOnOthersDataset(filepath="unused.txt"),
            "value": 1,
            "params:two": {"folder": str(folder), "gpu": {"devices": 2}},
            "seen": JSONDataset(filepath=str(folder / "seen.json")),
        }
        self.hooks = RecordingHooks()
        nodes = [gpu(function, ["late", "value", "params:two"], "seen")]
        run(nodes, data, FakeDevices(folder / "devices"), [ReplacingHooks(), self.hooks])
        self.ranks = [json.loads((folder / f"rank_{rank}").read_text()) for rank in (0, 1)]
        self.saved = json.loads((folder / "seen.json").read_text())

    def calls(self, hook):
        return [call.arguments for call in self.hooks.calls if call.hook == hook]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return Run(gpu_nodes.write_rank, tmp_path_factory.mktemp("two"))


def test_each_rank_sees_both_devices_and_rank_0_saves(two):
    assert [one["rank"] for one in two.ranks] == [0, 1]
    assert {one["world"] for one in two.ranks} == {2}
    assert {one["devices"] for one in two.ranks} == {"GPU-fake-0,GPU-fake-1"}
    assert two.ranks[0]["pid"] != two.ranks[1]["pid"]
    assert two.saved == two.ranks[0]


def test_hooks_are_called_once(two):
    names = [(call.hook, call.arguments.get("dataset_name")) for call in two.hooks.calls]
    loads = [
        (f"{when}_dataset_loaded", name)
        for name in ("late", "value", "params:two")
        for when in ("before", "after")
    ]
    run = [("before_node_run", None), ("after_node_run", None)]
    saves = [("before_dataset_saved", "seen"), ("after_dataset_saved", "seen")]
    assert names == [*loads, *run, *saves]


def test_replaced_inputs_reach_both_ranks_and_hooks(two):
    assert [one["value"] for one in two.ranks] == [101, 101]
    loaded = {one["dataset_name"]: one["data"] for one in two.calls("after_dataset_loaded")}
    before, after = two.calls("before_node_run")[0], two.calls("after_node_run")[0]
    assert all(before["inputs"][name] is data for name, data in loaded.items())
    assert after["inputs"]["value"] == 101


def test_generator_is_consumed_on_both_ranks(tmp_path):
    two = Run(gpu_nodes.yield_ranks, tmp_path)
    assert two.saved == two.ranks[0]
    assert len(two.calls("after_dataset_saved")) == 2
