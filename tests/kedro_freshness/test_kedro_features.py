"""Kedro's ways to choose nodes and its kinds of datasets."""

import functools

import freshness_nodes as nodes
import pytest
from freshness_datasets import ServerDataset
from kedro.pipeline import node, pipeline

ALL = ["clean", "train", "report"]
RATE = {"training": {"rate": 0.5}}


@pytest.mark.parametrize(
    ("filters", "made"),
    [
        ({"from_nodes": ["train"]}, ["train", "report"]),
        ({"to_nodes": ["train"]}, ["train"]),
        ({"to_outputs": ["model"]}, ["train"]),
        ({"from_inputs": ["model"]}, []),
        ({"node_names": ["train"]}, ["train"]),
        ({"node_names": ["clean"]}, []),
        ({"tags": ["slow"]}, ["train"]),
    ],
)
def test_filters(project, filters, made):
    inputs = ["cleaned", "params:training"]
    train = node(nodes.train, inputs, ["model", "metrics"], name="train", tags="slow")
    clean, _, report = project.pipelines["__default__"].nodes
    project.set("__default__", clean, train, report)
    project.run()
    assert project.again(params=RATE, **filters).nodes == made
    stale = {name for name, kind in project.states(params=RATE).items() if kind == "stale"}
    expected = {"model", "metrics", "report"} if "train" not in made else {"report"}
    assert stale == (expected if "report" not in made else set())


def test_part_of_a_pipeline_is_recorded_alike(project):
    for name in ALL:
        project.run(node_names=[name])
    assert project.again().nodes == []


def test_namespaces(project):
    parts = [
        pipeline(
            project.default_pipeline(),
            namespace=name,
            inputs="raw",
            parameters={"params:limit": "params:limit"},
        )
        for name in ("first", "second")
    ]
    project.pipelines["__default__"] = sum(parts, pipeline([]))
    project.parameters |= {name: {"training": {"rate": 0.1}} for name in ("first", "second")}
    for name in ("cleaned", "model", "metrics"):
        for space in ("first", "second"):
            project.catalog[f"{space}.{name}"] = project.json_entry(f"{space}_{name}")
    project.run()
    assert project.record("second_model")["parameters"] == {"second.training.rate": 0.1}
    changed = {"second": {"training": {"rate": 0.5}}}
    assert set(project.again(params=changed).nodes) == {"second.train", "second.report"} - {
        "second.report"  # only in memory, and nobody needs it
    }
    assert set(project.again(params={"limit": 1}, node_namespaces=["first"]).nodes) == {
        "first.clean",
        "first.train",
    }


class TestVersions:
    """A versioned output has a record beside each version."""

    @pytest.fixture(autouse=True)
    def _versioned(self, project):
        project.catalog["cleaned"]["versioned"] = True
        project.catalog["model"]["versioned"] = True

    @staticmethod
    def versions(project, name="model"):
        return sorted(path.name for path in project.path(name).iterdir())

    def test_records(self, project):
        project.run()
        project.run(params=RATE)
        first, second = self.versions(project)
        for version, rate in ((first, 0.1), (second, 0.5)):
            (record,) = (project.path("model") / version / ".freshness").iterdir()
            assert record.name == "model.json.json"
            assert f'"training.rate": {rate}' in record.read_text()
        assert {path.name for path in project.path("model").iterdir()} == {first, second}

    def test_nothing_is_made_again(self, project):
        project.run()
        assert project.again().nodes == []
        assert len(self.versions(project)) == 1
        assert set(project.states().values()) == {"fresh"}

    def test_newest_version_counts(self, project):
        project.run()
        assert project.again(params=RATE).nodes == ALL[1:]
        assert len(self.versions(project)) == 2
        assert project.again(params=RATE).nodes == []
        assert project.again().nodes == ALL[1:]

    def test_input_of_this_run(self, project):
        """The report is of the version that this run has made, not of the one before."""
        project.run()
        project.run(params=RATE)
        assert "'rate': 0.5" in (project.folder / "data/report.txt").read_text()
        assert project.states(params=RATE)["report"] == "fresh"

    def test_older_version_is_loaded(self, project):
        project.run()
        project.run(params=RATE)
        first, _ = self.versions(project)
        run = project.run(
            node_names=["report"], load_versions={"model": first}, params={"limit": 2}
        )
        assert run.messages == []
        assert "'rate': 0.1" in (project.folder / "data/report.txt").read_text()
        # with the newest version the report is another
        again = project.again(params=RATE)
        assert again.nodes == ["report"]
        assert "Made again: report: model has changed" in again.messages

    def test_older_version_is_stale(self, project):
        project.run()
        project.run(params=RATE)
        first, _ = self.versions(project)
        run = project.run(node_names=["report"], load_versions={"model": first}, params=RATE)
        assert "model, an input of report, is stale: training.rate was 0.1, is 0.5" in run.text

    def test_save_with_a_fixed_version_to_load(self, project):
        project.run()
        (first,) = self.versions(project)
        with pytest.warns(UserWarning, match="Save version"):
            project.run(to_nodes=["train"], load_versions={"model": first}, params=RATE)
        _, second = self.versions(project)
        assert (project.path("model") / second / ".freshness/model.json.json").is_file()
        assert not list(project.folder.rglob("*.pending.json"))


