"""Layers with the kernel, and LoRA layers with less around them, against their originals."""

import bitsandbytes
import peft
import pytest
import torch
from kernel_inputs import dequantized
from random_models import random_model

from ja_instruct.engine import nf4_layers as subject
from ja_instruct.engine.kernels.nf4_matmul import arrange
from ja_instruct.engine.nf4_layers import use_fused_nf4, use_lean_lora


def nf4_layer(inputs=128, outputs=96, *, bias=True, quant_type="nf4"):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        inputs, outputs, bias=bias, compute_dtype=torch.bfloat16, quant_type=quant_type
    )
    # or bitsandbytes packs the weights anew, as some processors like them
    layer.support_avx512bf16_for_cpu = False
    return layer.to(torch.bfloat16).to("cpu").eval()


def reference(x, weight, bias, arranged, low_rank):
    values = dequantized(weight)
    # what the kernel multiplies is the arranged rows
    rows = arranged.view(-1, len(x), 4, 16).permute(1, 0, 3, 2).reshape(len(x), weight.inputs)
    output = torch.nn.functional.linear(
        rows.float(), values, None if bias is None else bias.float()
    )
    if low_rank is not None:
        output += low_rank.scaling * low_rank.xa.float() @ low_rank.b.float().T
    return output.to(torch.bfloat16)


@pytest.fixture
def kernel_calls(monkeypatch):
    """Replace the kernels on the CPU, and note their rows and the adapter's rank."""
    calls = []

    def dequantize(weight, factors=None):
        calls.append(f"dequantized, rank {len(factors.a) if factors else 0}")
        added = factors.scaling * factors.b.float() @ factors.a.float() if factors else 0
        return (dequantized(weight) + added).to(torch.bfloat16)

    def matmul(x, weight, bias=None, *, arranged=None, low_rank=None):
        calls.append((len(x), low_rank.b.shape[1]) if low_rank else len(x))
        return reference(x, weight, bias, arranged, low_rank)

    monkeypatch.setattr(subject, "nf4_matmul", matmul)
    monkeypatch.setattr(subject, "dequantize", dequantize)
    monkeypatch.setattr(subject, "is_available", lambda device: True)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 1), []),
        ((1,), []),
        ((2, 1), [2]),
        ((1, 2), [2]),
        ((64, 1), [64]),
        ((1, 64), [64]),
        ((4, 16), [64]),
        ((65, 1), ["dequantized, rank 0"]),
        ((5, 13), ["dequantized, rank 0"]),
        ((5,), [5]),
    ],
    ids=str,
)
def test_number_of_rows_decides_the_kernel(kernel_calls, shape, rows, bias):
    layer = nf4_layer(bias=bias)
    x = torch.randn(*shape, 128, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = layer(x)
        assert use_fused_nf4(torch.nn.Sequential(layer)) == 1
        output = layer(x)
    assert kernel_calls == rows
    assert output.dtype == torch.bfloat16
    # each rounds weights in its own way
    assert (output - expected).float().norm() < 2**-7 * expected.float().norm()


def test_other_dtypes_use_bitsandbytes(kernel_calls):
    layer = nf4_layer()
    use_fused_nf4(layer)
    assert layer(torch.randn(2, 128)).dtype == torch.float32
    assert kernel_calls == []


def test_unsupported_weights_use_bitsandbytes(kernel_calls, caplog):
    model = torch.nn.Sequential(nf4_layer(), nf4_layer(quant_type="fp4"), nf4_layer(96, 64))
    with caplog.at_level("INFO"):
        assert use_fused_nf4(model) == 1
    assert "type 'fp4' instead of 'nf4'" in caplog.text
    assert "not a multiple of 64" in caplog.text
    assert "1 of 3 4-bit layers use the NF4 kernels" in caplog.text


def test_on_a_cpu_nothing_changes():
    layer = nf4_layer()
    assert use_fused_nf4(layer) == 0
    assert "forward" not in vars(layer)


class Model(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.first, self.second = layers

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def with_adapter(model, **changes):
    torch.manual_seed(1)
    settings = {"r": 8, "lora_alpha": 12, "target_modules": ["first", "second"]}
    config = peft.LoraConfig(**{**settings, "init_lora_weights": False, "lora_dropout": 0.1})
    for name, value in changes.items():
        setattr(config, name, value)
    return peft.get_peft_model(model, config).eval()


def plain_model():
    torch.manual_seed(0)
    return Model([torch.nn.Linear(128, 96), torch.nn.Linear(96, 64)])


@pytest.mark.parametrize("shape", [(3,), (2, 5)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 2**-6, 2**-5)],
    ids=str,
)
def test_lean_layers_equal_peft(shape, dtype, rtol, atol):
    model = with_adapter(plain_model().to(dtype))
    x = torch.randn(*shape, 128, dtype=dtype)
    with torch.inference_mode():
        expected = model(x)
        with model.disable_adapter():
            without = model(x)
        assert use_lean_lora(model) == 2
        output = model(x)
        with model.disable_adapter():
            assert torch.equal(model(x), without)
    assert not torch.allclose(expected, without, atol=1e-2)
    torch.testing.assert_close(output, expected, rtol=rtol, atol=atol)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_lean_layers_do_not_call_peft(monkeypatch):
    model = with_adapter(plain_model())
    use_lean_lora(model)
    monkeypatch.setattr(peft.tuners.lora.Linear, "forward", None)
    assert model(torch.randn(2, 128)).shape == (2, 64)


def test_a_merged_adapter_is_not_applied_twice():
    model = with_adapter(plain_model())
    x = torch.randn(3, 128)
    with torch.inference_mode():
        expected = model(x)
        use_lean_lora(model)
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_layers_with_variants_use_peft(changes):
    model = with_adapter(plain_model(), **changes)
    assert use_lean_lora(model) == 0


def test_layers_with_several_adapters_use_peft():
    model = with_adapter(plain_model())
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    assert use_lean_lora(model) == 0


def test_another_adapter_uses_peft():
    model = with_adapter(plain_model())
    model.add_adapter("other", model.peft_config["default"])
    model.eval()
    x = torch.randn(3, 128)
    with torch.inference_mode():
        model.set_adapter("other")
        expected = model(x)
        model.set_adapter("default")
        use_lean_lora(model)
        model.set_adapter("other")
        assert torch.equal(model(x), expected)


def test_shared_input_is_arranged_once(kernel_calls, monkeypatch):
    arranged = []
    monkeypatch.setattr(subject, "arrange", lambda x: arranged.append(len(x)) or arrange(x))
    layers = torch.nn.ModuleList([nf4_layer(128, 128), nf4_layer(128, 64)])
    use_fused_nf4(layers)
    x, other = torch.randn(2, 3, 128).to(torch.bfloat16)
    outputs = [layer(one) for one in (x, other, x.clone()) for layer in layers]
    assert arranged == [3, 3, 3]
    assert torch.equal(outputs[0], outputs[4])
    assert not torch.equal(outputs[0], outputs[2])


class Attention(torch.nn.Module):
    """As models name what gets the same input."""

    def __init__(self, make):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = make(128, 128), make(128, 64), make(128, 64)
        self.o_proj = make(128, 128)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q + torch.cat([k, v], dim=-1))


