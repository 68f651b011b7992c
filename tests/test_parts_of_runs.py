"""A run may begin and end with any node, and from any folder of the project."""

import logging
import shutil

import pytest
from kedro.pipeline import Pipeline
from records import read_lines

from ja_instruct.errors import InputError
from ja_instruct.pipeline_registry import register_pipelines
from ja_instruct.pipelines.data_filtering.pipeline import NOT_SAVED

OPTIONS = ("node_names", "from_nodes", "to_nodes")
REGISTERED = register_pipelines()
FILTER_OUTPUTS = {"filtered_pairs.jsonl", "rejected_pairs.jsonl"}


@pytest.mark.parametrize("name", REGISTERED)
def test_every_part_has_its_inputs(name, read_configuration):
    """As Kedro's session chooses it: from the sum of the pipelines that are asked for."""
    catalog = read_configuration("base")["catalog"]
    combined = Pipeline([]) + REGISTERED[name]
    for node in REGISTERED[name].nodes:
        for option in OPTIONS:
            part = combined.filter(**{option: [node.name]})
            assert node in part.nodes
            lacking = {
                one for one in part.inputs() if not one.startswith("params:") and one not in catalog
            }
            assert not lacking, (option, node.name)


def test_what_is_not_saved_has_no_entry(read_configuration):
    made = REGISTERED["__default__"].all_outputs()
    assert made - set(read_configuration("base")["catalog"]) == NOT_SAVED


def test_only_what_is_not_saved_is_made_again(caplog):
    caplog.set_level(logging.INFO, "ja_instruct.completed_pipeline")
    part = REGISTERED["__default__"].filter(
        from_nodes=["judge_pairs"], to_nodes=["judge_survivors"]
    )
    assert {node.name for node in part.nodes} == {
        *("extract_pairs", "find_rare_characters", "apply_replacements"),
        *("judge_pairs", "judge_survivors"),
    }
    assert "Also run, as their results are not saved: " in caplog.text
    caplog.clear()
    part = REGISTERED["__default__"].filter(from_nodes=["train"], to_nodes=["train"])
    assert [node.name for node in part.nodes] == ["train"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"node_names": ["nope"]}, ["node", "'nope'; its nodes: build_datasets, plot_loss, train"]),
        (
            {"from_nodes": ["trian"], "to_nodes": ["plot_los"]},
            ["'trian'; did you mean 'train'?", "'plot_los'; did you mean 'plot_loss'?"],
        ),
        ({"to_outputs": ["adaptor"]}, ["dataset", "'adaptor'; did you mean 'adapter'?"]),
        ({"from_inputs": ["xyz"]}, ["dataset", "'xyz'; its datasets: adapter, eval_dataset, "]),
        ({"tags": ["training"]}, ["tag", "'training'; its tags: gpu, sft"]),
        ({"from_nodes": ["train"], "to_nodes": ["build_datasets"]}, ["contains no nodes"]),
    ],
)
def test_a_wrong_name_is_one_message(chosen, words):
    """Kedro's own errors are tracebacks of a hundred lines without the names."""
    with pytest.raises(InputError) as caught:
        (Pipeline([]) + REGISTERED["sft"]).filter(**chosen)
    assert all(word in str(caught.value) for word in words)
    assert "params:" not in str(caught.value)


def test_a_wrong_pipeline_is_one_message():
    with pytest.raises(InputError, match=r"'stf'; the pipelines: data_filtering, .*publishing"):
        REGISTERED["stf"]
    assert "stf" not in REGISTERED


@pytest.fixture(scope="module")
def finished(finished_project, tmp_path_factory):
    copy = tmp_path_factory.mktemp("parts") / "project"
    return shutil.copytree(finished_project, copy, symlinks=True)


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        (["--nodes=split_pairs"], FILTER_OUTPUTS),
        pytest.param(
            ["--from-nodes=judge_pairs", "--to-outputs=filtered_pairs"],
            FILTER_OUTPUTS,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--pipeline=data_filtering", "--from-nodes=judge_survivors"],
            {*FILTER_OUTPUTS, "filter_report.json", "length_plot.json", "rejection_plot.json"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--from-inputs=prompts", "--to-outputs=answers"],
            {"output.jsonl"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_part_writes_what_the_whole_run_wrote(finished, invoke_kedro, arguments, outputs):
    paths = [path for name in outputs for path in finished.glob(f"data/*/test/**/{name}")]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    assert len(before) >= len(outputs)
    result = invoke_kedro("--env=test", *arguments, cwd=finished / "data")
    assert result.exit_code == 0, result.output
    for path, (content, written) in before.items():
        assert path.read_bytes() == content
        assert path.stat().st_mtime_ns > written


@pytest.mark.slow
def test_each_pipeline_alone(clean_project, invoke_kedro, tmp_path, list_files, finished_project):
    """From a clean start, one after the other; they write what one run of all writes."""
    copy = shutil.copytree(clean_project, tmp_path / "project", symlinks=True)
    for name in ("rag_index", "data_filtering", "quantization", "sft", "inference", "reporting"):
        result = invoke_kedro("--env=test", f"--pipeline={name}", cwd=copy)
        assert result.exit_code == 0, result.output
    leave_out = (".viz", "data/mlflow", "conf", "src")
    alone, together = (list_files(one, *leave_out) for one in (copy, finished_project))
    assert alone.keys() == together.keys()


def test_examples_are_kept_out_of_training(project, add_environment, invoke_kedro):
    """The pool has an entry of its own, and filtered pairs alone are trained on."""
    pool = {"type": "ja_instruct.datasets.JSONLinesDataset"}
    pool |= {"filepath": "data/01_raw/demo/qa_pairs.jsonl"}
    environment = add_environment(
        "apart",
        catalog={"few_shot_pool": pool, "qa_pairs": {"type": "MemoryDataset", "data": []}},
        parameters={"rag_index": {"retriever": "bm25"}},
    )
    result = invoke_kedro(
        environment,
        "--to-outputs=train_dataset,prompts",
        "--pipelines=data_filtering,quantization,rag_index,sft,inference",
    )
    assert result.exit_code == 0, result.output
    (samples,), (prompts,) = (
        project.glob(f"data/*/apart/{name}.jsonl") for name in ("train_dataset", "prompts")
    )
    assert '"qa_pairs"' not in samples.read_text("utf-8")
    questions = [pair["input"] for pair in read_lines(project / pool["filepath"])]
    for prompt in read_lines(prompts):
        assert len(prompt["shots"]) == 3
        assert all(shot["input"] in questions for shot in prompt["shots"])