def test_transcoded_dataset(project):
    """Both names are the same file."""
    del project.catalog["model"]
    project.catalog["model@json"] = project.json_entry("model")
    project.catalog["model@text"] = {
        "type": "text.TextDataset",
        "filepath": str(project.path("model")),
    }
    inputs = ["cleaned", "params:training"]
    project.set(
        "__default__",
        node(nodes.clean, ["raw", "params:limit"], "cleaned", name="clean"),
        node(nodes.train, inputs, ["model@json", "metrics"], name="train"),
        node(nodes.report, "model@text", "report", name="report"),
    )
    project.run()
    assert set(project.states().values()) == {"fresh"}
    assert project.again().nodes == []
    again = project.again(params=RATE)
    assert again.nodes == ["train", "report"]
    assert "Made again, because their inputs are: report" in again.messages
    assert set(project.states(params=RATE).values()) == {"fresh"}
    run = project.run(node_names=["report"])
    assert "model@text, an input of report, is stale" in run.text


def test_cached_dataset(project):
    """Kedro takes it for data in memory, so its parameters and inputs count."""
    cached = {"type": "CachedDataset", "dataset": project.catalog["cleaned"]}
    project.catalog["cleaned"] = cached
    project.run()
    assert project.path("cleaned").is_file()
    assert project.again().nodes == []
    assert project.again(params={"limit": 1}).nodes == ALL
    project.catalog["raw"] = {"type": "CachedDataset", "dataset": project.catalog["raw"]}
    assert project.again(params={"limit": 1}).nodes == []
    project.write("raw", [7])
    assert project.again().nodes == ALL


def test_partitions(project):
    project.catalog["parts"] = {
        "type": "partitions.PartitionedDataset",
        "path": str(project.folder / "data/parts"),
        "dataset": "text.TextDataset",
        "overwrite": True,
    }
    project.set(
        "__default__",
        node(nodes.partitions, "raw", "parts", name="split"),
        node(nodes.joined_partitions, "parts", "cleaned", name="join"),
    )
    project.run()
    assert project.read("cleaned") == ["1", "2", "3"]
    assert project.again().nodes == []
    project.write("raw", [5, 6])
    assert project.again().nodes == ["split", "join"]
    assert project.read("cleaned") == ["5", "6"]
    # the listing of before must not be read
    project.write("raw", [7])
    project.run()
    assert project.read("cleaned") == ["7"]
    (project.folder / "data/parts/part8").write_text("8")
    again = project.again()
    assert "Of unknown origin, taken as they are: parts." in again.text
    assert again.nodes == ["join"]


def test_dataset_factory(project):
    project.catalog = {
        "raw": project.json_entry("raw"),
        "{name}": {
            "type": "freshness_datasets.InPlaceDataset",
            "filepath": str(project.folder / "data/{name}.txt"),
        },
    }
    project.set(
        "__default__",
        node(nodes.join, "raw", "one", name="one"),
        node(nodes.join, ["one", "params:limit"], "two", name="two"),
    )
    project.run()
    assert project.again().nodes == []
    assert project.again(params={"limit": 1}).nodes == ["two"]
    (project.folder / "data/one.txt").unlink()
    assert project.again(params={"limit": 1}).nodes == ["one", "two"]


def test_node_without_outputs(project):
    """Kedro always runs it."""
    notify = node(nodes.keep_nothing, "model", None, name="notify")
    project.set("__default__", *project.default_pipeline().nodes, notify)
    project.run()
    assert project.again().nodes == ["notify"]
    run = project.run(node_names=["notify"], params=RATE)
    assert "model, an input of notify, is stale" in run.text
    assert project.again(params=RATE).nodes == ["train", "notify", "report"]


def test_node_without_outputs_after_data_in_memory(project):
    """What is made for it only is made again by each run; what others read is not."""
    del project.catalog["metrics"]
    notify = node(nodes.keep_nothing, "metrics", None, name="notify")
    project.set("__default__", *project.default_pipeline().nodes, notify)
    project.run()
    assert set(project.again().nodes) == {"train", "notify"}
    assert set(project.states().values()) == {"fresh"}


