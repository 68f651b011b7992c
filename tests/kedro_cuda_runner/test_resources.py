import functools
import types

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node
from pydantic import BaseModel

from kedro_cuda_runner.errors import CudaRunnerError, PreflightError
from kedro_cuda_runner.resources import GPU_TAG, KEYS, Resources, is_gpu_node, resources_of


class Gpu(BaseModel):
    devices: int | None = None
    memory_gb: float | None = None


class Training(BaseModel):
    steps: int = 10
    gpu: Gpu | None = None


def train_with(declared=None):
    def train(data, training):
        return data

    if declared is not None:
        train.gpu_resources = declared
    return train


def node_of(declared=None):
    return node(
        train_with(declared), ["data", "params:training"], "model", name="train", tags=GPU_TAG
    )


def resources_with(declared=None, training=None):
    catalog = DataCatalog(
        {
            "data": MemoryDataset([1, 2, 3]),
            "params:training": MemoryDataset({} if training is None else training),
        }
    )
    return resources_of(node_of(declared), catalog)


@pytest.mark.parametrize(("tags", "expected"), [(["gpu"], True), (["cpu", "gpus"], False)])
def test_gpu_nodes_are_known_by_their_tag(tags, expected):
    assert is_gpu_node(node(train_with(), ["data", "training"], "model", tags=tags)) is expected


class TestDefault:
    def test_one_device_of_its_own(self):
        assert resources_with() == Resources(
            devices=1, memory_bytes=None, disk_bytes=0, parts={}, remedy=""
        )

    @pytest.mark.parametrize("training", [{"steps": 3}, {"gpu": {}}, {"gpu": None}, 5, [1]])
    def test_parameters_that_say_nothing(self, training):
        assert resources_with(training=training) == Resources()

    def test_typed_parameters_that_say_nothing(self):
        assert resources_with(training=Training()) == Resources()

    def test_node_without_parameters(self):
        assert resources_of(node(len, "data", "size", tags=GPU_TAG), DataCatalog()) == Resources()


class TestFunction:
    def test_mapping(self):
        declared = {
            "devices": 2,
            "memory_gb": 1.5,
            "memory_min_gb": 1,
            "disk_gb": 0.25,
            "parts_gb": {"weights": 1, "cache": 0.5},
            "remedy": "lower training.batch_size",
        }
        assert resources_with(declared) == Resources(
            devices=2,
            memory_bytes=1_500_000_000,
            disk_bytes=250_000_000,
            memory_min_bytes=1_000_000_000,
            parts={"weights": 1_000_000_000, "cache": 500_000_000},
            remedy="lower training.batch_size",
        )
        assert set(declared) == set(KEYS)

    def test_estimate_is_given_node_and_catalog(self):
        def estimate(node, catalog):
            return {"memory_gb": len(catalog.load("data")), "remedy": node.name}

        assert resources_with(estimate) == Resources(memory_bytes=3_000_000_000, remedy="train")

    def test_estimate_that_does_not_know(self):
        assert resources_with(lambda node, catalog: {"memory_gb": None}).memory_bytes is None

    def test_no_memory_is_known_memory(self):
        assert resources_with({"memory_gb": 0}).memory_bytes == 0

    def test_no_devices(self):
        assert resources_with({"devices": 0}).devices == 0


class TestParameters:
    @pytest.mark.parametrize(
        "training",
        [
            {"gpu": {"devices": 4, "memory_gb": 20}},
            Training(gpu=Gpu(devices=4, memory_gb=20)),
            types.SimpleNamespace(gpu={"devices": 4, "memory_gb": 20}),
        ],
        ids=["mapping", "model", "object"],
    )
    def test_count_over_the_function(self, training):
        resources = resources_with(
            {"devices": 2, "memory_gb": 1, "disk_gb": 3, "remedy": "x"}, training
        )
        assert resources == Resources(4, 20_000_000_000, 3_000_000_000, remedy="x")

    def test_missing_and_null_leave_the_function_s(self):
        resources = resources_with({"devices": 2, "memory_gb": 1}, {"gpu": {"memory_gb": None}})
        assert resources == Resources(devices=2, memory_bytes=1_000_000_000)
        assert resources_with({"memory_gb": 1}, Training(gpu=Gpu(devices=3))).devices == 3

    def test_zero_is_not_missing(self):
        assert resources_with({"devices": 2}, {"gpu": {"devices": 0}}).devices == 0

    def test_function_s_mapping_is_left_as_it_was(self):
        declared = {"devices": 2}
        resources_with(declared, {"gpu": {"devices": 4}})
        assert declared == {"devices": 2}


def declares_two(values):
    return values


declares_two.gpu_resources = {"devices": 2}


def test_function_of_a_partial_declares():
    wrapped = node(functools.partial(declares_two, values=1), None, "out", name="train")
    assert resources_of(wrapped, DataCatalog()).devices == 2


def test_null_is_as_good_as_nothing():
    nothing = dict.fromkeys(("devices", "memory_gb", "disk_gb", "parts_gb", "remedy"))
    assert resources_with(nothing) == resources_with(lambda node, catalog: None) == Resources()


class TestLeast:
    def test_of_the_function(self):
        resources = resources_with({"memory_gb": 20, "memory_min_gb": 12})
        assert (resources.memory_bytes, resources.least_bytes) == (20_000_000_000, 12_000_000_000)

    def test_is_the_peak_where_nothing_else_is_said(self):
        assert resources_with({"memory_gb": 20}).least_bytes == 20_000_000_000
        assert resources_with({}).least_bytes is None

    def test_a_person_s_own_figure_counts_alone(self):
        resources = resources_with(
            {"memory_gb": 20, "memory_min_gb": 12}, {"gpu": {"memory_gb": 18}}
        )
        assert resources.least_bytes == resources.memory_bytes == 18_000_000_000


class TestErrors:
    @pytest.mark.parametrize(
        ("declared", "training", "said"),
        [
            (
                {"memory": 1},
                {},
                "node 'train', gpu_resources: unknown keys memory; known are devices",
            ),
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
    def test_said_where(self, declared, training, said):
        with pytest.raises(PreflightError, match=said):
            resources_with(declared, training)

    def test_shown_without_a_traceback(self):
        with pytest.raises(CudaRunnerError) as caught:
            resources_with({"memory": 1})
        assert caught.value.format_message().startswith("node 'train'")
