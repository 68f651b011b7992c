"""What is fused and what stays, without a GPU; the kernels against the originals, with one."""

import peft
import pytest
import torch
import transformers
from random_models import FAMILIES, SIZES, random_model
from transformers.models.llama import modeling_llama

from ja_instruct.engine import fused_layers as subject
from ja_instruct.engine.attention import use_grouped_attention
from ja_instruct.engine.fused_layers import gated, rms_norm, rotate, use_fused_layers
from ja_instruct.engine.kv_cache import causal_mask

LAYERS = 2
CHANGES = {
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": LAYERS,
    "head_dim": 32,
    "initializer_range": 0.1,
}
# norms, gate and rotation of a layer
FUSED = {"gemma2": 4 + 2, "gemma3": 6 + 2, "llama": 2 + 2, "qwen3": 4 + 2}


def small_model(family, dtype=torch.bfloat16, **changes):
    model = random_model(family, **CHANGES, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # fresh norms weigh nothing
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model.to(dtype)


def reference_norm(x, weight, eps, form):
    value = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if form == "rounded":
        return weight * value.to(x.dtype)
    return (value * (weight.float() + (form == "one_plus"))).to(x.dtype)


def reference_gated(gate, up, activation):
    if activation == "silu":
        passed = torch.nn.functional.silu(gate.float())
    else:
        passed = torch.nn.functional.gelu(gate.float(), approximate="tanh")
    return (passed * up.float()).to(gate.dtype)


def reference_rotate(query, key, cos, sin):
    exact = modeling_llama.apply_rotary_pos_emb(*(x.float() for x in (query, key, cos, sin)))
    return tuple(numbers.to(query.dtype) for numbers in exact)


@pytest.fixture
def kernel_calls(monkeypatch):
    """Let the CPU have the kernels, and note what is asked of them."""
    calls = []

    def noted(name, compute):
        def call(*args):
            calls.append((name, *(arg for arg in args if isinstance(arg, str))))
            return compute(*args)

        monkeypatch.setattr(subject, name, call)

    noted("rms_norm", reference_norm)
    noted("gated", reference_gated)
    noted("rotate", reference_rotate)
    monkeypatch.setattr(subject, "is_available", lambda device: device.type == "cpu")
    return calls


def logits(model, tokens=7, device="cpu"):
    ids = torch.arange(3 * tokens, device=device).view(3, tokens)
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


def assert_nearly_the_same(fused, original, exact):
    """Rounding less often is no further from the truth, but for chance: 0.9 to 1.06 were seen."""
    error = (fused - exact).abs().mean()
    assert error < 1.3 * (original - exact).abs().mean()
    torch.testing.assert_close(fused, original, rtol=2**-4, atol=0.1 * float(exact.std()))


def test_on_a_cpu_nothing_changes():
    model = small_model("gemma2")
    assert use_fused_layers(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_gate_and_rotation_is_fused(family, kernel_calls, caplog):
    model = small_model(family)
    original, exact = logits(model), logits(small_model(family).float())
    with caplog.at_level("WARNING"):
        assert use_fused_layers(model) == LAYERS * FUSED[family] + 1
    assert not caplog.text
    kernel_calls.clear()
    assert_nearly_the_same(logits(model), original, exact)
    gemma = family.startswith("gemma")
    form, activation = ("one_plus", "gelu_tanh") if gemma else ("rounded", "silu")
    assert len(kernel_calls) == LAYERS * FUSED[family] + 1
    assert set(kernel_calls) == {("rms_norm", form), ("gated", activation), ("rotate",)}


def test_float32_uses_the_original_computation(kernel_calls):
    model = small_model("gemma2", torch.float32)
    expected = logits(model)
    assert use_fused_layers(model) == LAYERS * FUSED["gemma2"] + 1
    kernel_calls.clear()
    assert torch.equal(logits(model), expected)
    assert kernel_calls == []


def test_fused_layers_are_not_fused_again(kernel_calls, caplog):
    model = small_model("llama")
    use_fused_layers(model)
    assert use_fused_layers(model) == 0
    assert "LlamaAttention keeps its own computation of many kernels: its forward was replaced" in (
        caplog.text
    )


def test_other_models_of_the_class_do_not_change(kernel_calls):
    model, other = small_model("llama"), small_model("llama")
    function, forward = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    expected = logits(other)
    use_fused_layers(model)
    kernel_calls.clear()
    assert torch.equal(logits(other), expected)
    assert kernel_calls == []
    assert modeling_llama.apply_rotary_pos_emb is function
    assert modeling_llama.LlamaAttention.forward is forward


class OddRMSNorm(torch.nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.rand(width)), 1e-6

    def forward(self, x):
        return x / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + self.eps).to(x.dtype)


class PlainRMSNorm(OddRMSNorm):
    def forward(self, x):
        return reference_norm(x, self.weight, self.eps, "exact")


class PairRMSNorm(OddRMSNorm):
    def forward(self, x, gate):
        return x * gate


def test_unknown_norms_have_one_warning_per_class(kernel_calls, caplog):
    norms = [OddRMSNorm(), OddRMSNorm(), PlainRMSNorm(), PairRMSNorm(), OddRMSNorm(2**15 + 1)]
    model = torch.nn.Sequential(*norms, torch.nn.LayerNorm(48)).to(torch.bfloat16)
    assert use_fused_layers(model) == 1
    assert [name for name, module in model.named_children() if "forward" in vars(module)] == ["2"]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split()[0] for line in lines] == ["OddRMSNorm", "PairRMSNorm"]
    assert "cannot be tried on random numbers" in lines[1]