def test_output_on_a_server(project):
    """It has no record, and its description counts."""
    ServerDataset.texts.clear()
    project.catalog["table"] = {"type": "freshness_datasets.ServerDataset", "table": "a"}
    project.set(
        "__default__",
        node(nodes.join, ["raw", "params:limit"], "table", name="upload"),
        node(nodes.join, "table", "report", name="report"),
    )
    project.run()
    assert project.states() == {"table": "unknown", "report": "fresh"}
    again = project.again(params={"limit": 1})
    assert again.nodes == []
    assert "Of unknown origin, taken as they are: table." in again.text
    ServerDataset.texts["b"] = "other"
    project.catalog["table"]["table"] = "b"
    again = project.again()
    assert again.nodes == ["report"]
    ServerDataset.texts.clear()
    assert project.again().nodes == ["upload", "report"]


def test_plain_run_asks_no_server(project, monkeypatch):
    project.catalog["table"] = {"type": "freshness_datasets.ServerDataset", "table": "a"}
    project.set(
        "__default__",
        node(nodes.join, "raw", "table", name="upload"),
        node(nodes.join, "table", "report", name="report"),
    )
    project.run()

    def refuse(_):
        raise AssertionError

    monkeypatch.setattr(ServerDataset, "_exists", refuse)
    assert project.run().nodes == ["upload", "report"]
    assert project.run(node_names=["report"]).nodes == ["report"]


def test_dataset_with_its_own_fingerprint(project):
    entry = {"type": "freshness_datasets.FingerprintedDataset"}
    project.catalog["text"] = {**entry, "filepath": str(project.folder / "data/text")}
    project.set(
        "__default__",
        node(nodes.join, ["raw", "params:limit"], "text", name="write"),
        node(nodes.join, "text", "report", name="report"),
    )
    project.run()
    assert project.states() == {"text": "fresh", "report": "fresh"}
    assert project.again().nodes == []


def test_input_that_is_downloaded_while_the_node_runs(project):
    entry = {"type": "freshness_datasets.HandleDataset"}
    project.catalog["text"] = {**entry, "filepath": str(project.folder / "data/text")}
    project.set("__default__", node(nodes.use, "text", "report", name="report"))
    project.run()
    assert project.states() == {"report": "fresh"}
    assert project.again().nodes == []
    (project.folder / "data/text").write_text("another")
    assert project.again().nodes == ["report"]


@pytest.mark.parametrize("raw", [[], {"a": 1}])
def test_functions(project, raw):
    """Lambdas, partials and built-in functions."""
    project.write("raw", raw)
    partial = functools.partial(nodes.as_list, "bound")
    project.set(
        "__default__",
        node(lambda value: value, "raw", "cleaned", name="lambda"),
        node(partial, "cleaned", "model", name="partial"),
        node(len, "model", "metrics", name="built_in"),
    )
    project.run()
    assert project.again().nodes == []
    assert project.record("metrics")["code"].startswith("builtins")
    project.write("raw", ["other"])
    assert project.again().nodes == ["lambda", "partial", "built_in"]


def test_one_hook_for_many_runs(project):
    """As in a notebook, or in a session that runs many times."""
    from kedro_freshness import FreshnessHook

    hook = FreshnessHook()
    project.run(hook=hook)
    assert project.again(hook=hook).nodes == []
    assert project.again(hook=hook, params=RATE, env="local").nodes == ["train", "report"]
    assert project.again(hook=hook).nodes == ["train", "report"]
    project.run(hook=hook, params=RATE)
    assert set(project.states(params=RATE).values()) == {"fresh"}
    # another catalog with the same names
    first = project.record("model")
    for name in ("cleaned", "model", "metrics"):
        project.catalog[name] = project.json_entry(f"other_{name}")
    project.run(hook=hook)
    assert project.record("model") == first
    assert project.record("other_model")["parameters"]["training.rate"] == 0.1


def test_masks_are_taken_off(project):
    """A catalog that outlives its run says what exists."""
    import kedro_freshness.hooks as hooks

    project.run()
    seen = []
    original = hooks._detach

    def detach(pipeline, catalog):
        seen.append(catalog)
        original(pipeline, catalog)

    hooks._detach = detach
    try:
        project.again(params=RATE, to_nodes=["train"])
    finally:
        hooks._detach = original
    (catalog,) = seen
    for name in ("model", "metrics"):
        assert catalog.exists(name)
        assert "exists" not in vars(catalog[name])
        assert hooks.DRAFT not in vars(catalog[name])
