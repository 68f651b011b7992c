"""What Kedro can do, it can do with nodes in processes of their own."""

import json
import logging

import gpu_nodes
import odd_datasets
import pytest
from fake_devices import FakeDevices
from kedro.io import CachedDataset, DataCatalog, MemoryDataset, Version
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.text import TextDataset

from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.errors import GpuNodeError

OLD, NEW = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"


def gpu_node(function, inputs, outputs, **arguments):
    return node(function, inputs, outputs, tags="gpu", **arguments)


def many_features(*, is_async):
    inner = pipeline([gpu_node(gpu_nodes.double, "numbers", "doubled", name="inner")])
    nodes = [
        gpu_node(gpu_nodes.start, None, "numbers", name="start"),
        gpu_node(gpu_nodes.scale, ["numbers", "params:factor"], "scaled", name="scale"),
        gpu_node(gpu_nodes.split, "scaled", ["low", "high"], name="split"),
        node(gpu_nodes.add, ["low", "high"], "sum", name="add"),
        gpu_node(gpu_nodes.as_text, "sum", "table@text", name="write"),
        node(gpu_nodes.double, "table@json", "from_table", name="read"),
        gpu_node(gpu_nodes.keep_nothing, "numbers", None, name="nothing"),
        gpu_node(
            gpu_nodes.scale, {"values": "cached", "factor": "params:factor"}, "tens", name="tens"
        ),
        gpu_node(sorted, "tens", "versioned", name="sort"),
        node(sorted, "versioned", "latest", name="latest"),
    ]
    if not is_async:  # Kedro refuses generators with --async
        nodes.append(gpu_node(gpu_nodes.mirror, "numbers", ["plus", "minus"], name="mirror"))
    return pipeline([*nodes, pipeline(inner, namespace="space", inputs="numbers")])


