import functools
import types

import pytest
from gpu_runs import catalog_of, gpu
from kedro.pipeline import node
from pydantic import BaseModel

from kedro_cuda_runner.errors import CudaRunnerError, PreflightError
from kedro_cuda_runner.resources import KEYS, Resources, is_gpu_node, resources_of


class Gpu(BaseModel):
    devices: int | None = None
    memory_gb: float | None = None


class Training(BaseModel):
    steps: int = 10
    gpu: Gpu | None = None


def declare(declared=None, training=None):
    """Return the resources of a node whose function and parameter declare these."""

    def train(data, training):
        return data

    if declared is not None:
        train.gpu_resources = declared
    section = {} if training is None else training
    catalog = catalog_of({"data": [1, 2, 3], "params:training": section})
    return resources_of(gpu(train, ["data", "params:training"], "model"), catalog)


@pytest.mark.parametrize(("tags", "expected"), [(["gpu"], True), (["cpu", "gpus"], False)])
def test_gpu_nodes_are_known_by_their_tag(tags, expected):
    assert is_gpu_node(node(sorted, "data", "model", tags=tags)) is expected


ALL = {
    "devices": 2,
    "memory_gb": 1.5,
    "memory_min_gb": 1,
    "disk_gb": 0.25,
    "parts_gb": {"weights": 1, "cache": 0.5},
    "remedy": "lower training.batch_size",
}
FUNCTION = {"devices": 2, "memory_gb": 1, "disk_gb": 3, "remedy": "x"}
BOTH = Resources(4, 20_000_000_000, 3_000_000_000, remedy="x")
GIVEN = {"devices": 4, "memory_gb": 20}
CASES = {
    "nothing": (None, None, Resources(devices=1, memory_bytes=None, disk_bytes=0, parts={})),
    "parameters without gpu": (None, {"steps": 3}, Resources()),
    "empty gpu": (None, {"gpu": {}}, Resources()),
    "null gpu": (None, {"gpu": None}, Resources()),
    "parameter that is a number": (None, 5, Resources()),
    "parameter that is a list": (None, [1], Resources()),
    "typed parameters without gpu": (None, Training(), Resources()),
    "estimate of nothing": (lambda node, catalog: None, None, Resources()),
    "null values": (dict.fromkeys(KEYS), None, Resources()),
    "all keys": (
        ALL,
        None,
        Resources(
            devices=2,
            memory_bytes=1_500_000_000,
            disk_bytes=250_000_000,
            memory_min_bytes=1_000_000_000,
            parts={"weights": 1_000_000_000, "cache": 500_000_000},
            remedy="lower training.batch_size",
        ),
    ),
    "estimate from node and catalog": (
        lambda node, catalog: {"memory_gb": len(catalog.load("data")), "remedy": node.name},
        None,
        Resources(memory_bytes=3_000_000_000, remedy="train"),
    ),
    "zero memory is known": ({"memory_gb": 0}, None, Resources(memory_bytes=0)),
    "no devices": ({"devices": 0}, None, Resources(devices=0)),
    "mapping over function": (FUNCTION, {"gpu": GIVEN}, BOTH),
    "model over function": (FUNCTION, Training(gpu=Gpu(**GIVEN)), BOTH),
    "object over function": (FUNCTION, types.SimpleNamespace(gpu=GIVEN), BOTH),
    "null keeps the function's": (
        {"devices": 2, "memory_gb": 1},
        {"gpu": {"memory_gb": None}},
        Resources(devices=2, memory_bytes=1_000_000_000),
    ),
    "missing keeps the function's": (
        {"memory_gb": 1},
        Training(gpu=Gpu(devices=3)),
        Resources(devices=3, memory_bytes=1_000_000_000),
    ),
    "zero replaces the function's": ({"devices": 2}, {"gpu": {"devices": 0}}, Resources(0)),
    "a parameter's memory replaces the function's minimum": (
        {"memory_gb": 20, "memory_min_gb": 12},
        {"gpu": {"memory_gb": 18}},
        Resources(memory_bytes=18_000_000_000),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_declaration(name):
    declared, training, expected = CASES[name]
    assert declare(declared, training) == expected


def test_all_keys_are_tested():
    assert set(ALL) == set(KEYS)


def test_function_s_mapping_is_left_as_it_was():
    declared = {"devices": 2}
    declare(declared, {"gpu": {"devices": 4}})
    assert declared == {"devices": 2}


def declares_two(values):
    return values


declares_two.gpu_resources = {"devices": 2}


def test_function_of_a_partial_declares():
    wrapped = node(functools.partial(declares_two, values=1), None, "out", name="train")
    assert resources_of(wrapped, catalog_of({})).devices == 2


@pytest.mark.parametrize(
    ("declared", "training", "message"),
    [
        ({"memory": 1}, {}, "node 'train', gpu_resources: unknown keys memory; known are devices"),
        ({}, {"gpu": {"gb": 1, "a": 2}}, "node 'train', params:training: unknown keys a, gb"),
        ({1: 1}, {}, "unknown keys 1;"),
        ([1], {}, r"node 'train', gpu_resources: \[1\] is not a mapping; known are devices"),
        ({}, {"gpu": 2}, "node 'train', params:training: 2 is not a mapping"),
        (lambda node, catalog: 3, {}, "gpu_resources: 3 is not a mapping"),
        ({"devices": -1}, {}, "devices = -1 is not a whole number from 0 up"),
        ({"devices": True}, {}, "devices = True is not a whole number"),
        ({"devices": 1.5}, {}, "devices = 1.5 is not a whole number"),
        ({"memory_gb": float("inf")}, {}, "memory_gb = inf is not a number"),
        ({"parts_gb": {"weights": "x"}}, {}, "parts_gb = .* is not a mapping from parts"),
        ({"remedy": 1}, {}, "remedy = 1 is not text"),
        ({"memory_gb": "20"}, {}, "memory_gb = '20' is not a number"),
        ({"memory_gb": float("nan")}, {}, "memory_gb = nan is not a number"),
        ({"disk_gb": -0.5}, {}, "disk_gb = -0.5 is not a number"),
        ({}, {"gpu": {"memory_gb": "20 GB"}}, "params:training: memory_gb = '20 GB' is not"),
    ],
)
def test_error_says_where(declared, training, message):
    with pytest.raises(PreflightError, match=message) as caught:
        declare(declared, training)
    assert isinstance(caught.value, CudaRunnerError), "shown without a traceback"