@pytest.mark.parametrize(
    ("rank", "rows", "calls"),
    [
        # the kernel takes an adapter's columns sixteen at once
        (8, 4, 4),
        (16, 4, (4, 16)),
        (48, 4, (4, 48)),
        # a dequantized weight includes an adapter whose rank is a power of 2
        (8, 70, "dequantized, rank 0"),
        (16, 70, "dequantized, rank 16"),
        (48, 70, "dequantized, rank 0"),
    ],
)
def test_lean_layers_with_the_kernels(kernel_calls, rank, rows, calls):
    """The two together, over 4-bit layers as PEFT wraps them."""
    model = Attention(lambda inputs, outputs: nf4_layer(inputs, outputs))
    model.is_loaded_in_4bit = True
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = with_adapter(model, target_modules=targets, r=rank)
    assert isinstance(model.base_model.model.o_proj, peft.tuners.lora.Linear4bit)
    x = torch.randn(rows, 1, 128, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model(x)
        assert (use_fused_nf4(model), use_lean_lora(model)) == (4, 4)
        output = model(x)
    assert kernel_calls == [calls] * 4
    assert (output - expected).float().norm() < 2**-6 * expected.float().norm()


def test_siblings_share_the_first_multiplication(monkeypatch):
    multiplied = []
    plain = subject._multiply_rows
    monkeypatch.setattr(
        subject,
        "_multiply_rows",
        lambda x, factor: multiplied.append(len(factor)) or plain(x, factor),
    )
    torch.manual_seed(0)
    model = Attention(torch.nn.Linear)
    model = with_adapter(model, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    x = torch.randn(3, 128)
    with torch.inference_mode():
        expected = model(x)
        use_lean_lora(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert multiplied == [24, 8]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 1), (2, 50)], ids=str)
def test_model_has_nearly_the_same_logits_on_a_gpu(shape):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
    model = random_model("llama", **sizes, initializer_range=0.02).to(torch.bfloat16)
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            sizes, dtype = (linear.in_features, linear.out_features), torch.bfloat16
            layer = bitsandbytes.nn.Linear4bit(
                *sizes, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
            layer.load_state_dict(linear.state_dict())
            model.model.set_submodule(name, layer)
    model = model.to("cuda")
    ids = torch.randint(0, 300, shape, device="cuda")
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        assert use_fused_nf4(model) == 14
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=2**-4, atol=2**-6)
