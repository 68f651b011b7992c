"""Models and tokenizers of several kinds through quantization, training, answering and export."""

import math

import pytest
import torch
from datasets import Dataset
from model_kinds import MULTIMODAL, PLAIN, make_kind

from ja_instruct.datasets import AdapterDataset, MergedModelDataset, QuantizedModelDataset
from ja_instruct.engine.backends import load_engine
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.safetensors import read_headers
from ja_instruct.pipelines.export.nodes import check_merged_model, merge_adapter
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.quantization.nodes import measure_quantization, quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.sft.nodes import train
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.prompts import PromptParameters

# in the quick tests, which take about 2 s a kind; Qwen's tokenizer has no BOS
QUICK = ("mistral3", "qwen2_5_vl", "odd sizes", "token types")
LAYERS, MATRICES = 2, 7
TEXTS = [{"text": "日本の首都は東京です。"}]
SAMPLES = Dataset.from_list(
    [
        {
            "prompt": f"質問: {number}番の問いは?\n回答: ",
            "completion": "東京です。",
            "source": "qa_pairs",
        }
        for number in range(8)
    ]
)
PROMPTS = ["質問: 日本の首都は?\n回答: ", "富士山"]
TRAINING = {"max_steps": 2, "learning_rate": 0.01, "report_to": [], "save_strategy": "no"}


KINDS = [
    pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow)
    for one in (*MULTIMODAL, *PLAIN)
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return tmp_path_factory.mktemp(kind.replace(" ", "_"))


@pytest.fixture(scope="module")
def base(kind, folder, tiny_gemma2):
    return ModelDirectory(
        make_kind(kind, folder / "base_model", tiny_gemma2.load_tokenizer()), f"owner/{kind}", "a"
    )


@pytest.fixture(scope="module")
def quantization(read_parameters):
    return QuantizationParameters(**read_parameters("test")["quantization"])


@pytest.fixture(scope="module")
def quantized(base, quantization, folder):
    dataset = QuantizedModelDataset(filepath=folder / "quantized_model")
    dataset.save(quantize(base, quantization))
    return dataset.load()


@pytest.fixture(scope="module")
def trained(quantized, read_parameters, folder):
    section = read_parameters("test")["sft"]
    section["training"] |= TRAINING
    section["checkpoint_dir"] = str(folder / "checkpoints")
    artifact, metrics, _ = train(quantized, SAMPLES, SAMPLES, SftParameters(**section))
    dataset = AdapterDataset(filepath=folder / "adapter")
    dataset.save(artifact)
    return dataset.load(), metrics["summary"]


@pytest.fixture(scope="module")
def adapter(trained):
    return trained[0]


@pytest.fixture(scope="module")
def merged(base, adapter, folder, read_parameters):
    prompts = PromptParameters(**read_parameters("test")["prompts"])
    dataset = MergedModelDataset(filepath=folder / "merged_model")
    dataset.save(merge_adapter(base, adapter, prompts))
    return dataset.load()


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.arange(200, 240)[None]).logits


def test_every_matrix_is_quantized(base, quantized, quantization):
    report = measure_quantization(base, quantized, TEXTS, quantization)
    assert len(report["errors"]["by_matrix"]) == LAYERS * MATRICES
    assert 0.05 < report["summary"]["worst_relative_error"] < 0.15
    nats = [report["perplexity"][one]["nats_per_token"] for one in ("base", "quantized")]
    assert nats[0] != nats[1]
    assert all(map(math.isfinite, nats))
    # of the model as a whole; the report's has one layer at a time
    ids = torch.tensor([base.load_tokenizer()(TEXTS[0]["text"])["input_ids"]])
    with torch.no_grad():
        loss = base.load_model(dtype=torch.float32).eval()(ids, labels=ids).loss
    assert nats[0] == pytest.approx(loss.item(), rel=1e-4)
    assert not [name for name in read_headers(quantized.path) if "vis" in name]


def test_layers_alone_are_trained(trained):
    adapter, summary = trained
    assert summary["steps"] == TRAINING["max_steps"]
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    factors = read_headers(adapter.path)
    assert len(factors) == 2 * LAYERS * MATRICES
    assert all(name.startswith("base_model.model.model.layers.") for name in factors)


def test_engines_agree(quantized, adapter, read_parameters):
    answers = []
    for engine in ("one_by_one", "batched"):
        section = {**read_parameters("test")["inference"], "engine": engine}
        backend = load_engine(quantized, adapter, InferenceParameters(**section))
        answers.append(dict(backend.generate(PROMPTS)))
    for at in range(len(PROMPTS)):
        one, other = (found[at] for found in answers)
        assert not one.error
        assert (one.text, one.new_tokens, one.prompt_tokens) == (
            other.text,
            other.new_tokens,
            other.prompt_tokens,
        )


def test_merged_model_is_base_and_adapter(base, adapter, merged):
    report = check_merged_model(base, adapter, merged)["summary"]
    assert report["matrices"] == report["matrices_changed"] == LAYERS * MATRICES
    alone = logits_of(base.load_model(dtype=torch.float32))
    expected = logits_of(adapter.load_adapter(base.load_model(dtype=torch.float32)))
    found = logits_of(merged.load_model(dtype=torch.float32))
    assert (found - expected).abs().max() < 2e-3
    assert (found - alone).abs().max() > 0.1
    assert read_headers(merged.path).keys() == read_headers(base.path).keys()


def test_merged_multimodal_model_is_whole(kind, merged):
    if kind not in MULTIMODAL:
        assert "multimodal" not in merged.provenance["base"]
        return
    from transformers import AutoModelForImageTextToText

    whole, found = AutoModelForImageTextToText.from_pretrained(
        merged.path, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    alone = merged.load_model(dtype=torch.float32)
    assert (logits_of(whole) - logits_of(alone)).abs().max() < 1e-4
    card = (merged.path / "README.md").read_text("utf-8")
    assert "AutoModelForImageTextToText.from_pretrained" in card
