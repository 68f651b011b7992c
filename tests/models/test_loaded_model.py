"""Every way in which a model in memory may not be the directory's, one by one."""

import shutil
import time

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file

from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loaded_model import require_loaded

Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def model(tiny_nf4):
    return tiny_nf4.load_model(device_map="cpu", dtype=torch.float32)


def refused(model, directory, message):
    with pytest.raises(InputError, match=message):
        require_loaded(model, directory)


def test_the_directory_itself_in_a_moment(model, tiny_nf4):
    start = time.perf_counter()
    require_loaded(model, tiny_nf4)
    assert time.perf_counter() - start < 2


def test_under_an_adapter(model, tiny_nf4):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"]))
    require_loaded(adapted, tiny_nf4)
    layer = adapted.get_base_model().get_submodule(f"{Q_PROJ}.base_layer")
    layer.weight.data[0] ^= 1
    # the last by name is not adapted, the changed one is neither first nor middle nor last
    require_loaded(adapted, tiny_nf4)


def test_another_directorys_name(model, tiny_nf4, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_nf4.path, copy)
    asked = ModelDirectory(copy, "copy")
    refused(model, asked, f"'{tiny_nf4.path}' was loaded, {copy} was asked for")


@pytest.mark.parametrize("name", ["unsloth/gemma-2-27b-bnb-4bit", ""])
def test_a_hub_name(model, tiny_nf4, name):
    model.config._name_or_path = name
    refused(model, tiny_nf4, f"'{name}' was loaded")


def test_a_layer_in_16_bits(model, tiny_nf4):
    plain = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    model.set_submodule(Q_PROJ, plain)
    refused(model, tiny_nf4, f"'{Q_PROJ}.weight' is in 4 bits in the directory, not in the model")


def test_no_layer_in_4_bits(model, tiny_nf4):
    refused(model.dequantize(), tiny_nf4, "is in 4 bits in the directory, not in the model")


def test_one_layer_too_many_in_4_bits(model, tiny_nf4):
    model.set_submodule("lm_head", Linear4bit(64, 64, bias=False, quant_type="nf4"))
    refused(model, tiny_nf4, r"'lm_head\.weight' is in 4 bits in the model, not in the directory")


def test_another_4_bit_type(model, tiny_nf4):
    model.get_submodule(Q_PROJ).weight.quant_type = "fp4"
    refused(model, tiny_nf4, f"'{Q_PROJ}.weight' is nf4 in the directory, fp4 in the model")


@pytest.mark.parametrize(
    "layer", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]
)
def test_other_bytes_in_the_first_and_the_last(model, tiny_nf4, layer):
    model.get_submodule(layer).weight.data[-1] ^= 1
    refused(model, tiny_nf4, f"'{layer}.weight' of .* is not what the model holds")


def test_another_models_weights_under_the_same_name(model, tiny_nf4, tmp_path):
    """The directory is replaced behind the model's back."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_nf4.path, copy)
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name].flip(0)
    save_file(weights, copy / "model.safetensors")
    model.config._name_or_path = str(copy)
    refused(model, ModelDirectory(copy, "copy"), "is not what the model holds")


def test_directory_that_is_not_in_4_bits(tiny_gemma2):
    refused(tiny_gemma2.load_model(), tiny_gemma2, "no 4-bit matrices in its safetensors")
