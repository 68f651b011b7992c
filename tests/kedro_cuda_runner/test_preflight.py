"""Problems that stop a run before its first node: all at once, each with its remedy."""

import pickle
import shutil
import time
from collections import namedtuple

import gpu_nodes
import pytest
from fake_devices import FakeDevices
from gpu_runs import gpu, run
from kedro.framework.hooks import hook_impl
from kedro.pipeline import node
from kedro_datasets.text import TextDataset

from kedro_cuda_runner import PreflightError
from kedro_cuda_runner.resources import KEYS

Usage = namedtuple("Usage", "total used free")


class Nobody:
    """Hooks that must not be called."""

    @hook_impl
    def before_node_run(self, node):
        raise AssertionError(f"{node.name} ran")

    @hook_impl
    def before_dataset_loaded(self, dataset_name):
        raise AssertionError(f"{dataset_name} was loaded")


class Untouchable(FakeDevices):
    """Hardware that must not be queried."""

    def find(self):
        raise AssertionError("the hardware was queried")


def reach(_):
    raise AssertionError("a node ran")


def problems(nodes, data, layer):
    """Return the problems that a run names, in the order in which it does."""
    with pytest.raises(PreflightError) as caught:
        run(nodes, data, layer, [Nobody()])
    head, *rest = caught.value.message.split("\n")
    assert head == "the run cannot start:"
    assert all(line.startswith("  - ") for line in rest)
    return [line.removeprefix("  - ") for line in rest]


@pytest.fixture
def little_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12, 3 * 10**9))


def section(**required):
    return {"gpu": required}


def pickle_error(one):
    try:
        pickle.dumps(one.func)
    except (pickle.PicklingError, AttributeError) as error:
        return str(error)
    raise AssertionError


def test_everything_at_once(tmp_path, little_disk):
    def local(_):
        raise AssertionError

    nodes = [
        node(reach, "x", "first", name="first"),
        gpu(gpu_nodes.needs_3_gb, ["x", "params:devices"], "a", "many"),
        gpu(gpu_nodes.needs_3_gb, ["x", "params:memory"], "b", "large"),
        gpu(gpu_nodes.needs_3_gb, ["x", "params:disk"], "c", "wide"),
        gpu(gpu_nodes.needs_3_gb, ["x", "params:more_disk"], "d", "wider"),
        gpu(lambda x: x, "x", "e", "lambda"),
        gpu(local, "x", "f", "local"),
        gpu(gpu_nodes.needs_3_gb, ["x", "params:misspelt"], "g", "misspelt"),
    ]
    data = {
        "x": 1,
        "params:devices": section(devices=3),
        "params:memory": section(memory_gb=80),
        "params:disk": section(disk_gb=2),
        "params:more_disk": section(disk_gb=1.5),
        "params:misspelt": section(memory=3),
        "c": TextDataset(filepath=str(tmp_path / "deep" / "c.txt")),
        "d": TextDataset(filepath=str(tmp_path / "d.txt")),
    }
    started = time.monotonic()
    found = problems(nodes, data, FakeDevices(tmp_path / "devices", count=2))
    assert time.monotonic() - started < 1.0
    assert sorted(found) == sorted(
        [
            "node 'misspelt', params:misspelt: unknown keys memory; known are " + ", ".join(KEYS),
            *(
                f"node '{one.name}' cannot run in its own process: it cannot be pickled: "
                f"{pickle_error(one)}. Define its function at the top level of a module, not as a "
                "lambda or inside a function"
                for one in nodes[5:7]
            ),
            "node 'many': it needs 3 CUDA devices, there are 2; lower the number of GB",
            "node 'large': it needs 80.0 GB on one device; free are: cuda:0 (Fake GPU) 24.0 of "
            "24.0 GB, cuda:1 (Fake GPU) 24.0 of 24.0 GB; lower the number of GB",
            f"about 3.5 GB of disk are needed at {tmp_path} ('wide' 2.0 GB, 'wider' 1.5 GB), "
            "3.0 GB are free; make room, or point the catalog entries of their outputs elsewhere",
        ]
    )


def test_machine_without_devices(tmp_path):
    nodes = [gpu(gpu_nodes.double, "x", "y", "train"), gpu(gpu_nodes.double, "x", "z", "infer")]
    assert problems(nodes, {"x": 1}, FakeDevices(tmp_path, count=0)) == [
        "'infer', 'train': there is no CUDA device: the fake has none; run on a machine with an "
        "NVIDIA GPU, or choose an environment (--env) in which these nodes need none"
    ]


def test_hardware_is_not_queried_for_nodes_without_devices(tmp_path):
    nodes = [gpu(gpu_nodes.where, "params:none", "seen", "train")]
    outputs = run(nodes, {"params:none": section(devices=0)}, Untouchable(tmp_path, count=0))
    assert outputs["seen"]["pid"] != outputs["seen"]["parent"]
    assert outputs["seen"]["devices"] in (None, "")


def test_hardware_is_not_queried_without_gpu_nodes(tmp_path, monkeypatch):
    assert run([node(gpu_nodes.double, "x", "y")], {"x": 2}, Untouchable(tmp_path)) == {"y": 4}

    # a runner without a layer of its own does not read the disk either
    monkeypatch.setattr(shutil, "disk_usage", Untouchable(tmp_path).find)
    assert run([node(gpu_nodes.double, "x", "y")], {"x": 2}, None) == {"y": 4}


def test_outputs_in_memory_use_no_disk(tmp_path, little_disk):
    nodes = [gpu(gpu_nodes.keep_first, ["x", "params:disk"], "y", "wide")]
    data = {"x": 2, "params:disk": section(disk_gb=5)}
    assert run(nodes, data, FakeDevices(tmp_path)) == {"y": 2}
