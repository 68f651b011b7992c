"""A chat template that cannot be used is found before the first node runs."""

import shutil

import pytest
from kedro.io import DataCatalog, MemoryDataset

from ja_instruct.datasets import HubModelDataset, ModelDirectoryDataset, hub_model_dataset
from ja_instruct.pipelines import inference, quantization, sft
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.preflight.templates import template_problems

OPENS_BLOCK = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
)
ONE_TURN = (
    "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def problems(tiny_gemma2, read_parameters, tmp_path):
    """A function from pipelines and parameters to the problems; the model is without template."""
    model = shutil.copytree(tiny_gemma2.path, tmp_path / "model")

    def find(pipeline, *, base_model=None, template="", own=None, top_k=0, **prompts):
        if own:
            (model / "chat_template.jinja").write_text(own)
        sections = read_parameters("test")
        texts = {**sections["prompts"], "format": "chat_template", **prompts}
        settings = {**sections["quantization"], "chat_template": template}
        catalog = DataCatalog(
            {
                "base_model": base_model or ModelDirectoryDataset(filepath=model),
                "quantized_model": ModelDirectoryDataset(filepath=model),
                "params:prompts": MemoryDataset(texts),
                "params:quantization": MemoryDataset(QuantizationParameters(**settings)),
                "params:inference": MemoryDataset(
                    InferenceParameters(**{**sections["inference"], "top_k": top_k})
                ),
            }
        )
        return template_problems(pipeline.nodes, catalog)

    return find


TRAINING = sft.create_pipeline()
QUANTIZING = quantization.create_pipeline() + TRAINING
ANSWERING = inference.create_pipeline()


def test_template_of_the_model_that_is_there(problems):
    (problem,) = problems(TRAINING, own=OPENS_BLOCK)
    assert problem.startswith("'quantized_model': prompts.format is 'chat_template', but")
    assert "[assistant]<think>" in problem


def test_template_that_quantization_will_attach(problems):
    (problem,) = problems(QUANTIZING, template=OPENS_BLOCK)
    assert problem.startswith("'base_model': prompts.format")
    assert problems(QUANTIZING, template=OPENS_BLOCK, format="training_prompt") == []
    assert problems(QUANTIZING, template=ONE_TURN, own=OPENS_BLOCK)


def test_template_that_takes_no_examples(problems):
    (problem,) = problems(ANSWERING, own=ONE_TURN, top_k=3)
    assert "fails: one question" in problem
    assert problems(ANSWERING, own=ONE_TURN) == problems(TRAINING, own=ONE_TURN) == []


@pytest.mark.parametrize("expression", ["1 / 0", "range(10 ** 9)", "{}['x'].y", "'a' + 1"])
def test_template_that_fails_in_any_way(problems, expression):
    (problem,) = problems(QUANTIZING, template=f"{{{{ {expression} }}}}")
    assert "chat template of the tokenizer at" in problem
    assert " fails: " in problem


def test_tokenizer_of_the_hub_is_fetched(problems, monkeypatch, tiny_gemma2):
    fetched = []

    def fetch(repo_id, revision, name):
        fetched.append((repo_id, revision, name))
        return tiny_gemma2.path / name if (tiny_gemma2.path / name).exists() else None

    monkeypatch.setattr(hub_model_dataset, "fetch_file", fetch)
    hub = HubModelDataset(repo_id="owner/model", revision="v1")
    (problem,) = problems(QUANTIZING, base_model=hub, template=OPENS_BLOCK)
    assert "[assistant]<think>" in problem
    assert ("owner/model", "v1", "tokenizer.json") in fetched
    monkeypatch.setattr(hub_model_dataset, "fetch_file", lambda *_: None)
    assert problems(QUANTIZING, base_model=hub, template=OPENS_BLOCK) == []
