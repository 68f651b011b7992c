"""Reports that cannot be used are found before the first node runs."""

from types import SimpleNamespace

import pytest
from kedro.framework.project import configure_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node

from ja_instruct.datasets import JSONDataset
from ja_instruct.errors import InputError
from ja_instruct.preflight.run import REQUIRED_KEYS, check_run

REMEDY = (
    "remove it, and run its pipeline again; 'kedro run --pipeline=sft' (with the same --env) "
    "makes it"
)


@pytest.fixture
def check(tmp_path):
    configure_project("ja_instruct")
    path = tmp_path / "train_metrics.json"

    def run(content):
        path.write_text(content)
        catalog = DataCatalog(
            {"train_metrics": JSONDataset(filepath=path), "run_report": MemoryDataset()}
        )
        reporting = node(lambda report: report, "train_metrics", "run_report", name="report")
        pipeline = SimpleNamespace(nodes=[reporting])
        check_run(pipeline, catalog, only_missing_outputs=False)

    return run


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the file is empty; it was cut off or edited"),
        (
            '{"summary": {',
            "not valid JSON (line 1, column 14: Expecting property name enclosed in ",
        ),
        ("[]", "lacks 'summary', so it is not the report that this project writes"),
        ('{"train_loss": 1}', "lacks 'summary', so it is not the report"),
    ],
)
def test_report_that_cannot_be_used(check, tmp_path, content, fault):
    with pytest.raises(InputError) as caught:
        check(content)
    message = caught.value.message
    assert f"- 'train_metrics': {tmp_path}/train_metrics.json: {fault}" in message
    assert message.endswith(REMEDY)


def test_report_of_this_project(check):
    check('{"summary": {}}')


def test_finished_run_has_the_required_keys(finished_project):
    for name, keys in REQUIRED_KEYS.items():
        path = finished_project / f"data/08_reporting/test/{name}.json"
        if name != "export_report":  # which is made on request
            assert set(keys) <= set(JSONDataset(filepath=path).load())
