"""The real converter, if ``LLAMA_CPP_DIR=/opt/llama.cpp`` names a copy of llama.cpp."""

import os

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import read_demo_texts

from ja_instruct.datasets import GGUFConverterDataset, GGUFFileDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.export.nodes import export_gguf
from ja_instruct.pipelines.export.parameters import ExportParameters

VOCABULARY = 2560


@pytest.fixture(scope="module")
def converter():
    directory = os.environ.get("LLAMA_CPP_DIR")
    if not directory:
        pytest.skip("no copy of llama.cpp is named in LLAMA_CPP_DIR")
    pytest.importorskip("gguf", reason="the package 'gguf' of the extra 'demo' is not installed")
    return GGUFConverterDataset(llama_cpp_dir=directory).load()


@pytest.fixture(scope="module")
def parameters(read_parameters):
    return ExportParameters(**read_parameters("base")["export"])


@pytest.fixture(scope="module")
def model(tmp_path_factory, clean_project):
    """A tiny Gemma 2 with a SentencePiece model, as the publisher's has."""
    import sentencepiece
    from transformers import Gemma2Config, Gemma2ForCausalLM

    path = tmp_path_factory.mktemp("merged") / "merged_model"
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(read_demo_texts(clean_project)),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return ModelDirectory(path, "owner/model")


def test_weights_and_vocabulary_are_the_models(converter, model, parameters, tmp_path):
    from gguf import GGUFReader

    dataset = GGUFFileDataset(filepath=tmp_path / "model.gguf")
    dataset.save(export_gguf(model, converter, parameters))
    reader = GGUFReader(dataset.load())
    assert reader.fields["general.architecture"].contents() == "gemma2"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == VOCABULARY
    weights = load_file(model.path / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(weights)
    for name, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
    ):
        expected = weights[f"{name}.weight"].view(torch.uint8).numpy().tobytes()
        assert tensors[f"{theirs}.weight"].data.tobytes() == expected


def test_other_types(converter, model, parameters, tmp_path):
    sizes = {}
    for outtype in ("f32", "q8_0"):
        dataset = GGUFFileDataset(filepath=tmp_path / outtype)
        changed = parameters.model_copy(update={"gguf_outtype": outtype})
        dataset.save(export_gguf(model, converter, changed))
        sizes[outtype] = dataset.load().stat().st_size
    assert sizes["q8_0"] < sizes["f32"] / 2


def test_unsupported_tokenizer_is_reported(converter, tiny_gemma2, parameters, tmp_path):
    dataset = GGUFFileDataset(filepath=tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"could not convert .*(?s:.)*tokenizer\.model"):
        dataset.save(export_gguf(tiny_gemma2, converter, parameters))
    assert not dataset.exists()
