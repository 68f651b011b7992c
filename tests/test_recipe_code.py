"""A run with the recipe's settings, stage by stage, against the recipe in its libraries' own code.

The models are tiny and the computer has a CPU, so the training differs from ``conf/base`` in its
steps, its warm-up and its optimizer. The filter has such a test of its own
(``tests/pipelines/data_filtering/test_pipeline.py``), which takes real conversations.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import recipe_code
import yaml
from records import read_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAW = "data/01_raw/demo"
REPORTS = "data/08_reporting/test"
STEPS = 4
ANSWERS = 4
NEW_TOKENS = 1024
# RAGatouille encodes more than 32 tokens of a query with more than 23 words
LONG_TASK = "次の 語を 数えて ください: " + "富士山 " * 60
# what differs from conf/base: a CPU, and sizes
CHANGES: dict[str, Any] = {
    "sft": {
        "max_seq_length": 2048,
        "eval_fraction": 0.0,
        "lora": {"lora_r": 64, "lora_alpha": 64},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 8,
            "max_steps": STEPS,
            "save_steps": 300,
        },
    },
    "inference": {
        "top_k": 20,
        "max_query_tokens": None,
        "max_new_tokens": NEW_TOKENS,
        "compare_tasks": 0,
    },
}


@pytest.fixture(scope="module")
def finished(
    clean_project: Path,
    run_kedro: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a project after a run with the recipe's settings; its first task has many spaces."""
    project = tmp_path_factory.mktemp("recipe") / "project"
    shutil.copytree(clean_project, project, symlinks=True)
    conf = project / "conf/test/parameters.yml"
    settings = yaml.safe_load(conf.read_text("utf-8"))
    for section, values in CHANGES.items():
        for key, value in values.items():
            if isinstance(value, dict):
                settings[section][key].update(value)
            else:
                settings[section][key] = value
    conf.write_text(yaml.safe_dump(settings, allow_unicode=True), "utf-8")
    tasks = [{"task_id": 1000, "input": LONG_TASK}, *read_lines(project / RAW / "tasks.jsonl")]
    lines = [json.dumps(task, ensure_ascii=False) + "\n" for task in tasks]
    (project / RAW / "tasks.jsonl").write_text("".join(lines), "utf-8")
    process = run_kedro("--env=test", cwd=project)
    assert process.returncode == 0, process.stderr
    return project


def read_pool(project: Path) -> list[tuple[str, str]]:
    return [
        (pair["input"], pair["output"]) for pair in read_lines(project / RAW / "qa_pairs.jsonl")
    ]


def read_tensors(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


# the trainer's arguments that differ from the recipe's, and why
DECLARED = {
    # the samples are encoded before, by the same tokenizer
    "dataset_kwargs",
    # of evaluations, which the recipe has none of
    "eval_steps",
    "per_device_eval_batch_size",
    # none, where the recipe says nothing
    "lr_scheduler_kwargs",
    # what is logged and where, and the states of callbacks
    "report_to",
    "run_name",
    "logging_nan_inf_filter",
    "restore_callback_states_from_checkpoint",
}


def test_training_arguments(read_parameters, tmp_path, monkeypatch):
    from ja_instruct.pipelines.sft.parameters import SftParameters
    from ja_instruct.pipelines.sft.training import training_arguments

    # the arguments are those of a GPU
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    parameters = SftParameters(**read_parameters("base")["sft"])
    ours = training_arguments(parameters, str(tmp_path)).to_dict()
    theirs = recipe_code.training_arguments(tmp_path).to_dict()
    assert ours.keys() == theirs.keys()
    # its default follows transformers' log level
    names = ours.keys() - {"disable_tqdm"}
    assert {name for name in names if ours[name] != theirs[name]} == DECLARED


@pytest.mark.slow
def test_quantized_model(finished, read_parameters, tmp_path):
    import torch

    template = read_parameters("base")["quantization"]["chat_template"]
    recipe_code.quantize(finished / "data/06_models/test/tiny_gemma2", tmp_path, template)
    ours = read_tensors(finished / "data/06_models/test/quantized_model")
    theirs = read_tensors(tmp_path)
    assert ours.keys() == theirs.keys()
    states = {name for name in ours if name.endswith("quant_state.bitsandbytes__nf4")}
    assert len(states) == 14
    for name in ours.keys() - states:
        # unsloth loads the recipe's float16 as bfloat16, which ours are saved as
        half = theirs[name].dtype == torch.float16
        assert ours[name].equal(theirs[name].bfloat16() if half else theirs[name]), name
    for name in states:
        one, other = (json.loads(bytes(tensors[name].tolist())) for tensors in (ours, theirs))
        assert {**one, "dtype": ""} == {**other, "dtype": ""}, name


@pytest.mark.slow
def test_training(finished, read_parameters, tmp_path):
    filtered = read_lines(finished / "data/03_primary/test/filtered_pairs.jsonl")
    losses, adapter = recipe_code.train(
        finished / "data/06_models/test/quantized_model",
        [(pair["instruction"], pair["response"]) for pair in filtered] + read_pool(finished),
        read_parameters("base")["prompts"]["train_prompt"],
        tmp_path,
        STEPS,
    )
    history = json.loads((finished / REPORTS / "train_history.json").read_text("utf-8"))
    assert [entry["loss"] for entry in history if "loss" in entry] == pytest.approx(losses, 1e-6)
    saved = read_tensors(finished / "data/06_models/test/adapter")
    assert saved.keys() == adapter.keys()
    for name, tensor in saved.items():
        assert tensor.equal(adapter[name]), name


@pytest.mark.slow
def test_prompts(finished, read_parameters):
    from ja_instruct.retrieval.colbert_checkpoint import load_retriever, quiet

    # RAGatouille's own model; transformers 5 cannot load it without help
    retriever = load_retriever(finished / "data/06_models/test/tiny-colbert")
    tasks = [task["input"] for task in read_lines(finished / RAW / "tasks.jsonl")]
    texts = read_parameters("base")["prompts"]
    with quiet():
        expected = recipe_code.build_prompts(retriever, read_pool(finished), tasks, texts)
    prompts = read_lines(finished / "data/07_model_output/test/prompts.jsonl")
    assert len(prompts) == 21
    assert [prompt["prompt"] for prompt in prompts] == expected


@pytest.mark.slow
def test_answers(finished, read_parameters):
    prompts = read_lines(finished / "data/07_model_output/test/prompts.jsonl")
    expected = recipe_code.answer(
        finished / "data/06_models/test/quantized_model",
        finished / "data/06_models/test/adapter",
        [prompt["prompt"] for prompt in prompts[:ANSWERS]],
        read_parameters("base")["inference"]["bad_words"],
        NEW_TOKENS,
    )
    answers = read_lines(finished / "data/07_model_output/test/output.jsonl")
    assert [answer["output"] for answer in answers[:ANSWERS]] == expected
    report = json.loads((finished / REPORTS / "inference_report.json").read_text("utf-8"))
    assert sum(task["new_tokens"] for task in report["tasks"][:ANSWERS]) == ANSWERS * NEW_TOKENS
