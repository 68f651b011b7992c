"""Which outputs a run with ``--only-missing-outputs`` makes again, and what it says."""

import math
from datetime import date

import freshness_nodes as nodes
import pytest
from kedro.io import MemoryDataset
from kedro.pipeline import node, pipeline

from kedro_freshness import FreshnessError

ALL = ["clean", "train", "report"]


def test_nothing_is_made_again(project):
    assert project.run().nodes == ALL
    again = project.again()
    assert again.nodes == []
    assert again.messages == ["Outputs: 4 fresh"]
    assert set(project.states().values()) == {"fresh"}


@pytest.mark.parametrize(
    ("params", "reason", "made"),
    [
        (
            {"training": {"rate": 0.5}},
            "training.rate was 0.1, is 0.5",
            ["train", "report"],
        ),
        (
            {"training": {"lora": {"rank": 16}}},
            "training.lora.rank was 8, is 16",
            ["train", "report"],
        ),
        ({"limit": 1}, "limit was 2, is 1", ALL),
        ({"training": {"lora": {"rank": 8.0}}}, "training.lora.rank was 8, is 8.0", ALL[1:]),
        ({"training": {"extra": 1}}, "training.extra was not there, is 1", ALL[1:]),
    ],
)
def test_changed_parameter(project, params, reason, made):
    project.run()
    again = project.again(params=params)
    assert again.nodes == made
    assert any(line.startswith("Made again: ") and reason in line for line in again.messages)
    assert project.again(params=params).nodes == []
    assert project.reasons("model")[0].startswith(("training", "cleaned"))


def test_messages_of_a_changed_parameter(project):
    project.run()
    again = project.again(params={"training": {"rate": 0.5}})
    assert again.messages == [
        "Outputs: 1 fresh, 3 stale",
        "Made again: model, metrics: training.rate was 0.1, is 0.5",
        "Made again, because their inputs are: report",
    ]
    assert project.read("model")["rate"] == 0.5


@pytest.mark.parametrize(
    ("before", "after", "is_changed"),
    [
        (1, True, True),
        (math.nan, math.nan, False),
        ({1, 2, 3}, {3, 2, 1}, False),
        ((1, 2), [1, 2], False),
        ({"a": {}}, {"a": None}, True),
        (date(2026, 1, 1), date(2026, 1, 2), True),
        (object(), object(), False),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}], False),
    ],
)
def test_values_of_parameters(project, before, after, is_changed):
    project.set("__default__", node(lambda one, _: one, ["raw", "params:value"], "cleaned"))
    project.parameters["value"] = before
    project.run()
    project.parameters["value"] = after
    assert bool(project.again().nodes) == is_changed


def test_parameter_that_went(project):
    project.run()
    del project.parameters["training"]["lora"]
    assert project.reasons("model") == ["training.lora.rank was 8, is not there"]


def test_all_parameters_as_an_input(project):
    project.set("__default__", node(nodes.as_list, ["raw", "parameters"], "cleaned", name="all"))
    project.run()
    assert project.again(params={"freshness": {"count_code": True}}).nodes == []
    assert project.again(params={"training": {"rate": 1}}).nodes == ["all"]


def test_parameter_that_a_hook_has_put_into_the_catalog(project):
    project.set("__default__", node(nodes.as_list, ["raw", "params:today"], "cleaned", name="add"))
    project.data["params:today"] = "Monday"
    project.run()
    assert project.again().nodes == []
    project.data["params:today"] = "Tuesday"
    assert project.reasons("cleaned") == ["params:today has changed"]
    assert project.again().nodes == ["add"]


def test_changed_input(project):
    project.run()
    project.write("raw", [9, 8, 7])
    again = project.again()
    assert again.nodes == ALL
    assert "Made again: cleaned: raw has changed" in again.messages


def test_input_with_another_time_only(project):
    project.run()
    project.path("raw").touch()
    assert project.again().nodes == []


