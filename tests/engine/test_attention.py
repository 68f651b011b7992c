"""Grouped attention against transformers' eager attention."""

import pytest
import torch
import transformers
from random_models import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from ja_instruct.engine import attention as subject
from ja_instruct.engine.attention import grouped_attention, use_grouped_attention

# sequences, heads, key heads, tokens, span, width
SHAPES = {
    "decode": (3, 8, 2, 1, 40, 16),
    "decode one": (1, 4, 2, 1, 33, 8),
    "prefill": (1, 8, 4, 9, 33, 16),
    "prefill many": (2, 8, 4, 7, 33, 16),
    "no groups": (2, 4, 4, 5, 9, 8),
    "one key head": (2, 4, 1, 3, 20, 8),
}


class Layer(torch.nn.Module):
    """What attention functions ask a layer for."""

    def __init__(self, group):
        super().__init__()
        self.num_key_value_groups = group
        self.eval()


def tensors(shape, dtype=torch.float32):
    sequences, heads, key_heads, tokens, span, width = shape
    torch.manual_seed(0)
    query = torch.randn(sequences, tokens, heads, width).transpose(1, 2) * 6
    cache = torch.randn(2, sequences, key_heads, 64, width)
    allowed = torch.rand(sequences, 1, tokens, span) < 0.5
    # a query sees itself at least
    allowed[..., 0] = True
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(dtype).min)
    keys, values = cache[0, :, :, :span] * 6, cache[1, :, :, :span]
    return [tensor.to(dtype) for tensor in (query, keys, values, mask)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("masked", ["each", "same", "not"])
@pytest.mark.parametrize("at_once", [2**24, 300, 1])
def test_equals_eager_attention(shape, softcap, masked, at_once, monkeypatch):
    monkeypatch.setattr(subject, "SCORES_AT_ONCE", at_once)
    query, keys, values, mask = tensors(shape)
    mask = {"each": mask, "same": mask[:1], "not": None}[masked]
    layer = Layer(shape[1] // shape[2])
    expected, _ = eager_attention_forward(
        layer, query, keys, values, mask, scaling=0.3, softcap=softcap
    )
    output, weights = grouped_attention(
        layer, query, keys, values, mask, scaling=0.3, softcap=softcap, sliding_window=4
    )
    assert weights is None
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_bfloat16_error_is_at_most_that_of_eager(softcap):
    query, keys, values, mask = tensors(SHAPES["decode"], torch.bfloat16)
    exact, _ = eager_attention_forward(
        Layer(4), query.double(), keys.double(), values.double(), mask.double(), 0.0, 0.3, softcap
    )
    errors = [
        (function(Layer(4), query, keys, values, mask, scaling=0.3, softcap=softcap)[0] - exact)
        .abs()
        .mean()
        for function in (grouped_attention, eager_attention_forward)
    ]
    assert errors[0] < errors[1] * 1.1


class Copies(TorchDispatchMode):
    """Notes what writes as much as the cache holds or more."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        views = ("view", "transpose", "expand", "slice", "unsqueeze", "select", "empty", "t.")
        name = function.__name__
        if isinstance(result, torch.Tensor) and result.numel() >= self.size:
            self.found += [] if name.startswith(("_unsafe_view", *views)) else [name]
        return result


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_cache_is_not_copied(softcap):
    query = torch.randn(6, 8, 1, 32)
    cache = torch.randn(2, 6, 2, 64, 32)
    keys, values = cache[0, :, :, :48], cache[1, :, :, :48]
    with Copies(keys.numel()) as mode:
        grouped_attention(Layer(4), query, keys, values, None, scaling=1.0, softcap=softcap)
    assert mode.found == []
    with Copies(keys.numel()) as mode:
        eager_attention_forward(Layer(4), query, keys, values, None, scaling=1.0, softcap=softcap)
    assert mode.found


def test_scores_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr(subject, "SCORES_AT_ONCE", 1000)
    query, keys, values, mask = tensors((1, 8, 4, 16, 60, 4))
    with Copies(2 * 16 * 60 + 1) as mode:
        grouped_attention(Layer(2), query, keys, values, mask, scaling=1.0, softcap=5.0)
    assert mode.found == []


def test_dropout_is_refused():
    query, keys, values, mask = tensors(SHAPES["decode"])
    with pytest.raises(ValueError, match=r"no dropout; call model\.eval"):
        grouped_attention(Layer(4), query, keys, values, mask, dropout=0.1)


CHANGES = {
    "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3": {"sliding_window": 8},
    "llama": {},
    "qwen3": {},
}


@pytest.mark.parametrize("family", CHANGES)
@torch.inference_mode()
def test_models_have_the_same_logits(family):
    """A prompt in two pieces, the first padded, and a token after it."""
    model = random_model(family, **CHANGES[family])
    ids = torch.randint(0, 300, (2, 30))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0

    def scores():
        cache, found = transformers.DynamicCache(config=model.config), []
        for start, end in ((0, 17), (17, 29), (29, 30)):
            output = model(
                input_ids=ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache
            )
            found.append(output.logits)
        # what padding sees is nobody's concern
        return torch.cat(found, dim=1)[mask.bool()]

    model.set_attn_implementation("eager")
    expected = scores()
    use_grouped_attention(model)
    torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-4)


def test_model_with_an_adapter_uses_it():
    import peft

    model = random_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    use_grouped_attention(wrapped)
    assert model.model.layers[0].self_attn.config._attn_implementation == "grouped"


@torch.inference_mode()
def test_ready_masks_are_not_changed(monkeypatch):
    seen = []
    kept = subject.grouped_attention

    def noting(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return kept(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr(subject, "grouped_attention", noting)
    model = random_model("gemma2", **CHANGES["gemma2"])
    use_grouped_attention(model)
    masks = {kind: torch.zeros(1, 1, 4, 4) for kind in ("full_attention", "sliding_attention")}
    model(input_ids=torch.tensor([[1, 2, 3, 4]]), attention_mask=masks)
    kinds = [masks[kind] for kind in model.config.layer_types]
    assert all(mask is kind for mask, kind in zip(seen, kinds, strict=True))


def test_decoding_calls_the_kernel(monkeypatch):
    calls = []

    def kernel(query, key, value, mask, scaling, softcap):
        calls.append((scaling, softcap, mask.shape))
        layer = Layer(query.shape[1] // key.shape[1])
        return eager_attention_forward(
            layer, query, key, value, mask, scaling=scaling, softcap=softcap
        )[0].transpose(1, 2)

    monkeypatch.setattr(subject, "supports_decode", lambda query, key: query.shape[2] == 1)
    monkeypatch.setattr(subject, "decode_attention", kernel)
    model = random_model("gemma2", **CHANGES["gemma2"])
    ids = torch.randint(0, 300, (2, 12))
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        expected = model(input_ids=ids).logits[:, -1]
        use_grouped_attention(model)
        cache = transformers.DynamicCache(config=model.config)
        model(input_ids=ids[:, :11], past_key_values=cache)
        assert calls == []
        output = model(input_ids=ids[:, 11:], past_key_values=cache).logits[:, -1]
    assert [call[:2] for call in calls] == [(256**-0.5, 2.0)] * 3
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_model_with_fixed_attention_is_refused(monkeypatch):
    model = random_model("llama")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ValueError, match="attention of LlamaForCausalLM cannot be replaced"):
        use_grouped_attention(model)


@pytest.mark.gpu
def test_cuda_graph_captures_it(replayed):
    given = [tensor.cuda() for tensor in tensors(SHAPES["decode"])]

    def call():
        return grouped_attention(Layer(4), *given, scaling=0.3, softcap=5.0)[0]

    expected = call()
    torch.testing.assert_close(replayed(call), expected)
