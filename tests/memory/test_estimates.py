"""Estimates compared with the models of transformers, PEFT and bitsandbytes."""

import dataclasses

import pytest
import torch
from gemma_shapes import GEMMA_2_27B
from hypothesis import given
from hypothesis import strategies as st
from model_kinds import MULTIMODAL

from ja_instruct.memory.estimates import ModelShape, kv_cache_bytes, lora_weights, nf4_bytes

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
}
FAMILIES = {
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
}


def make_model(family, device="meta", **changes):
    import transformers

    settings = {**SMALL, **changes}
    if family == "qwen2":  # its heads divide the hidden size
        settings["head_dim"] = SMALL["hidden_size"] // SMALL["num_attention_heads"]
    config = getattr(transformers, FAMILIES[family])(**settings)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config)


def shape_of(config):
    shape = ModelShape.from_config(config)
    assert shape is not None
    return shape


@pytest.fixture(scope="module")
def gemma_2_27b():
    return shape_of(GEMMA_2_27B)


class TestShape:
    def test_gemma_2_27b_has_as_many_weights_as_published(self, gemma_2_27b):
        assert gemma_2_27b.weights == 27_227_128_320

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("is_tied", [True, False])
    def test_weights_are_those_of_the_model(self, family, is_tied):
        model = make_model(family, tie_word_embeddings=is_tied)
        shape = shape_of(model.config.to_dict())
        # exact for the matrices; norms and biases are few
        linear = sum(w.numel() for n, w in model.named_parameters() if n.endswith("proj.weight"))
        assert shape.linear_weights == linear
        rest = sum(
            weight.numel()
            for name, weight in model.named_parameters()
            if not name.endswith("proj.weight")
        )
        assert shape.other_weights == pytest.approx(rest, rel=0.1)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_missing_key_has_the_default_of_its_family(self, family):
        model = make_model(family)
        config = {"model_type": family, **model.config.to_dict()}
        left_out = {key: config[key] for key in config if key != "tie_word_embeddings"}
        assert shape_of(left_out) == shape_of(config)

    @pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "qwen2", "llama"])
    def test_windows_without_layer_types_are_those_of_transformers(self, family):
        config = make_model(family).config.to_dict() | {"sliding_window": 48}
        kinds = config.pop("layer_types", None)
        windows = shape_of(config).windows
        if family == "mistral":
            assert windows == (48,) * 7
        elif family in ("llama", "qwen2"):
            assert windows == (None,) * 7
        else:
            assert [window == 48 for window in windows] == [k == "sliding_attention" for k in kinds]
            assert shape_of(config | {"layer_types": kinds}).windows == windows

    def test_head_size_follows_from_the_hidden_size(self):
        config = {**GEMMA_2_27B, "model_type": "llama"}
        del config["head_dim"]
        assert shape_of(config).query_size == 32 * 144

    def test_only_the_language_model_of_a_multimodal_checkpoint_counts(self):
        nested = {
            "model_type": "gemma3",
            "text_config": {**GEMMA_2_27B, "model_type": "gemma3_text"},
            "vision_config": {"hidden_size": 1152},
        }
        assert shape_of(nested).hidden_size == 4608

    @pytest.mark.parametrize("kind", MULTIMODAL)
    def test_matrices_of_a_multimodal_checkpoint_are_those_of_its_language_model(self, kind):
        with torch.device("meta"):
            model = MULTIMODAL[kind](320)
        parameters = dict(model.get_decoder().named_parameters())
        shape = shape_of(model.config.to_dict())
        linear = sum(one.numel() for name, one in parameters.items() if "proj.weight" in name)
        assert shape.linear_weights == linear
        assert shape.is_tied == model.config.tie_word_embeddings

    @pytest.mark.parametrize("key", ["model_type", *(key for key in SMALL if key != "head_dim")])
    def test_incomplete_configuration_has_no_shape(self, key):
        assert ModelShape.from_config({k: v for k, v in GEMMA_2_27B.items() if k != key}) is None

    def test_mixture_of_experts_has_no_shape(self):
        assert ModelShape.from_config({**GEMMA_2_27B, "model_type": "mixtral"}) is None


class TestParts:
    def test_nf4_is_as_large_as_that_of_bitsandbytes(self):
        from bitsandbytes.functional import quantize_4bit

        for is_double in (True, False):
            weight = torch.randn(1024, 2048)
            packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=is_double)
            made = packed.nbytes + state.absmax.nbytes
            if is_double:
                made += state.state2.absmax.nbytes
            shape = dataclasses.replace(
                shape_of(GEMMA_2_27B), vocab_size=0, is_double_quantized=is_double
            )
            norms = 2 * shape.other_weights
            bytes_per_weight = (nf4_bytes(shape) - norms) / shape.linear_weights
            assert bytes_per_weight == pytest.approx(made / weight.numel(), rel=1e-3)

    def test_saved_model_records_double_quantization(self, gemma_2_27b):
        plain = {**GEMMA_2_27B, "quantization_config": {"bnb_4bit_use_double_quant": False}}
        assert nf4_bytes(shape_of(plain)) > nf4_bytes(gemma_2_27b)

    @pytest.mark.parametrize("targets", [SEVEN, ("q_proj", "v_proj"), ("self_attn.o_proj",)])
    def test_adapter_is_as_large_as_that_of_peft(self, targets):
        from peft import LoraConfig, get_peft_model

        model = make_model("gemma2", device="cpu")
        shape = shape_of(model.config.to_dict())
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=list(targets)))
        trainable = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
        assert lora_weights(shape, targets, 8) == trainable

    def test_adapter_of_an_unknown_module_is_unknown(self, gemma_2_27b):
        assert lora_weights(gemma_2_27b, ["q_proj", "lm_head"], 8) is None

    @pytest.mark.parametrize("tokens", [20, 90])
    def test_cache_is_as_large_as_that_of_transformers(self, tokens):
        model = make_model("gemma2", device="cpu", sliding_window=33).to(torch.bfloat16)
        shape = shape_of(model.config.to_dict())
        cache = model(torch.zeros(3, tokens, dtype=torch.long), use_cache=True).past_key_values
        made = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        # a sliding layer leaves room for the next token
        shape = dataclasses.replace(shape, windows=tuple(w and w - 1 for w in shape.windows))
        assert 3 * kv_cache_bytes(shape, tokens) == made

    @given(
        tokens=st.integers(1, 200),
        windows=st.lists(st.none() | st.integers(1, 100), min_size=1, max_size=6),
    )
    def test_cache_counted_token_by_token(self, tokens, windows):
        shape = dataclasses.replace(shape_of(GEMMA_2_27B), windows=tuple(windows))
        cached = [
            position
            for window in windows
            for position in range(tokens)
            if window is None or position >= tokens - window
        ]
        assert kv_cache_bytes(shape, tokens) == len(cached) * 2 * 2 * 16 * 128
