import shutil

import pytest
from click.testing import CliRunner
from records import read_lines

from ja_instruct.ask import ask


@pytest.fixture(scope="module")
def asked(finished_project, tmp_path_factory):
    """A copy of the finished project, since answers are added to its store."""
    copy = tmp_path_factory.mktemp("asked") / "project"
    return shutil.copytree(finished_project, copy, symlinks=True)


@pytest.fixture
def invoke(monkeypatch):
    def call(where, *args):
        monkeypatch.chdir(where)
        return CliRunner().invoke(ask, ["--env=test", *args])

    return call


def test_a_task_gets_the_examples_and_the_answer_of_the_run(asked, invoke, list_files):
    output = asked / "data/07_model_output/test"
    prompt, answer = (read_lines(output / name)[0] for name in ("prompts.jsonl", "output.jsonl"))
    before = list_files(asked, ".viz", "data/mlflow")
    # from a subfolder of the project
    result = invoke(asked / "data", "--show-prompt", prompt["input"])
    assert result.exit_code == 0, result.output
    assert prompt["prompt"] in result.output
    places = []
    for example in prompt["shots"]:
        score = f"{example['score']:.3f}"
        assert f"{score}  {example['input']}\n{example['output']}\n" in result.output
        places.append(result.output.index(score))
    assert places == sorted(places)
    assert result.stdout.endswith(f"回答\n{answer['output']}\n")
    # the answer was in the store
    assert list_files(asked, ".viz", "data/mlflow") == before


def test_a_new_question_is_answered_and_kept(asked, invoke):
    store = asked / "data/07_model_output/test/answer_store.jsonl"
    before = len(read_lines(store))
    result = invoke(asked, "富士山はどこにありますか。")
    assert "質問 (" in result.output
    assert "富士山はどこにありますか。" in result.output
    assert "### 回答" not in result.output
    assert len(read_lines(store)) == before + 1


def test_an_empty_question_has_no_answer(asked, invoke):
    result = invoke(asked, " ")
    assert result.exit_code != 0
    assert "no answer: the task is empty" in result.output


def test_missing_inputs_are_named(clean_project, invoke, tmp_path):
    copy = shutil.copytree(clean_project, tmp_path / "project", symlinks=True)
    result = invoke(copy, "質問")
    assert result.exit_code != 0
    for name in ("adapter", "quantized_model", "retrieval_index"):
        assert f"'{name}': " in result.output


def test_outside_a_project(invoke, tmp_path):
    result = invoke(tmp_path, "質問")
    assert result.exit_code != 0
    assert "is not in a Kedro project" in result.output


def test_is_a_command(asked, run_python):
    assert "QUESTION" in run_python("-m", "ja_instruct.ask", "--help", cwd=asked).stdout
