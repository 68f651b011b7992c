import json
import shutil

import pytest
import torch

from ja_instruct.errors import InputError
from ja_instruct.models import ModelDirectory
from ja_instruct.pipelines.quantization.nodes import quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

BLOCK = 64
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def parameters(read_parameters):
    """The recipe's, on the CPU."""
    return QuantizationParameters(**{**read_parameters("base")["quantization"], "device": "cpu"})


@pytest.fixture(scope="module")
def quantized(tiny_gemma2, parameters):
    """Model artifact and report."""
    return quantize(tiny_gemma2, parameters)


@pytest.fixture(scope="module")
def reloaded(tiny_nf4):
    """The saved 4-bit model, as transformers loads it back."""
    return tiny_nf4.load_model(device_map="cpu", dtype=torch.bfloat16)


def test_saved_settings_are_the_recipes(tiny_nf4):
    saved = tiny_nf4.load_config()["quantization_config"]
    assert saved["quant_method"] == "bitsandbytes"
    assert saved["load_in_4bit"] is True
    assert saved["load_in_8bit"] is False
    assert saved["bnb_4bit_quant_type"] == "nf4"
    assert saved["bnb_4bit_use_double_quant"] is True
    assert saved["bnb_4bit_compute_dtype"] == "bfloat16"


def test_every_linear_layer_is_loaded_back_in_4_bits(reloaded):
    from bitsandbytes.nn import Linear4bit

    in_4_bits = {name for name, layer in reloaded.named_modules() if isinstance(layer, Linear4bit)}
    assert {name.rsplit(".")[-1] for name in in_4_bits} == set(PROJECTIONS)
    assert len(in_4_bits) == 2 * len(PROJECTIONS)
    for name in in_4_bits:
        state = reloaded.get_submodule(name).weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
    assert reloaded.get_input_embeddings().weight.dtype == torch.bfloat16


def test_weights_are_close_to_the_original_and_no_finer_than_4_bits(tiny_nf4, tiny_gemma2):
    original = dict(tiny_gemma2.load_model().named_parameters())
    # in float32: rounding to bfloat16 would let values of one block meet
    dequantized = tiny_nf4.load_model(device_map="cpu", dtype=torch.float32).dequantize()
    compared = 0
    for name, weight in dequantized.named_parameters():
        if not name.removesuffix(".weight").endswith(PROJECTIONS):
            continue
        compared += 1
        error = (weight.float() - original[name]).norm() / original[name].norm()
        assert 0.03 < error < 0.15, name
        blocks = weight.reshape(-1, BLOCK)
        assert max(len(block.unique()) for block in blocks) <= 16, name
    assert compared == 2 * len(PROJECTIONS)


def test_what_is_not_quantized_is_the_original(reloaded, tiny_gemma2):
    original = dict(tiny_gemma2.load_model(dtype=torch.bfloat16).named_parameters())
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert reloaded.get_parameter(name).equal(original[name]), name


def test_tokenizer_is_saved_beside_the_weights(tiny_nf4, tiny_gemma2):
    text = "日本の首都は東京です。"
    expected = tiny_gemma2.load_tokenizer()(text)["input_ids"]
    assert tiny_nf4.load_tokenizer()(text)["input_ids"] == expected


def test_chat_template_is_added_where_there_is_none(tiny_gemma2, quantized, tiny_nf4, parameters):
    assert tiny_gemma2.load_tokenizer().chat_template is None
    assert quantized[1]["chat_template_added"] is True
    tokenizer = tiny_nf4.load_tokenizer()
    assert tokenizer.chat_template == parameters.chat_template
    turns = [{"role": "user", "content": "首都は?"}, {"role": "assistant", "content": "東京です。"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.strip() == (
        "<bos><start_of_turn>user\n首都は?<end_of_turn>\n"
        "<start_of_turn>model\n東京です。<end_of_turn>"
    )


@pytest.fixture
def with_template(tiny_gemma2, tmp_path):
    directory = tmp_path / "with_template"
    shutil.copytree(tiny_gemma2.path, directory)
    tokenizer = tiny_gemma2.load_tokenizer()
    tokenizer.chat_template = "the publisher's own"
    tokenizer.save_pretrained(directory)
    return ModelDirectory(directory, "tiny")


def test_publishers_chat_template_is_kept(with_template, parameters):
    artifact, report = quantize(with_template, parameters)
    assert artifact.tokenizer.chat_template == "the publisher's own"
    assert report["chat_template_added"] is False


def test_no_chat_template_is_added_when_none_is_wanted(tiny_gemma2, parameters):
    artifact, report = quantize(tiny_gemma2, parameters.model_copy(update={"chat_template": ""}))
    assert artifact.tokenizer.chat_template is None
    assert report["chat_template_added"] is False


def test_report(quantized, tiny_gemma2, parameters):
    _, report = quantized
    source = (tiny_gemma2.path / "model.safetensors").stat().st_size
    assert report["source"]["model_id"] == "tiny-random-gemma2"
    assert report["source"]["model_type"] == "gemma2"
    assert report["settings"] == parameters.model_dump(exclude={"chat_template", "gpu"})
    assert set(report["versions"]) == {"torch", "transformers", "bitsandbytes", "ja-instruct"}
    summary = report["summary"]
    assert summary["source_mb"] == round(source / 1e6, 1)
    assert summary["quantized_mb"] < summary["source_mb"] / 2
    json.dumps(report)


def test_provenance_counts_the_weights_before_they_are_packed(quantized, tiny_gemma2):
    artifact, report = quantized
    count = sum(weight.numel() for weight in tiny_gemma2.load_model().parameters())
    assert artifact.provenance["parameters"] == count
    assert artifact.provenance["stage"] == "quantization"
    assert artifact.provenance["source"] == report["source"]


def test_model_that_is_quantized_already_is_refused(tiny_nf4, parameters):
    message = "'tiny-random-gemma2' at .* is quantized already .*bitsandbytes.*16-bit weights"
    with pytest.raises(InputError, match=message):
        quantize(tiny_nf4, parameters)