def test_forms_with_different_rounding_are_distinguished(kernel_calls):
    model = torch.nn.Sequential(
        PlainRMSNorm(), modeling_llama.LlamaRMSNorm(48), torch.nn.RMSNorm(48, eps=1e-5)
    )
    torch.nn.init.uniform_(model[1].weight)
    torch.nn.init.uniform_(model[2].weight)
    model.to(torch.bfloat16)
    assert use_fused_layers(model) == 3
    kernel_calls.clear()
    model(torch.randn(4, 48, dtype=torch.bfloat16))
    assert [form for _, form in kernel_calls] == ["exact", "rounded", "exact"]


def test_norms_with_weights_of_another_dtype(kernel_calls, caplog):
    # Llama's result is in the weights' type, Gemma's in that of the numbers
    llama, gemma = small_model("llama"), small_model("gemma3")
    norms = torch.nn.ModuleList([llama.model.norm.float(), gemma.model.norm.float()])
    assert use_fused_layers(norms) == 1
    assert "LlamaRMSNorm keeps" in caplog.text
    kernel_calls.clear()
    x = torch.randn(2, 3, 96, dtype=torch.bfloat16)
    assert norms[1](x).dtype == torch.bfloat16
    assert kernel_calls == [("rms_norm", "one_plus")]
    # for which it was not tried
    assert norms[1](x.half()).dtype == torch.float16
    assert len(kernel_calls) == 1


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu", "gelu_new"])
def test_other_activations_are_not_fused(activation, kernel_calls, caplog):
    # another name of gelu_tanh
    is_known = activation == "gelu_new"
    model = small_model("llama", hidden_act=activation)
    assert use_fused_layers(model) == LAYERS * (FUSED["llama"] - (not is_known)) + 1
    assert ("LlamaMLP keeps" in caplog.text) is not is_known
    assert ("none of gelu_tanh, silu" in caplog.text) is not is_known


class SparseMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(self.act_fn(gate.clamp(min=gate.mean())) * self.up_proj(x))


class SplitMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        gate = torch.nn.functional.linear(x, self.gate_proj.weight)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))


@pytest.mark.parametrize("kind", [SparseMLP, SplitMLP])
def test_gates_that_compute_more_are_not_fused(kind, kernel_calls):
    mlp = kind(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)
    assert use_fused_layers(mlp) == 0
    assert kernel_calls.count(("gated", "silu")) == (kind is SparseMLP)


def test_other_rotary_embeddings_are_not_fused(kernel_calls, caplog):
    config = transformers.GlmConfig(**SIZES, pad_token_id=0)
    model = transformers.GlmForCausalLM(config).to(torch.bfloat16).eval()
    norms = 2 * SIZES["num_hidden_layers"] + 1
    assert use_fused_layers(model) == norms
    assert "GlmAttention keeps its own computation" in caplog.text


def test_adapters_below_are_applied(kernel_calls):
    model = small_model("llama")
    targets = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    expected = logits(model)
    with model.disable_adapter():
        without = logits(model)
    assert use_fused_layers(model) == LAYERS * FUSED["llama"] + 1
    output = logits(model)
    tolerance = {"rtol": 2**-4, "atol": 0.1 * float(expected.std())}
    torch.testing.assert_close(output, expected, **tolerance)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), without, **tolerance)
    assert not torch.allclose(output, without, **tolerance)


