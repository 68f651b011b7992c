"""What another environment made is read, never rewritten."""

import re

import freshness_nodes as nodes
import pytest
from freshness_datasets import InPlaceDataset, Killed
from kedro.pipeline import node

from kedro_freshness import FreshnessError

ALL = ["clean", "train", "report"]
RATE = {"training": {"rate": 0.5}}
ALLOWED = {"freshness": {"rewrite_others": True}}


@pytest.fixture
def shared(project):
    """Return a project whose outputs the environment ``big`` made."""
    project.run(env="big")
    return project


def contents(project):
    return {
        path: path.read_bytes()
        for path in project.folder.rglob("*")
        if path.is_file() and path.name != "log"
    }


def test_read_by_another(shared):
    before = contents(shared)
    again = shared.again(env="small")
    assert again.nodes == []
    assert again.messages == ["Outputs: 4 fresh"]
    assert contents(shared) == before


def test_read_although_stale(shared):
    before = contents(shared)
    again = shared.again(env="small", params=RATE)
    assert again.nodes == []
    assert [line for line in again.messages if line.startswith("model")] == [
        "model is read as environment 'big' made it: training.rate was 0.1, is 0.5"
    ]
    assert contents(shared) == before


def test_own_outputs_of_shared_ones(shared):
    shared.catalog["report"]["filepath"] = str(shared.folder / "data/own.txt")
    assert shared.again(env="small").nodes == ["report"]
    assert shared.again(env="small").nodes == []
    # another parameter of what is shared does not count, as that is not made again
    assert shared.again(env="small", params=RATE).nodes == []
    # until its owner makes it again
    shared.catalog["report"]["filepath"] = str(shared.folder / "data/report.txt")
    shared.run(env="big", params=RATE)
    shared.catalog["report"]["filepath"] = str(shared.folder / "data/own.txt")
    again = shared.again(env="small")
    assert again.nodes == ["report"]
    assert "Made again: report: model has changed" in again.messages


def test_plain_run(shared):
    before = contents(shared)
    with pytest.raises(FreshnessError) as error:
        shared.run(env="small", node_names=["report"])
    head, line, remedy = error.value.message.splitlines()
    assert head == "the run would rewrite what another environment made:"
    who = "'report' (data/report.txt), by node 'report'; environment 'big' made it at "
    assert re.fullmatch(rf"  - {re.escape(who)}[-+:T\d]+", line)
    assert remedy == (
        "Give these a filepath of their own in the catalog of environment 'small'. To use them as "
        "they are, run with --only-missing-outputs, and point the node's other outputs at the "
        "other environment's too. --params=freshness.rewrite_others=true allows it."
    )
    assert contents(shared) == before


def test_all_are_named(shared):
    with pytest.raises(FreshnessError) as error:
        shared.run(env="small")
    assert [line.split("'")[1] for line in error.value.message.splitlines()[1:5]] == [
        "cleaned",
        "model",
        "metrics",
        "report",
    ]


def test_half_present_outputs(shared):
    """The trials' case: the model is shared, the metrics are not."""
    shared.catalog["metrics"]["filepath"] = str(shared.folder / "data/own.json")
    before = contents(shared)
    with pytest.raises(FreshnessError, match=r"'model' .*by node 'train'"):
        shared.again(env="small")
    assert contents(shared) == before


def test_half_present_because_of_data_in_memory(shared):
    """Its node runs for what it makes in memory."""
    del shared.catalog["metrics"]
    shared.catalog["count"] = shared.json_entry("count")
    whole = shared.pipelines["__default__"].nodes
    shared.set("__default__", *whole, node(nodes.as_list, "metrics", "count", name="count"))
    with pytest.raises(FreshnessError, match=r"'model' .*by node 'train'"):
        shared.again(env="small")


def test_missing_output_of_another(shared):
    """Nothing is rewritten."""
    shared.path("cleaned").unlink()
    assert shared.again(env="small").nodes == ["clean"]
    assert shared.record("cleaned")["environment"] == "small"
    assert shared.record("model")["environment"] == "big"


@pytest.mark.parametrize("only_missing", [False, True])
def test_allowed(shared, only_missing):
    params = {**RATE, **ALLOWED}
    run = shared.run(env="small", params=params, only_missing=only_missing)
    assert run.nodes == (ALL[1:] if only_missing else ALL)
    assert shared.record("model")["environment"] == "small"
    assert shared.read("model")["rate"] == 0.5


def test_unknown_origin_has_no_owner(shared):
    shared.write("model", {"by": "hand"})
    shared.path("cleaned").unlink()
    shared.path("metrics").unlink()
    (shared.folder / "data/report.txt").unlink()
    assert shared.run(env="small").nodes == ALL


def test_default_environment_is_local(project):
    project.run()
    assert project.record("model")["environment"] == "local"
    assert project.run(env="local").nodes == ALL
    with pytest.raises(FreshnessError, match="environment 'local' made it"):
        project.run(env="small")


def test_refused_run_leaves_the_datasets_as_they_are(shared):
    shared.catalog["metrics"]["filepath"] = str(shared.folder / "data/own.json")
    with pytest.raises(FreshnessError):
        shared.again(env="small")
    assert shared.again(env="big").nodes == ["train", "report"]


def test_half_written_output_of_another(project):
    path = str(project.folder / "data/text")
    project.catalog["text"] = {"type": "freshness_datasets.InPlaceDataset", "filepath": path}
    project.set(
        "__default__",
        node(nodes.join, "raw", "text", name="write"),
        node(nodes.report, "text", "report", name="report"),
    )
    InPlaceDataset.killed_after = 2
    with pytest.raises(Killed):
        project.run(env="big")
    again = project.again(env="small")
    assert again.nodes == ["report"]
    assert "text is read as environment 'big' made it: its save did not finish" in again.messages
    # its owner still knows
    assert project.again(env="big", node_names=["write"]).nodes == ["write"]
