"""Runs with tasks that have no answer."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from records import read_lines

from ja_instruct.errors import InputError
from ja_instruct.pipelines.inference.answering import require_all_answered
from ja_instruct.pipelines.inference.parameters import InferenceParameters

RUNNER = "--runner=kedro_cuda_runner.CudaRunner"
FAILS = "--params=inference.fail_on_failed_tasks=true"
PIPELINES = "--pipelines=inference,reporting"
STORE = "07_model_output/test/answer_store.jsonl"
REPORT = {"failed": [{"task_id": 7, "reason": "the answer is empty"}], "summary": {"tasks": 3}}


@pytest.fixture(scope="module")
def failing(finished_project, tmp_path_factory):
    """The data of a finished project whose second task has become empty."""
    copy = tmp_path_factory.mktemp("failing") / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    path = copy / "data/01_raw/demo/tasks.jsonl"
    tasks = read_lines(path)
    tasks[1]["input"] = " "
    lines = [json.dumps(task, ensure_ascii=False) + "\n" for task in tasks]
    path.write_text("".join(lines), "utf-8")
    return copy / "data"


def last_status(data):
    """Return the MLflow status of the latest run."""
    client = MlflowClient(f"sqlite:///{data}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("ja-instruct")
    return client.search_runs([experiment.experiment_id])[0].info.status


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), (RUNNER,)], ids=["SequentialRunner", "CudaRunner"])
def test_run_ends_with_a_list_after_everything_is_saved(failing, run_kedro, options):
    output = failing / "07_model_output/test/output.jsonl"
    folder = failing / "08_reporting/test"
    (folder / "report.html").unlink()
    before = read_lines(output)
    stored = (failing / STORE).read_bytes()
    done = run_kedro("--env=test", PIPELINES, FAILS, *options, cwd=failing.parent)
    assert done.returncode == 1
    shown = done.stdout + done.stderr
    failed = before[1]["task_id"]
    assert f"of {len(before)} tasks have no answer" in shown
    assert f"- {failed}: the task is empty" in shown
    assert "2 of the base model" in " ".join(shown.split())
    assert "Traceback" not in shown
    assert last_status(failing) == "FAILED"
    answers = read_lines(output)
    assert [one["output"] for one in answers[2:]] == [one["output"] for one in before[2:]]
    assert answers[1] == {"task_id": failed, "input": " ", "output": ""}
    report = json.loads((folder / "inference_report.json").read_text("utf-8"))
    assert {"task_id": failed, "reason": "the task is empty"} in report["failed"]
    assert (folder / "report.html").exists()
    # the other answers were given before
    assert (failing / STORE).read_bytes() == stored


def test_run_of_missing_outputs_fails_while_tasks_have_no_answer(failing, invoke_kedro):
    result = invoke_kedro("--env=test", "--only-missing-outputs", FAILS, cwd=failing.parent)
    assert result.exit_code == 1
    assert "the task is empty" in result.output
    assert last_status(failing) == "FAILED"


def test_run_succeeds_on_request_without_generating_again(failing, invoke_kedro, monkeypatch):
    from ja_instruct.pipelines.inference import nodes

    monkeypatch.setattr(nodes, "load_engine", lambda *args: pytest.fail("a model was loaded"))
    result = invoke_kedro("--env=test", PIPELINES, cwd=failing.parent)
    assert result.exit_code == 0, result.output
    assert last_status(failing) == "FINISHED"


def test_both_models_answers_are_in_the_store(finished_project):
    data = finished_project / "data"
    answers = read_lines(data / "07_model_output/test/output.jsonl")
    compared = read_lines(data / "07_model_output/test/base_answers.jsonl")
    stored = [one["answer"]["text"] for one in read_lines(data / STORE)]
    assert sorted(stored) == sorted(one["output"] for one in answers + compared)


def test_failed_tasks_raise_an_error_or_are_a_warning(read_parameters, caplog):
    section = read_parameters("base")["inference"]
    strict = InferenceParameters(**section)
    assert strict.fail_on_failed_tasks
    require_all_answered({**REPORT, "failed": []}, 0, strict)
    assert not caplog.records
    with pytest.raises(InputError, match="1 of 3 tasks have no answer:\n  - 7: the answer is"):
        require_all_answered(REPORT, 0, strict)
    lenient = InferenceParameters(**{**section, "fail_on_failed_tasks": False})
    require_all_answered(REPORT, 0, lenient)
    assert "  - 7: the answer is empty" in caplog.text