@pytest.mark.parametrize(
    ("parts", "change", "is_supported"),
    [
        ([], None, True),
        (["cos", "sin"], lambda x: x[:1], True),
        (["cos", "sin"], lambda x: x.float(), False),
        (["cos", "sin"], lambda x: x[..., :16], False),
        (["query"], lambda x: torch.cat([x, x], -1)[..., ::2], False),
        (["key"], lambda x: x[:, :, :1], False),
    ],
    ids=["as is", "one sequence", "type of angles", "part of the width", "strided", "fewer keys"],
)
def test_supported_rotary_inputs(parts, change, is_supported):
    shapes = {"query": (2, 4, 5, 32), "key": (2, 2, 5, 32), "cos": (2, 5, 32), "sin": (2, 5, 32)}
    given = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    given.update({name: change(given[name]) for name in parts})
    assert subject._can_rotate(torch.device("cpu"), *given.values()) is is_supported


def random_numbers(*shape, dtype):
    torch.manual_seed(0)
    return torch.randn(shape).to("cuda", dtype)


def assert_rounded_once(output, exact):
    limits = torch.finfo(output.dtype)
    torch.testing.assert_close(output.float(), exact, rtol=0.51 * limits.eps, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["one_plus", "rounded", "exact"])
@pytest.mark.parametrize("shape", [(3, 1, 128), (5, 100), (2, 640), (4, 1, 4608), (1, 2**15)])
def test_norm_equals_the_reference(shape, form, dtype):
    x = random_numbers(*shape, dtype=dtype) * 3
    weight = random_numbers(shape[-1], dtype=dtype)
    output = rms_norm(x, weight, 1e-6, form)
    assert output.dtype == dtype
    if form == "rounded":
        expected = reference_norm(x, weight, 1e-6, form)
        # a sum that is added up in another order is rounded to the other side now and then
        assert (output != expected).float().mean() < 1e-2
        torch.testing.assert_close(output, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    else:
        assert_rounded_once(output, reference_norm(x.float(), weight, 1e-6, form))


@pytest.mark.gpu
def test_norm_of_a_view():
    x = random_numbers(2, 5, 4, 128, dtype=torch.bfloat16).transpose(1, 2)
    weight = random_numbers(128, dtype=torch.float32)
    output = rms_norm(x, weight, 1e-6, "one_plus")
    assert_rounded_once(output, reference_norm(x.float(), weight, 1e-6, "one_plus"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("shape", [(7,), (3, 1, 1000), (8, 1, 36864)])
def test_gate_equals_the_reference(shape, activation, dtype):
    gate, up = random_numbers(2, *shape, dtype=dtype).unbind()
    gate = gate * 4
    output = gated(gate, up, activation)
    assert output.dtype == dtype
    assert_rounded_once(output, reference_gated(gate.float(), up.float(), activation))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 2, 64), (9, 1, 32, 16, 128), (1, 5, 3, 1, 20), (2, 4, 1, 1, 256)], ids=str
)
def test_rotation_equals_the_reference(shape, dtype):
    sequences, tokens, heads, key_heads, width = shape
    query = random_numbers(sequences, tokens, heads, width, dtype=dtype).transpose(1, 2)
    # a view of a matrix that holds more
    key = random_numbers(sequences, tokens, key_heads + 3, width, dtype=dtype)
    key = key[:, :, 3:].transpose(1, 2)
    for angles in (sequences, 1):
        cos, sin = random_numbers(2, angles, tokens, width, dtype=dtype).unbind()
        exact = reference_rotate(*(x.float() for x in (query, key, cos, sin)))
        for output, expected in zip(rotate(query, key, cos, sin), exact, strict=True):
            assert output.is_contiguous()
            assert_rounded_once(output, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_model_has_nearly_the_same_logits(family, tokens, caplog):
    model = small_model(family).to("cuda")
    exact = logits(small_model(family).float().to("cuda"), tokens, "cuda")
    original = logits(model, tokens, "cuda")
    assert use_fused_layers(model) == LAYERS * FUSED[family] + 1
    assert "keeps its own" not in caplog.text
    assert_nearly_the_same(logits(model, tokens, "cuda"), original, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graph_captures_it(family):
    model = small_model(family).to("cuda")
    use_grouped_attention(model)
    use_fused_layers(model)
    positions = torch.zeros((3, 1), dtype=torch.long, device="cuda")
    given = {
        "input_ids": torch.arange(3, device="cuda")[:, None],
        "position_ids": positions,
        "attention_mask": causal_mask(model.config, positions, 1, torch.bfloat16),
        "use_cache": False,
    }
    with torch.inference_mode():
        expected = model(**given).logits
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(**given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(**given).logits
        graph.replay()
    torch.testing.assert_close(output, expected, rtol=2**-6, atol=2**-6)
