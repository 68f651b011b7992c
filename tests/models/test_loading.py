"""Where a model is loaded, and every way in which it may not be the directory's."""

import gc
import shutil
import sys
import time
import weakref
from types import SimpleNamespace

import accelerate
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from ja_instruct.errors import InputError
from ja_instruct.models import loading
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model, load_with_unsloth, require_loaded

Q_PROJ = "model.layers.1.self_attn.q_proj"


class Directory:
    """Records how its model is to be loaded."""

    def __init__(self, **config):
        self.config = {"model_type": "llama", **config}

    def load_config(self):
        return self.config

    def load_model(self, **kwargs):
        return kwargs


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the check of the loaded model; return the arguments it was called with."""
    calls = []
    monkeypatch.setattr(loading, "require_loaded", lambda *arguments: calls.append(arguments))
    return calls


def test_without_a_launcher_the_model_is_on_the_first_device(unchecked):
    directory = Directory()
    arguments = load_nf4_model(directory, "cuda")
    assert unchecked == [(arguments, directory)]
    assert arguments == {"device_map": {"": 0}, "dtype": torch.bfloat16}
    assert not torch.distributed.is_initialized()


def test_under_a_launcher_each_process_has_its_own_device(monkeypatch, unchecked):
    state = SimpleNamespace(local_process_index=3)
    monkeypatch.setattr(accelerate, "PartialState", lambda: state)
    assert load_nf4_model(Directory(), "cuda")["device_map"] == {"": 3}


@pytest.mark.parametrize(
    "config", [{"attn_logit_softcapping": 50.0}, {"text_config": {"attn_logit_softcapping": 50.0}}]
)
def test_soft_capped_attention_is_eager(unchecked, config):
    """transformers' default ignores the cap."""
    assert load_nf4_model(Directory(**config), "cuda")["attn_implementation"] == "eager"
    assert "attn_implementation" not in load_nf4_model(
        Directory(attn_logit_softcapping=None), "cuda"
    )


def test_soft_cap_of_the_attention_is_applied(tiny_nf4):
    model = load_nf4_model(tiny_nf4, "cpu")
    ids = {"input_ids": torch.arange(300, 340)[None]}
    with torch.no_grad():
        capped = model(**ids).logits
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = 0.1
        assert not torch.allclose(model(**ids).logits, capped, atol=1e-3)


@pytest.fixture
def other(tiny_nf4, tmp_path):
    """The same model in another directory."""
    copy = shutil.copytree(tiny_nf4.path, tmp_path / "gemma-2-27b-bnb-4bit")
    return ModelDirectory(copy, "unsloth/gemma-2-27b-bnb-4bit")


def test_unsloth_that_loads_another_model_is_detected(tiny_nf4, other, monkeypatch):
    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**kwargs):
            return other.load_model(device_map="cpu", dtype=torch.float32), "tokenizer"

    fake = SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    with pytest.raises(InputError, match=f"'{other.path}' was loaded instead of {tiny_nf4.path}"):
        load_with_unsloth(tiny_nf4, 128)
    assert load_with_unsloth(other, 128)[1] == "tokenizer"


def test_on_a_cpu_the_model_is_checked_before_it_is_dequantized(tiny_nf4, monkeypatch):
    checked = []

    def check(model, directory):
        checked.append((model.is_loaded_in_4bit, directory))

    monkeypatch.setattr(loading, "require_loaded", check)
    load_nf4_model(tiny_nf4, "cpu")
    assert checked == [(True, tiny_nf4)]


def test_memory_of_earlier_nodes_is_freed(monkeypatch, tiny_nf4):
    """bitsandbytes' layers and matrices outlive their model until garbage is collected."""
    model = tiny_nf4.load_model(device_map="cpu")
    layer = weakref.ref(model.model.layers[0].mlp.up_proj)
    gc.disable()
    try:
        del model
        assert layer() is not None
        emptied = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(layer()))
        loading.free_gpu_memory()
    finally:
        gc.enable()
    assert emptied == [None]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_freed_before_a_model_is_loaded(monkeypatch, unchecked, device):
    monkeypatch.setattr(loading, "free_gpu_memory", lambda: pytest.fail("freed"))
    monkeypatch.setattr(Directory, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="freed"):
        load_nf4_model(Directory(), device)


@pytest.fixture
def model(tiny_nf4):
    return tiny_nf4.load_model(device_map="cpu", dtype=torch.float32)


def test_the_directory_itself_passes_quickly(model, tiny_nf4):
    start = time.perf_counter()
    require_loaded(model, tiny_nf4)
    assert time.perf_counter() - start < 2


def test_under_an_adapter(model, tiny_nf4):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"]))
    require_loaded(adapted, tiny_nf4)
    layer = adapted.get_base_model().get_submodule(f"{Q_PROJ}.base_layer")
    layer.weight.data[0] ^= 1
    # neither the first nor the middle nor the last matrix
    require_loaded(adapted, tiny_nf4)


LINEAR_16 = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
LINEAR_4 = Linear4bit(64, 64, bias=False, quant_type="nf4")
IN_16_BITS = "is nf4 in the directory, not in 4 bits in the model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.config, "_name_or_path", "a/b"), "'a/b' was loaded instead"),
        (lambda model: setattr(model.config, "_name_or_path", ""), "'' was loaded instead"),
        (lambda model: model.set_submodule(Q_PROJ, LINEAR_16), f"'{Q_PROJ}.weight' {IN_16_BITS}"),
        (lambda model: model.dequantize(), IN_16_BITS),
        (
            lambda model: model.set_submodule("lm_head", LINEAR_4),
            r"'lm_head\.weight' is not in 4 bits in the directory, nf4 in the model",
        ),
        (
            lambda model: setattr(model.get_submodule(Q_PROJ).weight, "quant_type", "fp4"),
            f"'{Q_PROJ}.weight' is nf4 in the directory, fp4 in the model",
        ),
    ],
    ids=["hub name", "no name", "16 bits", "none in 4 bits", "one more in 4 bits", "fp4"],
)
def test_another_model_is_refused(model, tiny_nf4, change, message):
    change(model)
    with pytest.raises(InputError, match=message):
        require_loaded(model, tiny_nf4)


@pytest.mark.parametrize(
    "layer", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]
)
def test_other_bytes_in_the_first_and_the_last(model, tiny_nf4, layer):
    model.get_submodule(layer).weight.data[-1] ^= 1
    message = f"'{layer}.weight' in the model differs from {tiny_nf4.path}"
    with pytest.raises(InputError, match=message):
        require_loaded(model, tiny_nf4)


def test_directory_that_is_not_in_4_bits(tiny_gemma2):
    with pytest.raises(InputError, match="no 4-bit matrices in its safetensors"):
        require_loaded(tiny_gemma2.load_model(), tiny_gemma2)