def test_equal_result_of_a_changed_input(project):
    project.run()
    project.write("raw", [2, 1, 3])
    project.run(node_names=["clean"])
    # the content of 'cleaned' is what the model was made of
    assert project.again().nodes == []


def test_deleted_input(project):
    project.run()
    project.path("raw").unlink()
    assert project.again().nodes == []


def test_input_that_comes_later(project):
    project.catalog["cache"] = project.json_entry("cache")
    project.catalog["cache"]["type"] = "freshness_datasets.InPlaceDataset"
    project.set("__default__", node(nodes.clean, ["raw", "params:limit"], "cleaned", name="clean"))
    project.run()
    project.set(
        "__default__",
        node(
            lambda raw, limit, cache: raw, ["raw", "params:limit", "cache"], "cleaned", name="clean"
        ),
    )
    project.write("cache", [])
    assert project.states()["cleaned"] == "fresh"  # an input that came with new code


def test_missing_output_and_its_dependants(project):
    project.run()
    project.path("cleaned").unlink()
    again = project.again()
    assert again.nodes == ALL
    assert "Made again, because their inputs are: model, metrics, report" in again.messages


def test_only_dependants_are_made_again(project):
    other = node(nodes.as_list, "raw", "copy", name="copy")
    project.catalog["copy"] = project.json_entry("copy")
    project.set("__default__", *project.default_pipeline().nodes, other)
    project.run()
    assert project.again(params={"limit": 1}).nodes == ALL


def test_half_present_outputs(project):
    project.run()
    project.path("metrics").unlink()
    again = project.again()
    assert again.nodes == ["train", "report"]
    assert (
        "Made again, as node 'train' makes them together with metrics, which is missing: model"
        in again.messages
    )


@pytest.mark.parametrize("is_recorded", [True, False])
def test_unknown_origin_is_taken(project, is_recorded):
    if is_recorded:
        project.run()
    else:
        project.write("metrics", {})
    project.write("model", {"by": "hand"})
    again = project.again()
    assert project.read("model") == {"by": "hand"}
    unknown = "model" if is_recorded else "model, metrics"
    assert (
        f"Of unknown origin, taken as they are: {unknown}. To make them again, remove them, or run "
        "without --only-missing-outputs" in again.messages
    )
    # what is made of it is made of the new content
    assert again.nodes == (["report"] if is_recorded else ["clean", "report"])
    assert project.states()["model"] == "unknown"


def test_unknown_output_that_is_made_with_others(project):
    project.run()
    project.path("metrics").unlink()
    project.write("model", {"by": "hand"})
    again = project.again()
    assert again.nodes == ["train", "report"]
    assert project.states()["model"] == "fresh"


def test_removed_record(project):
    project.run()
    project.record_path("model").unlink()
    assert project.again(params={"training": {"rate": 0.5}}).nodes == ["train", "report"]
    project.record_path("model").unlink()
    project.record_path("metrics").unlink()
    assert project.again(params={"training": {"rate": 0.7}}).nodes == []


class TestMemory:
    """Data that is only in memory between two persisted outputs."""

    @pytest.fixture(autouse=True)
    def _without_cleaned(self, project):
        del project.catalog["cleaned"]

    def test_parameters_count(self, project):
        project.run()
        assert set(project.record("model")["parameters"]) == {
            "limit",
            "training.rate",
            "training.lora.rank",
        }
        assert list(project.record("model")["inputs"]) == ["raw"]
        assert project.again().nodes == []
        again = project.again(params={"limit": 1})
        assert again.nodes == ALL
        assert "Made again: model, metrics: limit was 2, is 1" in again.messages

    def test_inputs_count(self, project):
        project.run()
        project.write("raw", [5])
        assert project.again().nodes == ALL

    def test_data_in_memory_is_made_for_a_missing_output(self, project):
        project.run()
        project.path("model").unlink()
        again = project.again()
        assert again.nodes == ALL
        assert project.read("model")["rows"] == [1, 2]

    def test_unknown_output_beside_data_in_memory(self, project):
        split = node(nodes.train, ["raw", "params:training"], ["memory", "metrics"], name="split")
        made = node(nodes.report, "memory", "report", name="report")
        read = node(nodes.as_list, "metrics", "model", name="read")
        project.set("__default__", split, made, read)
        project.run()
        project.path("metrics").write_text("{}")
        project.record_path("metrics").unlink()
        project.run(node_names=["read"])
        (project.folder / "data/report.txt").unlink()
        # 'split' writes 'metrics' anew, so that 'model' must follow
        again = project.again()
        assert set(again.nodes) == {"split", "report", "read"}
        assert "Made again, as node 'split' makes them together: metrics" in again.messages
        assert set(project.states().values()) == {"fresh"}


