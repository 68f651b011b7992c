"""The arithmetic against what transformers, PEFT and bitsandbytes make, and measured peaks."""

import dataclasses

import pytest
import torch
from gemma_shapes import GEMMA_2_27B
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.memory.estimates import (
    ModelShape,
    Training,
    inference_parts,
    kv_cache_bytes,
    lora_weights,
    nf4_bytes,
    optimizer_bytes,
    quantization_parts,
    training_parts,
)

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


def training(**changes):
    recipe = Training(
        tokens=4 * 1024,
        rank=64,
        target_modules=SEVEN,
        optim="adamw_8bit",
        gradient_checkpointing=True,
        backend="unsloth",
    )
    return dataclasses.replace(recipe, **changes)


class TestShape:
    def test_gemma_2_27b_has_as_many_weights_as_published(self, gemma_2_27b):
        assert gemma_2_27b.linear_weights + gemma_2_27b.other_weights == 27_227_128_320

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("is_tied", [True, False])
    def test_weights_are_those_of_the_model(self, family, is_tied):
        model = make_model(family, tie_word_embeddings=is_tied)
        shape = shape_of(model.config.to_dict())
        # norms of queries and keys, biases and two of four norms are few: what counts is exact
        linear = sum(w.numel() for n, w in model.named_parameters() if n.endswith("proj.weight"))
        assert shape.linear_weights == linear
        rest = sum(
            weight.numel()
            for name, weight in model.named_parameters()
            if not name.endswith("proj.weight")
        )
        assert shape.other_weights == pytest.approx(rest, rel=0.1)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_a_configuration_leaves_out_is_its_familys_default(self, family):
        model = make_model(family)
        config = {"model_type": family, **model.config.to_dict()}
        left_out = {key: config[key] for key in config if key != "tie_word_embeddings"}
        assert shape_of(left_out) == shape_of(config)

    @pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "qwen2", "llama"])
    def test_windows_without_layer_types_are_transformers_own(self, family):
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

    def test_language_model_of_a_multimodal_checkpoint_counts(self):
        nested = {
            "model_type": "gemma3",
            "text_config": {**GEMMA_2_27B, "model_type": "gemma3_text"},
            "vision_config": {"hidden_size": 1152},
        }
        assert shape_of(nested).hidden_size == 4608

    @pytest.mark.parametrize(
        "key",
        [
            "model_type",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        ],
    )
    def test_incomplete_configuration_is_no_shape(self, key):
        assert ModelShape.from_config({k: v for k, v in GEMMA_2_27B.items() if k != key}) is None

    def test_mixture_of_experts_is_no_shape(self):
        assert ModelShape.from_config({**GEMMA_2_27B, "model_type": "mixtral"}) is None


