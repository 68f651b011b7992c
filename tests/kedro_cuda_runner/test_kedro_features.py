"""Kedro's features work with nodes in their own processes."""

import json
import logging

import gpu_nodes
import odd_datasets
import pytest
from gpu_runs import catalog_of, gpu, run
from kedro.io import CachedDataset, DataCatalog, MemoryDataset, Version
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.text import TextDataset

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import GpuNodeError

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def many_features(*, is_async):
    inner = pipeline([gpu(gpu_nodes.double, "numbers", "doubled", "inner")])
    tens = {"values": "cached", "factor": "params:factor"}
    nodes = [
        gpu(gpu_nodes.start, None, "numbers"),
        gpu(gpu_nodes.scale, ["numbers", "params:factor"], "scaled"),
        gpu(gpu_nodes.split, "scaled", ["low", "high"]),
        node(gpu_nodes.add, ["low", "high"], "sum", name="add"),
        gpu(gpu_nodes.as_text, "sum", "table@text"),
        node(gpu_nodes.double, "table@json", "from_table", name="read"),
        gpu(gpu_nodes.keep_nothing, "numbers"),
        gpu(gpu_nodes.scale, tens, "tens", "tens"),
        gpu(sorted, "tens", "versioned", "sort"),
        node(sorted, "versioned", "latest", name="latest"),
    ]
    if not is_async:  # Kedro refuses generators with --async
        nodes.append(gpu(gpu_nodes.mirror, "numbers", ["plus", "minus"]))
    return pipeline([*nodes, pipeline(inner, namespace="space", inputs="numbers")])


def catalog_in(folder):
    def json_at(name, **arguments):
        return JSONDataset(filepath=str(folder / name), **arguments)

    (folder / "cached.json").write_text("[2, 1]")
    old = folder / "versioned.json" / OLD / "versioned.json"
    old.parent.mkdir(parents=True)
    old.write_text('["old"]')
    catalog = catalog_of(
        {
            "params:factor": 10,
            "scaled": json_at("scaled.json"),
            "high": json_at("high.json"),
            "table@text": TextDataset(filepath=str(folder / "table")),
            "table@json": json_at("table"),
            "cached": CachedDataset(json_at("cached.json")),
            "tens": CachedDataset(MemoryDataset()),
            "space.doubled": CachedDataset(json_at("doubled.json")),
            "versioned": json_at("versioned.json", version=Version(None, NEW)),
        }
    )
    # from now on the dataset takes the old version for the latest
    assert catalog.exists("versioned")
    assert catalog.load("versioned") == ["old"]
    return catalog


def run_in(folder, runner, is_async):
    """Return what a run left: its outputs, and its files' texts."""
    folder.mkdir()
    outputs = runner.run(many_features(is_async=is_async), catalog_in(folder))
    files = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: dataset.load() for name, dataset in outputs.items()}, files


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def results(request, layer, tmp_path_factory):
    """Return what Kedro's runner left, and what ours did."""
    folder = tmp_path_factory.mktemp("results")
    return (
        run_in(folder / "kedro", SequentialRunner(is_async=request.param), request.param),
        run_in(folder / "ours", CudaRunner(is_async=request.param, layer=layer), request.param),
    )


class TestResults:
    def test_outputs_are_the_same(self, results):
        (expected, _), (outputs, _) = results
        assert outputs == expected
        assert outputs["space.doubled"] == [3, 1, 2, 3, 1, 2]
        assert outputs["from_table"] == 80

    def test_files_are_the_same(self, results):
        (_, expected), (_, files) = results
        assert files == expected
        assert json.loads(files["high.json"]) == 30

    def test_node_here_loads_the_version_just_saved(self, results):
        _, (outputs, files) = results
        assert outputs["latest"] == [10, 20]
        assert f"versioned.json/{NEW}/versioned.json" in files


