"""The table of which outputs must be equal."""

import pytest

TEXTS = {
    "03_primary/test/filtered_pairs.jsonl": '{"id": 1}\n',
    "06_models/test/checkpoints/a/checkpoint-4/trainer_state.json": "{}",
    "07_model_output/test/answer_store.jsonl": (
        '{"key": "a", "answer": {"text": "一", "seconds": 1}}\n'
        '{"key": "b", "answer": {"text": "二", "seconds": 1}}\n'
    ),
    "08_reporting/test/train_metrics.json": '{"summary": {"train_loss": 2.5, "train_seconds": 1}}',
    "08_reporting/test/report.html": (
        "<dt>train loss</dt><dd>2.5</dd>\n<dt>train seconds</dt><dd>1</dd>\n<dt>next</dt>"
    ),
    "08_reporting/test/rag_index_report.json": '{"model_id": "/old/data/06_models/test/tiny"}',
    "mlflow/mlflow.db": "old",
}
MAY_DIFFER = {
    "06_models/test/checkpoints/a/checkpoint-4/trainer_state.json": '{"step": 4}',
    "07_model_output/test/answer_store.jsonl": (
        '{"key": "c", "answer": {"text": "三", "seconds": 1}}\n'
        '{"key": "d", "answer": {"te\n'
        '{"key": "b", "answer": {"text": "二", "seconds": 2}}\n'
        '{"key": "a", "answer": {"text": "一", "seconds": 2}}\n'
    ),
    "08_reporting/test/train_metrics.json": (
        '{"summary": {"train_loss": 2.5, "train_seconds": 2, "resumed_from_step": 4}}'
    ),
    "08_reporting/test/report.html": (
        "<dt>train loss</dt><dd>2.5</dd>\n<dt>train seconds</dt><dd>2</dd>\n"
        "<dt>resumed from step</dt><dd>4</dd>\n\n<dt>next</dt>"
    ),
    "08_reporting/test/rag_index_report.json": '{"model_id": "/new/data/06_models/test/tiny"}',
    "mlflow/mlflow.db": "new",
}
DIFFERS = {
    "03_primary/test/filtered_pairs.jsonl": '{"id": 2}\n',
    "07_model_output/test/answer_store.jsonl": TEXTS[
        "07_model_output/test/answer_store.jsonl"
    ].replace("二", "三"),
    "08_reporting/test/train_metrics.json": '{"summary": {"train_loss": 2.6, "train_seconds": 1}}',
    "08_reporting/test/report.html": TEXTS["08_reporting/test/report.html"].replace("2.5", "2.6"),
}


@pytest.fixture
def outputs(benchmark_module):
    return benchmark_module("harness.outputs")


@pytest.fixture
def projects(tmp_path):
    def write(name, texts):
        for path, text in texts.items():
            file = tmp_path / name / "data" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        return tmp_path / name

    return lambda changes: (write("old", TEXTS), write("new", TEXTS | changes))


def test_what_may_differ(outputs, projects):
    assert outputs.differences(*projects(MAY_DIFFER)) == {}


@pytest.mark.parametrize("path", DIFFERS)
def test_what_must_be_equal(outputs, projects, path):
    assert list(outputs.differences(*projects({path: DIFFERS[path]}))) == [path]


def test_differing_keys_are_named(outputs, projects):
    path = "08_reporting/test/train_metrics.json"
    found = outputs.differences(*projects({path: DIFFERS[path]}))
    assert found == {path: "summary.train_loss: 2.5 -> 2.6"}


def test_a_truncated_report(outputs, projects):
    path = "08_reporting/test/train_metrics.json"
    found = outputs.differences(*projects({path: '{"summary": {'}))
    assert found[path].startswith("cannot be read")


@pytest.mark.parametrize(
    ("path", "shown", "text"),
    [
        ("08_reporting/test/export_report.json", None, "not in the undisturbed run"),
        ("08_reporting/test/unheard_of.json", None, "not in the table of outputs"),
        (
            "06_models/test/.adapter.0a1b2c3d.new/config.json",
            "06_models/test/.adapter.0a1b2c3d.new",
            "temporary, of a run that was killed",
        ),
    ],
)
def test_files_that_should_not_be(outputs, projects, path, shown, text):
    assert outputs.differences(*projects({path: "{}"})) == {shown or path: text}


def test_a_missing_file(outputs, projects):
    old, new = projects({})
    (new / "data/03_primary/test/filtered_pairs.jsonl").unlink()
    found = outputs.differences(old, new)
    assert found == {"03_primary/test/filtered_pairs.jsonl": "only in the undisturbed run"}


def test_inputs_are_no_outputs(outputs, projects):
    _, new = projects({"01_raw/demo/tasks.jsonl": "", "06_models/test/tiny_gemma2/config.json": ""})
    assert set(outputs.output_files(new)) == set(TEXTS)


def test_every_output_of_a_run_is_in_the_table(outputs, finished_project):
    paths = list(outputs.output_files(finished_project))
    assert [path for path in paths if outputs.rule_of(path) is None] == []
    # and the table has no row for nothing but for what only 'export' makes
    used = {outputs.rule_of(path) for path in paths}
    unused = {rule.pattern for rule in outputs.TABLE if rule not in used}
    assert unused == {"06_models/*/merged_model/*", "08_reporting/*/export_report.json"}
