"""The weights that steps are taken with are those of the 4-bit model and its adapter."""

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from ja_instruct.engine.weights import (
    dequantize_model,
    keep_adapter_unmerged,
    merge_adapter,
    merge_in_bf16,
)

IDS = torch.tensor([[2, 300, 400, 500, 600, 700]])


@pytest.fixture
def in_4_bits(tiny_nf4):
    return lambda dtype=torch.float32: tiny_nf4.load_model(device_map="cpu", dtype=dtype).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def expected(in_4_bits, tiny_adapter):
    """Dequantized by transformers itself, with PEFT's adapter unmerged, in float32."""
    from peft import PeftModel

    plain = in_4_bits().dequantize(torch.float32)
    plain.is_loaded_in_4bit = False
    return logits(PeftModel.from_pretrained(plain, str(tiny_adapter.path)).eval())


def test_dequantized_weights_equal_those_of_transformers(in_4_bits):
    found = dequantize_model(in_4_bits(), torch.float32)
    assert not [layer for layer in found.modules() if isinstance(layer, Linear4bit)]
    theirs = dict(in_4_bits().dequantize(torch.float32).named_parameters())
    ours = dict(found.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_merged_model_equals_the_unmerged_one(in_4_bits, tiny_adapter, expected):
    merged = merge_adapter(dequantize_model(in_4_bits(), torch.float32), tiny_adapter)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert distance(logits(merged), expected) < 1e-5
    # the adapter is what makes the difference
    assert distance(logits(dequantize_model(in_4_bits(), torch.float32)), expected) > 0.01


def test_in_bfloat16_each_weight_is_rounded_once(in_4_bits, tiny_adapter):
    exact = merge_adapter(dequantize_model(in_4_bits(), torch.float32), tiny_adapter)
    merged = merge_in_bf16(in_4_bits(torch.bfloat16), tiny_adapter)
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}
    weights = dict(merged.named_parameters())
    for name, weight in exact.named_parameters():
        if "proj" in name:
            assert torch.equal(weights[name], weight.to(torch.bfloat16)), name


def test_unmerged_adapter_on_4_bit_weights(in_4_bits, tiny_adapter, expected):
    model = keep_adapter_unmerged(in_4_bits(torch.bfloat16), tiny_adapter)
    assert any(isinstance(layer, Linear4bit) for layer in model.modules())
    factors = [weight.dtype for name, weight in model.named_parameters() if "lora_" in name]
    assert set(factors) == {torch.bfloat16}
    # bfloat16 keeps 8 bits
    assert distance(logits(model.eval()), expected) < 0.03


@pytest.mark.parametrize("take_up", [merge_in_bf16, keep_adapter_unmerged])
def test_without_an_adapter(in_4_bits, take_up):
    found = logits(take_up(in_4_bits(torch.bfloat16), None).eval())
    assert distance(found, logits(dequantize_model(in_4_bits(), torch.float32))) < 0.03


def test_only_one_matrix_at_a_time_exists_in_both_forms(in_4_bits, monkeypatch):
    """What has been replaced is held by nobody while the next is computed."""
    import gc
    import weakref

    from bitsandbytes import functional

    model = in_4_bits()
    held = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, Linear4bit)]
    theirs = functional.dequantize_4bit
    left = []

    def watched(*args, **kwargs):
        gc.collect()
        left.append(sum(one() is not None for one in held))
        return theirs(*args, **kwargs)

    monkeypatch.setattr(functional, "dequantize_4bit", watched)
    dequantize_model(model, torch.float32)
    # the one before is let go of as the next is looked up
    assert left == list(range(len(held), 0, -1))
