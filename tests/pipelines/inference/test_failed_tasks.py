"""Runs some of whose tasks have no answer."""

import json
import shutil

import pytest

# whose nodes answer in processes of their own; the tests below run in this one
RUNNER = "--runner=kedro_cuda_runner.CudaRunner"
FAILS = "--params=inference.fail_on_failed_tasks=true"
STORE = "07_model_output/test/answer_store.jsonl"


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def failing(finished_project, tmp_path_factory):
    """A finished project whose second task has become empty; its data."""
    copy = tmp_path_factory.mktemp("failing") / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    path = copy / "data/01_raw/demo/tasks.jsonl"
    tasks = read_lines(path)
    tasks[1]["input"] = " "
    lines = [json.dumps(task, ensure_ascii=False) + "\n" for task in tasks]
    path.write_text("".join(lines), "utf-8")
    return copy / "data"


def test_run_ends_with_a_list_when_all_is_saved(failing, run_kedro):
    outputs = [failing / "07_model_output/test/output.jsonl", failing / "08_reporting/test"]
    page = outputs[1] / "report.html"
    page.unlink()
    before = read_lines(outputs[0])
    stored = (failing / STORE).read_bytes()
    done = run_kedro(
        "--env=test", "--pipelines=inference,reporting", FAILS, RUNNER, cwd=failing.parent
    )
    assert done.returncode != 0
    shown = done.stdout + done.stderr
    failed = before[1]["task_id"]
    assert f"- {failed}: the task is empty" in shown
    assert f"of {len(before)} tasks have no answer" in shown
    answers = read_lines(outputs[0])
    assert [one["output"] for one in answers[2:]] == [one["output"] for one in before[2:]]
    assert answers[1] == {"task_id": failed, "input": " ", "output": ""}
    report = json.loads((outputs[1] / "inference_report.json").read_text("utf-8"))
    assert {"task_id": failed, "reason": "the task is empty"} in report["failed"]
    assert page.exists()
    # the other answers had been given before
    assert (failing / STORE).read_bytes() == stored


def test_it_fails_as_long_as_tasks_have_no_answer(failing, invoke_kedro):
    result = invoke_kedro("--env=test", "--only-missing-outputs", FAILS, cwd=failing.parent)
    assert result.exit_code != 0
    assert "the task is empty" in result.output + str(result.exception)


def test_run_goes_well_on_request(failing, invoke_kedro):
    result = invoke_kedro("--env=test", "--pipelines=inference,reporting", cwd=failing.parent)
    assert result.exit_code == 0, result.output


def test_both_models_answers_are_in_the_store(finished_project):
    data = finished_project / "data"
    answers = read_lines(data / "07_model_output/test/output.jsonl")
    compared = read_lines(data / "07_model_output/test/base_answers.jsonl")
    stored = [one["answer"]["text"] for one in read_lines(data / STORE)]
    assert sorted(stored) == sorted(one["output"] for one in answers + compared)


def test_answers_are_not_generated_twice(failing, invoke_kedro, monkeypatch):
    from ja_instruct.pipelines.inference import nodes

    monkeypatch.setattr(nodes, "load_engine", lambda *args: pytest.fail("a model was loaded"))
    result = invoke_kedro("--env=test", "--pipeline=inference", cwd=failing.parent)
    assert result.exit_code == 0, result.output