def catalog_in(folder):
    def at(name):
        return str(folder / name)

    (folder / "cached.json").write_text("[2, 1]")
    old = folder / "versioned.json" / OLD / "versioned.json"
    old.parent.mkdir(parents=True)
    old.write_text('["old"]')
    catalog = DataCatalog(
        {
            "params:factor": MemoryDataset(10),
            "scaled": JSONDataset(filepath=at("scaled.json")),
            "high": JSONDataset(filepath=at("high.json")),
            "table@text": TextDataset(filepath=at("table")),
            "table@json": JSONDataset(filepath=at("table")),
            "cached": CachedDataset(JSONDataset(filepath=at("cached.json"))),
            "tens": CachedDataset(MemoryDataset()),
            "space.doubled": CachedDataset(JSONDataset(filepath=at("doubled.json"))),
            "versioned": JSONDataset(filepath=at("versioned.json"), version=Version(None, NEW)),
        }
    )
    # from now on the dataset believes that the old version is the latest
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
def results(request, tmp_path_factory):
    """Return what Kedro's runner left, and what ours did."""
    folder = tmp_path_factory.mktemp("results")
    layer = FakeDevices(folder / "devices")
    ours = CudaRunner(is_async=request.param, layer=layer)
    return (
        run_in(folder / "kedro", SequentialRunner(is_async=request.param), request.param),
        run_in(folder / "ours", ours, request.param),
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

    def test_what_a_node_here_loads_is_the_version_just_saved(self, results):
        _, (outputs, files) = results
        assert outputs["latest"] == [10, 20]
        assert f"versioned.json/{NEW}/versioned.json" in files


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    return FakeDevices(tmp_path_factory.mktemp("devices"))


@pytest.fixture
def run(layer):
    def run(nodes, catalog, **arguments):
        return CudaRunner(layer=layer).run(pipeline(nodes), catalog, **arguments)

    return run


class TestStaysHere:
    def test_what_a_dataset_holds_in_memory_outlives_its_saving(self, run):
        held = odd_datasets.HeldDataset()
        run(
            [gpu_node(sorted, "x", "held")], DataCatalog({"x": MemoryDataset([2, 1]), "held": held})
        )
        assert held.load() == [1, 2]

    def test_the_cache_here_has_what_was_saved_there(self, run, tmp_path):
        cached = CachedDataset(JSONDataset(filepath=str(tmp_path / "cached.json")))
        catalog = DataCatalog({"x": MemoryDataset([2, 1]), "cached": cached})
        run([gpu_node(sorted, "x", "cached")], catalog)
        (tmp_path / "cached.json").unlink()
        assert cached.load() == [1, 2]

    def test_output_that_cannot_be_pickled(self, run):
        catalog = DataCatalog({"x": MemoryDataset(1)})
        with pytest.raises(GpuNodeError, match=r"'handle' cannot be passed .* catalog entry"):
            run([gpu_node(gpu_nodes.unpicklable, "x", "handle")], catalog)

    def test_input_that_cannot_be_pickled(self, run):
        catalog = DataCatalog({"handle": MemoryDataset(lambda: 1, copy_mode="assign")})
        with pytest.raises(GpuNodeError, match=r"'handle' cannot be passed .* catalog entry"):
            run([gpu_node(gpu_nodes.double, "handle", "y")], catalog)

    def test_loads_and_saves_are_logged_once(self, run, caplog):
        caplog.set_level(logging.INFO, logger="kedro")
        run([gpu_node(gpu_nodes.double, "x", "y")], DataCatalog({"x": MemoryDataset(1)}))
        told = [line for line in caplog.messages if line.endswith("(MemoryDataset)...")]
        assert told == [
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
def test_confirms(run, tmp_path, name, kind):
    (tmp_path / "taken.txt").write_text("text")
    catalog = DataCatalog(
        {
            "taken": odd_datasets.ConfirmedDataset(tmp_path / "taken.txt"),
            name: kind(tmp_path / f"{name}.txt"),
        }
    )
    run([gpu_node(gpu_nodes.double, "taken", "y", confirms=name)], catalog)
    assert (tmp_path / f"{name}.confirmed").exists()


class TestOnlyMissingOutputs:
    def test_a_finished_node_is_left_out(self, run, tmp_path):
        paths = {name: tmp_path / f"{name}.json" for name in ("a", "b")}
        catalog = DataCatalog(
            {name: JSONDataset(filepath=str(path)) for name, path in paths.items()}
        )
        nodes = [
            gpu_node(gpu_nodes.start, None, "a", name="first"),
            gpu_node(sorted, "a", "b", name="second"),
        ]
        paths["a"].write_text("[9, 8]")
        run(nodes, catalog, only_missing_outputs=True)
        assert json.loads(paths["b"].read_text()) == [8, 9]
        paths["b"].unlink()
        paths["a"].unlink()
        # existence is looked up on the disk, not remembered
        run(nodes, catalog, only_missing_outputs=True)
        assert json.loads(paths["b"].read_text()) == [1, 2, 3]

    def test_nothing_is_missing(self, run, tmp_path):
        (tmp_path / "a.json").write_text("1")
        catalog = DataCatalog({"a": JSONDataset(filepath=str(tmp_path / "a.json"))})
        run([gpu_node(gpu_nodes.start, None, "a")], catalog, only_missing_outputs=True)
        assert (tmp_path / "a.json").read_text() == "1"


class TestValidators:
    def catalog(self, folder, kind="kedro_datasets.json.JSONDataset", **validator):
        entry = {
            "type": kind,
            "filepath": str(folder / "numbers.json"),
            "validator": {"class": "odd_datasets.PositiveValidator", **validator},
        }
        catalog = DataCatalog.from_config({"numbers": entry})
        catalog["x"] = MemoryDataset([1.4, 2.6])
        catalog["bad"] = MemoryDataset([1, -1])
        return catalog

    def test_what_the_validator_makes_of_the_data_is_saved_and_loaded(self, run, tmp_path):
        catalog = self.catalog(tmp_path)
        nodes = [
            gpu_node(gpu_nodes.scale, ["x", "one"], "numbers", name="save"),
            gpu_node(gpu_nodes.double, "numbers", "y", name="load"),
        ]
        catalog["one"] = MemoryDataset(1)
        assert run(nodes, catalog)["y"].load() == [1, 3, 1, 3]
        assert json.loads((tmp_path / "numbers.json").read_text()) == [1, 3]

    def test_bad_data_is_refused_on_saving(self, run, tmp_path):
        with pytest.raises(GpuNodeError, match="not all are positive"):
            run([gpu_node(sorted, "bad", "numbers")], self.catalog(tmp_path))
        assert not (tmp_path / "numbers.json").exists()

    def test_switched_off_for_the_run(self, run, tmp_path):
        catalog = self.catalog(tmp_path)
        catalog.validation_enabled = False
        run([gpu_node(sorted, "bad", "numbers")], catalog)
        assert json.loads((tmp_path / "numbers.json").read_text()) == [-1, 1]