class TestDataOfTheCatalog:
    """Data that the catalog itself holds."""

    @pytest.fixture(autouse=True)
    def _with_data(self, project):
        project.set("__default__", node(nodes.as_list, "given", "cleaned", name="use"))

    @pytest.mark.parametrize(
        ("before", "after", "is_changed"),
        [
            ([1, 2], [1, 2], False),
            ([1, 2], [1, 3], True),
            ({"a", "b"}, {"b", "a"}, False),
            (b"bytes", b"other", True),
        ],
    )
    def test_content_counts(self, project, before, after, is_changed):
        project.set("__default__", node(nodes.join, "given", "report", name="use"))
        project.data["given"] = MemoryDataset(before)
        project.run()
        project.data["given"] = MemoryDataset(after)
        assert bool(project.again().nodes) == is_changed

    def test_data_that_cannot_be_pickled(self, project):
        project.set("__default__", node(lambda _: "text", "given", "report", name="use"))
        project.data["given"] = MemoryDataset(lambda: 1, copy_mode="assign")
        project.run()
        project.data["given"] = MemoryDataset(lambda: 2, copy_mode="assign")
        assert project.again().nodes == []  # its name counts, not where it is in memory
        project.data["given"] = MemoryDataset(self.test_content_counts, copy_mode="assign")
        assert project.again().nodes == ["use"]

    def test_data_in_the_configuration(self, project):
        project.catalog["given"] = {"type": "MemoryDataset", "data": [1]}
        project.run()
        assert project.again().nodes == []
        project.catalog["given"]["data"] = [2]
        assert project.again().nodes == ["use"]


def test_plain_run_makes_all(project):
    assert project.run().messages == []
    assert project.run().nodes == ALL


def test_plain_run_warns_of_a_stale_input(project):
    project.run()
    run = project.run(node_names=["report"], params={"training": {"rate": 0.5}})
    assert run.nodes == ["report"]
    assert run.messages == [
        "model, an input of report, is stale: training.rate was 0.1, is 0.5. To make it again, run "
        "its pipeline, or all with --only-missing-outputs"
    ]


def test_warning_of_an_input_that_is_stale_by_its_inputs(project):
    project.run()
    run = project.run(node_names=["report"], params={"limit": 1})
    assert "model, an input of report, is stale: cleaned is stale." in run.text


def test_part_of_a_pipeline_leaves_what_is_stale_before_it(project):
    project.run()
    again = project.again(node_names=["report"], params={"training": {"rate": 0.5}})
    assert again.nodes == []
    assert (
        "report stays stale, as this run does not make its inputs again: model is stale"
        in again.messages
    )


@pytest.fixture
def edit_code(monkeypatch):
    """Return a function that changes what is known of the code."""

    def edit(digest):
        monkeypatch.setattr("kedro_freshness.inspection.code_of", lambda _: digest)
        monkeypatch.setattr("kedro_freshness.hooks.code_of", lambda _: digest)

    edit("project 1.0 aaaa")
    return edit


def test_code(project, edit_code):
    project.run()
    edit_code("project 1.0 bbbb")
    again = project.again()
    assert again.nodes == []
    assert again.messages[-1] == (
        "Made with other code or libraries, but kept: cleaned, model, metrics, report (code was "
        "project 1.0 aaaa, is project 1.0 bbbb). --params=freshness.count_code=true makes them "
        "again"
    )
    counted = {"freshness": {"count_code": True}}
    assert project.again(params=counted).nodes == ALL
    assert project.again(params=counted).nodes == []