class TestParts:
    def test_nf4_is_what_bitsandbytes_makes(self):
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
            a_weight = (nf4_bytes(shape) - norms) / shape.linear_weights
            assert a_weight == pytest.approx(made / weight.numel(), rel=1e-3)

    def test_saved_model_says_whether_its_constants_are_quantized(self, gemma_2_27b):
        plain = {**GEMMA_2_27B, "quantization_config": {"bnb_4bit_use_double_quant": False}}
        assert nf4_bytes(shape_of(plain)) > nf4_bytes(gemma_2_27b)

    @pytest.mark.parametrize("targets", [SEVEN, ("q_proj", "v_proj"), ("self_attn.o_proj",)])
    def test_adapter_is_pefts(self, targets):
        from peft import LoraConfig, get_peft_model

        model = make_model("gemma2", device="cpu")
        shape = shape_of(model.config.to_dict())
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=list(targets)))
        trainable = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
        assert lora_weights(shape, targets, 8) == trainable

    def test_adapter_of_an_unknown_module_is_unknown(self, gemma_2_27b):
        assert lora_weights(gemma_2_27b, ["q_proj", "lm_head"], 8) is None
        assert training_parts(gemma_2_27b, training(target_modules=("lm_head",))) is None

    @pytest.mark.parametrize(
        ("optim", "expected"),
        [
            ("adamw_torch", 8),
            ("adamw_torch_fused", 8),
            ("adamw_8bit", 2),
            ("paged_adamw_8bit", 2),
            ("paged_adamw_32bit", 8),
            ("adamw_torch_4bit", 1),
            ("ademamix", 12),
            ("paged_ademamix_8bit", 3),
            ("lion_32bit", 4),
            ("lion_8bit", 1),
            ("sgd", 0),
            ("somebodys_own", 8),
        ],
    )
    def test_optimizer_states(self, optim, expected):
        assert optimizer_bytes(optim) == expected

    def test_adams_states_are_torchs(self):
        weight = torch.nn.Parameter(torch.zeros(1000))
        weight.grad = torch.zeros(1000)
        optimizer = torch.optim.AdamW([weight])
        optimizer.step()
        states = sum(t.nbytes for t in optimizer.state[weight].values() if t.dim())
        assert optimizer_bytes("adamw_torch") * weight.numel() == states

    @pytest.mark.parametrize("tokens", [20, 90])
    def test_cache_is_transformers_own(self, tokens):
        model = make_model("gemma2", device="cpu", sliding_window=33).to(torch.bfloat16)
        shape = shape_of(model.config.to_dict())
        cache = model(torch.zeros(3, tokens, dtype=torch.long), use_cache=True).past_key_values
        made = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        # a sliding layer leaves room for the token that comes
        shape = dataclasses.replace(shape, windows=tuple(w and w - 1 for w in shape.windows))
        assert kv_cache_bytes(shape, tokens, batch=3) == made

    @given(
        tokens=st.integers(1, 200),
        batch=st.integers(1, 4),
        windows=st.lists(st.none() | st.integers(1, 100), min_size=1, max_size=6),
    )
    def test_cache_counted_token_by_token(self, tokens, batch, windows):
        shape = dataclasses.replace(shape_of(GEMMA_2_27B), windows=tuple(windows))
        counted = 0
        for _ in range(batch):
            for window in windows:
                for position in range(tokens):
                    if window is None or position >= tokens - window:
                        counted += 2 * 2 * 16 * 128
        assert kv_cache_bytes(shape, tokens, batch=batch) == counted

    def test_checkpoints_grow_with_the_layers_where_they_stay_on_the_device(self, gemma_2_27b):
        def activations(layers, **changes):
            shape = dataclasses.replace(gemma_2_27b, windows=(None,) * layers)
            return training_parts(shape, training(**changes))["activations"]

        a_checkpoint = 4096 * 4608 * 4
        assert activations(46, backend="peft") - activations(45, backend="peft") == a_checkpoint
        assert activations(46) == activations(45)
        assert activations(46, gradient_checkpointing=False) > 20 * activations(46)

    def test_quantization_holds_one_matrix_twice(self, gemma_2_27b):
        parts = quantization_parts(gemma_2_27b, compute_bytes=2, double_quantization=True)
        assert parts["matrix in flight"] == 2 * 2 * 4608 * 36864
        assert parts["weights"] == nf4_bytes(gemma_2_27b)


class TestMeasuredPeaks:
    """gemma-2-27b's shape on one H100, LoRA r = 64 on all seven matrices, 8-bit Adam."""

    def test_training_with_unsloth(self, gemma_2_27b):
        parts = training_parts(gemma_2_27b, training())
        assert sum(parts.values()) == pytest.approx(23e9, rel=0.15)

    def test_training_with_plain_peft_and_whole_logits(self, gemma_2_27b):
        parts = training_parts(gemma_2_27b, training(backend="peft", loss="whole"))
        assert sum(parts.values()) == pytest.approx(41e9, rel=0.15)

    def test_tiled_loss_spares_the_logits(self, gemma_2_27b):
        whole = training_parts(gemma_2_27b, training(backend="peft", loss="whole"))
        tiled = training_parts(gemma_2_27b, training(backend="peft"))
        # of four samples of 1,024 tokens in bfloat16, at least
        assert sum(whole.values()) - sum(tiled.values()) > 4096 * 256_000 * 2

    def test_generation_for_32_prompts_read_in_pieces(self, gemma_2_27b):
        parts = inference_parts(gemma_2_27b, 3000, batch=32)
        parts["activations"] *= 256 / 3000  # pieces of 256 tokens
        assert sum(parts.values()) == pytest.approx(54e9, rel=0.15)

    def test_32_prompts_read_whole_ran_out_of_80_gb(self, gemma_2_27b):
        adapter = lora_weights(gemma_2_27b, SEVEN, 64)
        for batch, fits in ((1, True), (8, True), (32, False)):
            parts = inference_parts(gemma_2_27b, 3000, adapter_weights=adapter, batch=batch)
            assert (sum(parts.values()) < 80e9) is fits
