"""Perplexity layer by layer equals transformers' own loss text by text, for each family."""

import math
import weakref

import pytest
import torch
import transformers

from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.models.safetensors import read_headers
from ja_instruct.pipelines.quantization import perplexity
from ja_instruct.pipelines.quantization.layer_streaming import StreamedModel
from ja_instruct.pipelines.quantization.perplexity import Sample, Score, make_samples, score

# the second is longer than the tiny models' window of 64
TEXTS = ["日本の首都は東京です。", "富士山の高さは3,776メートルです。" * 12, "猫が鳴く。"]
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.3,
}
GEMMA_3 = {**SIZES, "sliding_window": 16}
FAMILIES = {
    "Gemma2": {**SIZES, "sliding_window": 16, "final_logit_softcapping": 5.0},
    "Gemma3Text": GEMMA_3,
    "Llama": {**SIZES, "tie_word_embeddings": False},
    "Qwen2": {**SIZES, "tie_word_embeddings": True},
    "Qwen3": {**SIZES, "tie_word_embeddings": False},
    "Mistral": {**SIZES, "sliding_window": 16},
}


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma2):
    return tiny_gemma2.load_tokenizer()


@pytest.fixture(scope="module")
def samples(tokenizer):
    made = make_samples(tokenizer, TEXTS, 10_000)
    assert max(len(sample.ids) for sample in made) > 64
    return made


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(perplexity, "LOGIT_POSITIONS", 7)


def nats_slowly(model, samples):
    with torch.no_grad():
        ids = [torch.tensor([sample.ids]) for sample in samples]
        return sum(float(model(one, labels=one).loss) * (one.shape[1] - 1) for one in ids)


def write_model(name, sizes, directory):
    """Write a random model of a family in several shards."""
    config_class = getattr(transformers, f"{name}Config")
    known = {key: value for key, value in sizes.items() if key != "head_dim" or name != "Qwen2"}
    torch.manual_seed(0)
    config = config_class(**known)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return ModelDirectory(directory, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_and_plain_are_transformers_loss(family, samples, tmp_path):
    directory = write_model(family, FAMILIES[family], tmp_path / family)
    model = directory.load_model(dtype=torch.float32, attn_implementation="eager").eval()
    expected = nats_slowly(model, samples)
    streamed = StreamedModel(directory, "cpu", torch.float32)
    found = score(streamed.model, samples, "streamed", streamed.loaded)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert score(model, samples, "plain").nats == pytest.approx(found.nats, rel=1e-6)
    assert found.tokens == sum(len(sample.ids) - 1 for sample in samples)
    assert found.characters == sum(map(len, TEXTS))
    # the model is unchanged
    assert nats_slowly(model, samples) == pytest.approx(expected)


def test_multimodal_gemma_3_as_it_was_published(samples, tmp_path):
    small = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
    vision = {**small, "num_attention_heads": 1, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=GEMMA_3, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "gemma3")
    directory = ModelDirectory(tmp_path / "gemma3", "gemma3")
    # the names in the file differ from those in the model
    assert "language_model.model.layers.0.mlp.up_proj.weight" in read_headers(directory.path)
    streamed = StreamedModel(directory, "cpu", torch.float32)
    found = score(streamed.model, samples, "streamed", streamed.loaded)
    assert found.nats == pytest.approx(score(model, samples, "plain").nats, rel=1e-5)


def test_4_bit_model(tiny_nf4, samples):
    packed = load_nf4_model(tiny_nf4, "cpu")
    packed.set_attn_implementation("eager")
    found = score(packed.eval(), samples, "packed")
    assert found.nats == pytest.approx(nats_slowly(packed, samples), rel=1e-5)


def test_one_layer_at_a_time(tiny_gemma2, samples):
    streamed = StreamedModel(tiny_gemma2, "cpu", torch.float32)
    layers = streamed.model.get_decoder().layers

    def is_loaded():
        return [not next(layer.parameters()).is_meta for layer in layers]

    assert is_loaded() == [False, False]
    with streamed.loaded(layers[1]):
        assert is_loaded() == [False, True]
        assert not any(weight.is_meta for weight in layers[1].parameters())
    assert is_loaded() == [False, False]


def test_memory_is_freed_for_the_next_model(tiny_gemma2, samples):
    streamed = StreamedModel(tiny_gemma2, "cpu", torch.float32)
    score(streamed.model, samples, "streamed", streamed.loaded)
    embeddings = weakref.ref(streamed.model.get_input_embeddings())
    del streamed
    assert embeddings() is None


def test_missing_weights_are_named(tiny_gemma2, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_gemma2.path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_gemma2.path / "config.json").read_bytes())
    streamed = StreamedModel(ModelDirectory(tmp_path, "less"), "cpu", torch.float32)
    layer = streamed.model.get_decoder().layers[1]
    message = rf"{tmp_path}: its safetensors have no 'model\.layers\.1\.mlp\.up_proj\.weight'"
    with pytest.raises(InputError, match=message), streamed.loaded(layer):
        pass


def test_figures_of_a_score():
    found = Score(nats=20 * math.log(7), tokens=20, characters=40).as_report()
    assert found == {
        "perplexity": 7.0,
        "nats_per_token": round(math.log(7), 6),
        "nats_per_character": round(math.log(7) / 2, 6),
    }
    # of a useless model
    assert Score(nats=1e6, tokens=10, characters=10).as_report()["perplexity"] > 1e300


def test_likelihood_that_is_nan(tiny_gemma2, samples):
    model = tiny_gemma2.load_model(dtype=torch.float32)
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    with pytest.raises(InputError, match="broken: the likelihood is nan"):
        score(model, samples, "broken")


class TestSamples:
    def test_bos_first_and_whole_texts(self, tokenizer, samples):
        for sample, text in zip(samples, TEXTS, strict=True):
            assert sample.ids == tokenizer(text)["input_ids"]
            assert sample.ids[0] == tokenizer.bos_token_id
            assert sample.characters == len(text)

    @pytest.mark.parametrize("limit", [1, 5, 30, 70])
    def test_total_is_not_exceeded(self, tokenizer, limit):
        made = make_samples(tokenizer, TEXTS, limit)
        assert sum(len(sample.ids) - 1 for sample in made) == limit
        last = made[-1]
        text = tokenizer.decode(last.ids, skip_special_tokens=True)
        assert TEXTS[len(made) - 1].startswith(text)
        assert last.characters == len(text)

    def test_long_text_is_truncated(self, tokenizer, monkeypatch):
        monkeypatch.setattr(perplexity, "TEXT_TOKENS", 10)
        made = make_samples(tokenizer, TEXTS, 10_000)
        assert [len(sample.ids) for sample in made][1] == 11

    def test_without_bos_the_first_token_is_not_predicted(self, tiny_gemma2):
        tokenizer = tiny_gemma2.load_tokenizer()
        tokenizer.bos_token = None
        ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        first = len(tokenizer.decode(ids[:1]))
        assert make_samples(tokenizer, TEXTS[:1], 100) == [Sample(ids, len(TEXTS[0]) - first)]

    def test_empty_texts_make_no_samples(self, tokenizer):
        assert make_samples(tokenizer, ["", ""], 100) == []