def test_libraries(project, monkeypatch):
    versions = {"kedro": "1.0"}
    monkeypatch.setattr(
        "kedro_freshness.recipes.importlib.metadata.version", lambda name: versions[name]
    )
    project.libraries = ("kedro",)
    project.run()
    assert project.record("model")["libraries"] == {"kedro": "1.0"}
    versions["kedro"] = "2.0"
    again = project.again()
    assert again.nodes == []
    assert "(kedro was 1.0, is 2.0)" in again.text
    assert project.again(params={"freshness": {"count_code": True}}).nodes == ALL


def test_library_that_is_not_installed(project):
    project.libraries = ("kedro", "no-such-distribution")
    project.run()
    assert list(project.record("model")["libraries"]) == ["kedro"]


def test_parameter_that_came_with_new_code(project, edit_code):
    project.run()
    added = {"training": {"extra": 1}}
    assert project.reasons("model", params=added) == ["training.extra was not there, is 1"]
    edit_code("project 1.0 bbbb")
    again = project.again(params=added)
    assert again.nodes == []
    assert "training.extra was not there, is 1)" in again.text
    counted = {**added, "freshness": {"count_code": True}}
    assert project.again(params=counted).nodes == ["clean", "train", "report"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"count": True}, "'freshness.count' is unknown; the keys are count_code, rewrite_others"),
        ({"count_code": "yes"}, "'freshness.count_code' = 'yes': give true or false"),
        (True, "'freshness' = True: give a section with keys"),
    ],
)
def test_wrong_settings(project, section, message):
    with pytest.raises(FreshnessError) as error:
        project.run(params={"freshness": section})
    assert error.value.message == message


def test_node_with_another_name(project):
    """A node that was renamed has made the same."""
    project.run()
    train = node(nodes.train, ["cleaned", "params:training"], ["model", "metrics"], name="fit")
    project.set("__default__", train)
    assert project.again().nodes == []


def test_two_pipelines_make_the_same(project):
    inputs = ["cleaned", "params:training"]
    project.set("quick", node(nodes.train, inputs, ["model", "metrics"], name="quick"))
    project.run()
    again = project.again(name="quick")
    assert again.nodes == ["quick"]
    assert (
        "Made again: model, metrics: it was made by node 'train', not by 'quick'" in again.messages
    )
    assert project.again(name="quick").nodes == []
    # a reader takes what any of them has made
    project.set("read", node(nodes.report, "model", "report", name="report"))
    assert project.run("read").messages == []
    run = project.run("read", params={"training": {"rate": 2}})
    assert run.text.startswith("model, an input of report, is stale: training.rate was 0.1, is 2.")
    assert project.again().nodes == ["train", "report"]


def test_pipelines_that_need_each_other(project):
    project.set("__default__", node(nodes.as_list, "raw", "cleaned", name="there"))
    project.set("back", node(nodes.as_list, "cleaned", "raw", name="back"))
    project.run()
    project.run("back")
    assert project.states() == {"cleaned": "stale", "raw": "fresh"}
    assert project.again().nodes == ["there"]


def test_function_without_a_module(project):
    assert not hasattr(str.upper, "__module__")
    project.set("__default__", node(str.upper, "text", "report", name="built_in"))
    project.catalog["text"] = {"type": "text.TextDataset", "filepath": str(project.path("raw"))}
    project.run()
    assert project.again().nodes == []


def test_pipeline_of_another_package_in_the_catalog(project):
    """A dataset that cannot be created does not matter to a pipeline that does not need it."""
    project.catalog["broken"] = {"type": "no_such_package.Dataset"}
    project.set("other", *pipeline([node(nodes.as_list, "broken", "raw", name="fetch")]).nodes)
    project.run()
    assert project.again().nodes == []