class TestStaysHere:
    def test_data_held_in_memory_is_kept(self, layer):
        held = odd_datasets.HeldDataset()
        run([gpu(sorted, "x", "held")], {"x": [2, 1], "held": held}, layer)
        assert held.load() == [1, 2]

    def test_cache_here_gets_the_saved_data(self, layer, tmp_path):
        cached = CachedDataset(JSONDataset(filepath=str(tmp_path / "cached.json")))
        run([gpu(sorted, "x", "cached")], {"x": [2, 1], "cached": cached}, layer)
        (tmp_path / "cached.json").unlink()
        assert cached.load() == [1, 2]

    @pytest.mark.parametrize(
        ("one", "x"),
        [
            (gpu(gpu_nodes.unpicklable, "x", "handle"), 1),
            (gpu(gpu_nodes.double, "handle", "y"), lambda: 1),
        ],
        ids=["output", "input"],
    )
    def test_data_that_cannot_be_pickled(self, layer, one, x):
        data = {"x": 1, "handle": MemoryDataset(x, copy_mode="assign")}
        with pytest.raises(GpuNodeError, match=r"'handle' cannot be passed .* catalog entry"):
            run([one], data, layer)

    def test_loads_and_saves_are_logged_once(self, layer, caplog):
        caplog.set_level(logging.INFO, logger="kedro")
        run([gpu(gpu_nodes.double, "x", "y")], {"x": 1}, layer)
        logged = [line for line in caplog.messages if line.endswith("(MemoryDataset)...")]
        assert logged == [
            "Loading data from x (MemoryDataset)...",
            "Saving data to y (MemoryDataset)...",
        ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("taken", odd_datasets.ConfirmedDataset),
        ("of_another_node", odd_datasets.ConfirmedDataset),
        ("taken", odd_datasets.ConfirmedHereDataset),
    ],
    ids=["an input", "none of its own", "one that stays"],
)
def test_confirms(layer, tmp_path, name, kind):
    (tmp_path / "taken.txt").write_text("text")
    taken = odd_datasets.ConfirmedDataset(filepath=str(tmp_path / "taken.txt"))
    data = {"taken": taken, name: kind(filepath=str(tmp_path / f"{name}.txt"))}
    run([gpu(gpu_nodes.double, "taken", "y", confirms=name)], data, layer)
    assert (tmp_path / f"{name}.confirmed").exists()


def test_only_missing_outputs(layer, tmp_path):
    paths = {name: tmp_path / f"{name}.json" for name in ("a", "b")}
    data = {name: JSONDataset(filepath=str(path)) for name, path in paths.items()}
    nodes = [gpu(gpu_nodes.start, None, "a"), gpu(sorted, "a", "b", "second")]
    paths["a"].write_text("[9, 8]")
    run(nodes, data, layer, only_missing_outputs=True)
    assert json.loads(paths["b"].read_text()) == [8, 9]
    # nothing is missing
    paths["b"].write_text("1")
    run(nodes, data, layer, only_missing_outputs=True)
    assert paths["b"].read_text() == "1"
    # existence is looked up on the disk, not remembered
    for path in paths.values():
        path.unlink()
    run(nodes, data, layer, only_missing_outputs=True)
    assert json.loads(paths["b"].read_text()) == [1, 2, 3]


class TestValidators:
    @pytest.fixture
    def catalog(self, tmp_path):
        entry = {
            "type": "kedro_datasets.json.JSONDataset",
            "filepath": str(tmp_path / "numbers.json"),
            "validator": {"class": "odd_datasets.PositiveValidator"},
        }
        catalog = DataCatalog.from_config({"numbers": entry})
        for name, value in {"x": [1.4, 2.6], "bad": [1, -1], "one": 1}.items():
            catalog[name] = MemoryDataset(value)
        return catalog

    def test_validated_data_is_saved_and_loaded(self, layer, tmp_path, catalog):
        nodes = [
            gpu(gpu_nodes.scale, ["x", "one"], "numbers"),
            gpu(gpu_nodes.double, "numbers", "y"),
        ]
        assert run(nodes, catalog, layer)["y"] == [1, 3, 1, 3]
        assert json.loads((tmp_path / "numbers.json").read_text()) == [1, 3]

    def test_bad_data_is_refused_on_saving(self, layer, tmp_path, catalog):
        with pytest.raises(GpuNodeError, match="not all are positive"):
            run([gpu(sorted, "bad", "numbers")], catalog, layer)
        assert not (tmp_path / "numbers.json").exists()

    def test_switched_off_for_the_run(self, layer, tmp_path, catalog):
        catalog.validation_enabled = False
        run([gpu(sorted, "bad", "numbers")], catalog, layer)
        assert json.loads((tmp_path / "numbers.json").read_text()) == [-1, 1]
