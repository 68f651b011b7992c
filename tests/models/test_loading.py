import gc
import shutil
import sys
import weakref
from types import SimpleNamespace

import accelerate
import pytest
import torch

from ja_instruct.errors import InputError
from ja_instruct.models import loading as devices
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model, load_with_unsloth


class Directory:
    """Notes how its model is to be loaded."""

    def __init__(self, **config):
        self.config = {"model_type": "llama", **config}

    def load_config(self):
        return self.config

    def load_model(self, **kwargs):
        return kwargs


@pytest.fixture
def unchecked(monkeypatch):
    """What was loaded need not be a model; returns what was to be checked."""
    asked = []
    monkeypatch.setattr(devices, "require_loaded", lambda *them: asked.append(them))
    return asked


def test_without_a_launcher_the_model_is_on_the_first_device(unchecked):
    directory = Directory()
    asked = load_nf4_model(directory, "cuda")
    assert unchecked == [(asked, directory)]
    assert asked == {"device_map": {"": 0}, "dtype": torch.bfloat16}
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("index", [0, 3])
def test_under_a_launcher_each_process_has_its_own_device(monkeypatch, unchecked, index):
    state = SimpleNamespace(local_process_index=index)
    monkeypatch.setattr(accelerate, "PartialState", lambda: state)
    assert load_nf4_model(Directory(), "cuda")["device_map"] == {"": index}


@pytest.mark.parametrize(
    "config", [{"attn_logit_softcapping": 50.0}, {"text_config": {"attn_logit_softcapping": 50.0}}]
)
def test_bounded_attention_is_written_out(unchecked, config):
    """transformers' default would leave the bound out."""
    assert load_nf4_model(Directory(**config), "cuda")["attn_implementation"] == "eager"
    assert "attn_implementation" not in load_nf4_model(
        Directory(attn_logit_softcapping=None), "cuda"
    )


def test_bound_of_the_attention_takes_effect(tiny_nf4):
    model = load_nf4_model(tiny_nf4, "cpu")
    ids = {"input_ids": torch.arange(300, 340)[None]}
    with torch.no_grad():
        bounded = model(**ids).logits
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = 0.1
        assert not torch.allclose(model(**ids).logits, bounded, atol=1e-3)


@pytest.fixture
def other(tiny_nf4, tmp_path):
    """The same model in another place."""
    copy = tmp_path / "gemma-2-27b-bnb-4bit"
    shutil.copytree(tiny_nf4.path, copy)
    return ModelDirectory(copy, "unsloth/gemma-2-27b-bnb-4bit")


def test_unsloth_that_loads_another_model_is_found_out(tiny_nf4, other, monkeypatch):
    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**kwargs):
            return other.load_model(device_map="cpu", dtype=torch.float32), "tokenizer"

    fake = SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    with pytest.raises(InputError, match=f"'{other.path}' was loaded, {tiny_nf4.path} was asked"):
        load_with_unsloth(tiny_nf4, 128)
    assert load_with_unsloth(other, 128)[1] == "tokenizer"


def test_on_a_cpu_the_check_comes_before_the_4_bits_go(tiny_nf4, monkeypatch):
    checked = []

    def check(model, directory):
        checked.append((model.is_loaded_in_4bit, directory))

    monkeypatch.setattr(devices, "require_loaded", check)
    load_nf4_model(tiny_nf4, "cpu")
    assert checked == [(True, tiny_nf4)]


def test_what_earlier_nodes_left_is_given_back(monkeypatch, tiny_nf4):
    """Layers of bitsandbytes outlive their model, and with them its matrices."""
    model = tiny_nf4.load_model(device_map="cpu")
    layer = weakref.ref(model.model.layers[0].mlp.up_proj)
    gc.disable()
    try:
        del model
        assert layer() is not None
        emptied = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(layer()))
        devices.free_gpu_memory()
    finally:
        gc.enable()
    assert emptied == [None]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_given_back_before_a_model_is_loaded(monkeypatch, unchecked, device):
    order = []
    monkeypatch.setattr(devices, "free_gpu_memory", lambda: order.append("free"))

    class Noting(Directory):
        def load_model(self, **kwargs):
            order.append("load")
            raise EOFError

    with pytest.raises(EOFError):
        load_nf4_model(Noting(), device)
    assert order == ["free", "load"]
