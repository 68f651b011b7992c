import json
import random

import pytest
import torch


@pytest.fixture(scope="module")
def random_models(benchmark_module):
    return benchmark_module("harness.random_models")


@pytest.fixture(scope="module")
def made(random_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random_models")
    for kind in ("bf16", "nf4"):
        random_models.make_model(folder / kind, kind, "tiny", device="cpu", shard_size="100KB")
    return folder


@pytest.fixture(scope="module")
def quantized(made, tmp_path_factory):
    """Return what transformers saves when it loads the 16-bit model in 4 bits."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        made / "bf16",
        device_map="cpu",
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    folder = tmp_path_factory.mktemp("quantized")
    model.save_pretrained(folder)
    return folder


def read_tensors(directory):
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def unpack(key, tensor):
    """Return a tensor's values; the quantization state is packed as JSON."""
    return json.loads(bytes(tensor.tolist())) if "quant_state" in key else tensor.tolist()


def test_nf4_is_what_transformers_saves(made, quantized):
    ours, theirs = read_tensors(made / "nf4"), read_tensors(quantized)
    assert sorted(ours) == sorted(theirs)
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert unpack(key, ours[key]) == unpack(key, tensor), key


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_configuration_is_what_transformers_saves(made, quantized, name):
    ours, theirs = (
        json.loads((directory / name).read_text("utf-8")) for directory in (made / "nf4", quantized)
    )
    assert ours == theirs


def test_weights_are_drawn_and_norms_are_zero(made):
    tensors = read_tensors(made / "bf16")
    matrices = [tensor.float() for tensor in tensors.values() if tensor.dim() == 2]
    assert len(matrices) == 1 + 2 * 7
    for matrix in matrices:
        assert matrix.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(tensor.any() for tensor in tensors.values() if tensor.dim() == 1)


def test_text_of_n_characters_has_n_tokens_and_bos(made, benchmark_module):
    from ja_instruct.models.directory import ModelDirectory

    tokenizer = ModelDirectory(made / "nf4", "random").load_tokenizer()
    characters = benchmark_module("harness.random_models").japanese_characters()
    assert len(set(characters)) == 1000
    assert {"あ", "ア", "亜"} < set(characters)
    text = "".join(random.Random(0).choices(characters, k=300))
    ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
    assert len(ids) == 302
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:-1]) == text
    assert tokenizer.chat_template


def test_samples_have_the_given_lengths_in_tokens(benchmark_module):
    module = benchmark_module("harness.random_models")
    tokenizer = module.make_tokenizer()
    drawn = module.random_samples([(30, 5), (2, 3)], seed=0)
    counted = [len(tokenizer(prompt + answer + "<eos>")["input_ids"]) for prompt, answer in drawn]
    assert counted == [35, 5]
    assert [len(tokenizer(prompt)["input_ids"]) for prompt, _ in drawn] == [30, 2]


def test_product_accepts_the_directory(made):
    from ja_instruct.datasets import QuantizedModelDataset
    from ja_instruct.models.directory import parameter_count
    from ja_instruct.models.loading import load_nf4_model

    directory = QuantizedModelDataset(filepath=made / "nf4").load()
    model = load_nf4_model(directory, "cpu")
    assert parameter_count(made / "nf4") == sum(weight.numel() for weight in model.parameters())
    assert directory.provenance["stage"] == "quantization"
    assert directory.provenance["weights_sha256"].keys() == {
        path.name for path in (made / "nf4").glob("*.safetensors")
    }


def test_full_size_is_gemma_2_27b(random_models):
    config = random_models.make_config("gemma-2-27b")
    per_layer = 4608 * 128 * (32 + 16 + 16 + 32) + 3 * 4608 * 36864 + 4 * 4608
    weights = sum(weight.numel() for weight in random_models.empty_model(config).parameters())
    assert weights == 256_000 * 4608 + 46 * per_layer + 4608 == 27_227_128_320
    assert config.layer_types[:2] == ["sliding_attention", "full_attention"]


def test_sparse_model_is_read_like_any_other(random_models, tmp_path):
    from transformers import AutoModelForCausalLM

    found = random_models.make_sparse_model(tmp_path / "f32", "tiny", "float32", 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "f32")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not any(weight.any() for weight in model.parameters())
    assert 2 * found[0] + found[1] == 4 * model.num_parameters()
    assert random_models.make_sparse_model(tmp_path / "bf16", "tiny", "bfloat16", 2) == tuple(
        size // 2 for size in found
    )
