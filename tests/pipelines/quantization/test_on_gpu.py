"""Quantization on a CUDA device holds one 16-bit matrix besides the result."""

import pytest
import torch
import transformers

from ja_instruct.datasets import QuantizedModelDataset
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.pipelines.quantization.layer_streaming import StreamedModel
from ja_instruct.pipelines.quantization.nodes import measure_quantization, quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.quantization.perplexity import make_samples, score

pytestmark = pytest.mark.gpu

TEXTS = ["日本の首都は東京です。", "富士山の高さは3,776メートルです。"]
HIDDEN, LAYERS = 512, 24


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_gemma2):
    """A random Gemma 2 of 76 million weights, in shards of 20 MB."""
    directory = tmp_path_factory.mktemp("gpu") / "base"
    config = transformers.Gemma2Config(
        vocab_size=2048,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="20MB")
    tiny_gemma2.load_tokenizer().save_pretrained(directory)
    return ModelDirectory(directory, "random")


@pytest.fixture(scope="module")
def parameters(read_parameters):
    return QuantizationParameters(**read_parameters("base")["quantization"])


def peak_above(before):
    return torch.cuda.max_memory_allocated() - before


def weights_of(directory):
    return sum(path.stat().st_size for path in directory.path.glob("*.safetensors"))


def test_the_16_bit_model_is_never_whole_on_the_device(base, parameters, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    artifact = quantize(base, parameters)
    assert peak_above(before) < 0.6 * weights_of(base)
    assert artifact.provenance["memory_gb"]["gpu_peak"] > 0
    dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
    dataset.save(artifact)
    report = measure_quantization(
        base, dataset.load(), [{"text": text} for text in TEXTS], parameters
    )
    summary = report["summary"]
    assert 0.05 < summary["mean_relative_error"] < 0.15
    assert summary["perplexity_base"] != summary["perplexity_quantized"]


def test_streamed_is_plain(base):
    samples = make_samples(base.load_tokenizer(), TEXTS, 1000)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    streamed = StreamedModel(base, "cuda", torch.bfloat16)
    found = score(streamed.model, samples, "streamed", streamed.loaded)
    assert peak_above(before) < 0.5 * weights_of(base)
    model = base.load_model(device_map="cuda", dtype=torch.bfloat16, attn_implementation="eager")
    assert score(model.eval(), samples, "plain").nats == pytest.approx(found.nats, rel=1e-3)


def test_4_bit_model_is_loaded_on_the_device(tiny_nf4):
    model = load_nf4_model(tiny_nf4, "cuda")
    assert model.device.type == "cuda"
