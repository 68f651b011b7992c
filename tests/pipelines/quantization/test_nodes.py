import dataclasses
import hashlib
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ja_instruct.datasets import ModelDirectoryDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.loading import load_nf4_model
from ja_instruct.pipelines.quantization.nodes import measure_quantization, quantize
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def parameters(read_parameters):
    """The recipe's, on the CPU."""
    return QuantizationParameters(**{**read_parameters("base")["quantization"], "device": "cpu"})


@pytest.fixture(scope="module")
def quantized(tiny_gemma2, parameters):
    return quantize(tiny_gemma2, parameters)


@pytest.fixture(scope="module")
def reloaded(tiny_nf4):
    """The saved 4-bit model, as transformers loads it back."""
    return tiny_nf4.load_model(device_map="cpu", dtype=torch.bfloat16)


@pytest.fixture
def save_quantized(tmp_path):
    """A function that quantizes a model and returns the saved directory."""

    def save(model, parameters):
        from ja_instruct.datasets import QuantizedModelDataset

        dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
        dataset.save(quantize(model, parameters))
        return dataset.load().path

    return save


@pytest.fixture
def changed_copy(tmp_path):
    """A function to a copy of a model in which one weight is changed in place."""

    def make(model, name, change):
        copy = shutil.copytree(model.path, tmp_path / "changed")
        weights = load_file(copy / "model.safetensors")
        change(weights[name])
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        return ModelDirectory(copy, model.model_id)

    return make


def test_saved_settings_are_the_recipes(tiny_nf4):
    expected = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    assert expected.items() <= tiny_nf4.load_config()["quantization_config"].items()


def test_every_linear_layer_is_loaded_back_in_4_bits(reloaded):
    from bitsandbytes.nn import Linear4bit

    in_4_bits = {name for name, layer in reloaded.named_modules() if isinstance(layer, Linear4bit)}
    assert {name.rsplit(".")[-1] for name in in_4_bits} == set(PROJECTIONS)
    assert len(in_4_bits) == 2 * len(PROJECTIONS)
    for name in in_4_bits:
        state = reloaded.get_submodule(name).weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
    assert reloaded.get_input_embeddings().weight.dtype == torch.bfloat16


MATRIX, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"


class TestLoadDtype:
    @pytest.mark.parametrize("load_dtype", ["float16", "bfloat16", "float32"])
    def test_every_weight_passes_through_it(
        self, load_dtype, tiny_gemma2, parameters, save_quantized
    ):
        from bitsandbytes.functional import quantize_4bit

        changed = parameters.model_copy(update={"load_dtype": load_dtype})
        found = load_file(save_quantized(tiny_gemma2, changed) / "model.safetensors")
        source = load_file(tiny_gemma2.path / "model.safetensors")
        read = {name: weight.to(getattr(torch, load_dtype)) for name, weight in source.items()}
        packed, state = quantize_4bit(read[MATRIX], quant_type="nf4", compress_statistics=True)
        assert found[MATRIX].equal(packed)
        assert found[f"{MATRIX}.absmax"].equal(state.absmax)
        for name in (EMBEDDING, "model.norm.weight"):
            assert found[name].equal(read[name].to(torch.bfloat16)), name

    @pytest.mark.parametrize("load_dtype", ["float16", "bfloat16", "float32"])
    def test_type_of_the_files_does_not_count(self, load_dtype, tiny_gemma2, parameters, tmp_path):
        """Of weights that all three types hold exactly, as those of a model trained in 16 bits."""
        source = load_file(tiny_gemma2.path / "model.safetensors")
        exact = {
            # float16 loses bits below its smallest normal number
            name: torch.where(weight.abs() < 2**-14, 0, weight).bfloat16()
            for name, weight in source.items()
        }
        changed = parameters.model_copy(update={"load_dtype": load_dtype})
        saved = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            copy = shutil.copytree(tiny_gemma2.path, tmp_path / str(dtype))
            weights = {name: weight.to(dtype) for name, weight in exact.items()}
            save_file(weights, copy / "model.safetensors", {"format": "pt"})
            dataset = ModelDirectoryDataset(filepath=copy)
            dataset.check()
            size = 4 if dtype == torch.float32 else 2
            assert dataset.parameter_count() == sum(one.numel() for one in exact.values())
            assert dataset.weights_bytes() == pytest.approx(
                size * dataset.parameter_count(), rel=0.02
            )
            quantize(dataset.load(), changed).model.save_pretrained(copy / "nf4")
            saved.append(load_file(copy / "nf4/model.safetensors"))
        for name, expected in saved[0].items():
            assert all(one[name].equal(expected) for one in saved[1:]), name

    def test_saved_types_do_not_depend_on_it(self, tiny_nf4, parameters):
        from bitsandbytes.utils import unpack_tensor_to_dict

        assert parameters.load_dtype == "float16"
        saved = load_file(tiny_nf4.path / "model.safetensors")
        assert tiny_nf4.load_config()["dtype"] == "bfloat16"
        assert {one.dtype for key, one in saved.items() if "_proj" not in key} == {torch.bfloat16}
        state = unpack_tensor_to_dict(saved[f"{MATRIX}.quant_state.bitsandbytes__nf4"])
        assert state["dtype"] == "bfloat16"

    @pytest.mark.parametrize("name", [MATRIX, EMBEDDING])
    @pytest.mark.parametrize("double_quantization", [True, False])
    def test_overflow_is_refused(
        self, name, double_quantization, tiny_gemma2, parameters, changed_copy
    ):
        def spoil(weight):
            weight[3, 5] = 1e5  # the largest number of float16 is 65,504

        model = changed_copy(tiny_gemma2, name, spoil)
        changed = parameters.model_copy(update={"double_quantization": double_quantization})
        message = rf"'{name}' is not finite in float16; set quantization\.load_dtype to bfloat16"
        with pytest.raises(InputError, match=message):
            quantize(model, changed)
        quantize(model, changed.model_copy(update={"load_dtype": "bfloat16"}))

    def test_damaged_weight_is_refused(self, tiny_gemma2, parameters, changed_copy):
        model = changed_copy(tiny_gemma2, MATRIX, lambda weight: weight[0].fill_(torch.nan))
        with pytest.raises(InputError, match=r"not finite in float32; its files are damaged"):
            quantize(model, parameters.model_copy(update={"load_dtype": "float32"}))


def test_chat_template_is_added_where_there_is_none(tiny_gemma2, quantized, tiny_nf4, parameters):
    assert tiny_gemma2.load_tokenizer().chat_template is None
    assert quantized.provenance["chat_template_added"] is True
    tokenizer = tiny_nf4.load_tokenizer()
    assert tokenizer.chat_template == parameters.chat_template
    assert tokenizer.get_vocab() == tiny_gemma2.load_tokenizer().get_vocab()
    turns = [{"role": "user", "content": "首都は?"}, {"role": "assistant", "content": "東京です。"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.strip() == (
        "<bos><start_of_turn>user\n首都は?<end_of_turn>\n"
        "<start_of_turn>model\n東京です。<end_of_turn>"
    )


def test_publishers_chat_template_is_kept(tiny_gemma2, parameters, tmp_path):
    directory = shutil.copytree(tiny_gemma2.path, tmp_path / "with_template")
    tokenizer = tiny_gemma2.load_tokenizer()
    tokenizer.chat_template = "the publisher's own"
    tokenizer.save_pretrained(directory)
    artifact = quantize(ModelDirectory(directory, "tiny"), parameters)
    assert artifact.tokenizer.chat_template == "the publisher's own"
    assert artifact.provenance["chat_template_added"] is False


def test_empty_chat_template_is_not_added(tiny_gemma2, parameters):
    artifact = quantize(tiny_gemma2, parameters.model_copy(update={"chat_template": ""}))
    assert artifact.tokenizer.chat_template is None
    assert artifact.provenance["chat_template_added"] is False


@pytest.mark.parametrize("ends", [1, [1, 107], 6, None])
def test_another_end_of_the_tokenizer_is_logged(ends, tiny_gemma2, parameters, tmp_path, caplog):
    copy = shutil.copytree(tiny_gemma2.path, tmp_path / "copy")
    path = copy / "generation_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "eos_token_id": ends}), "utf-8")
    quantize(ModelDirectory(copy, "owner/name"), parameters)
    logged = "owner/name: the model's files end answers with '<end_of_turn>' (6), the tokenizer"
    assert (f"{logged} with '<eos>' (1)." in caplog.text) == (ends == 6)


def test_generation_config_is_the_sources(tiny_gemma2, tiny_nf4):
    def read(model):
        saved = json.loads((model.path / "generation_config.json").read_text("utf-8"))
        del saved["transformers_version"]
        return saved

    assert read(tiny_nf4) == read(tiny_gemma2)
    assert {"bos_token_id", "eos_token_id", "pad_token_id"} <= set(read(tiny_nf4))


def test_shards_are_written_one_at_a_time(tiny_gemma2, parameters, tmp_path, monkeypatch):
    from ja_instruct.datasets import QuantizedModelDataset, quantized_model_dataset

    monkeypatch.setattr(quantized_model_dataset, "MAX_SHARD_SIZE", "100KB")
    dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
    dataset.save(quantize(tiny_gemma2, parameters))
    directory = dataset.load()
    shards = sorted(path.name for path in directory.path.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(directory.provenance["weights_sha256"]) == shards
    assert "model.safetensors.index.json" in directory.provenance["files"]
    load_nf4_model(directory, "cpu")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_provenance_names_source_size_and_memory(quantized, tiny_gemma2, tiny_nf4):
    assert quantized.provenance["stage"] == "quantization"
    assert tiny_nf4.provenance["memory_gb"] == quantized.provenance["memory_gb"]
    assert set(quantized.provenance["memory_gb"]) == {"model"}
    count = sum(weight.numel() for weight in tiny_gemma2.load_model().parameters())
    assert quantized.provenance["parameters"] == count
    files = {path.name: path for path in tiny_gemma2.path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert quantized.provenance["source"]["files"] == {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in files.items()
    }


def test_card_names_the_source(tiny_gemma2, parameters):
    source = dataclasses.replace(tiny_gemma2, model_id="google/gemma-2-27b", revision="a" * 40)
    card = quantize(source, parameters).card
    assert "base_model: google/gemma-2-27b" in card
    assert "a" * 40 in card


TEXTS = [{"text": "日本の首都は東京です。"}, {"text": "富士山の高さは3,776メートルです。"}]


class TestReport:
    @pytest.fixture(scope="class")
    def measure(self, tiny_gemma2, tiny_nf4, parameters):
        def measure(base_model=tiny_gemma2, texts=TEXTS, **changes):
            changed = parameters.model_copy(update=changes)
            return measure_quantization(base_model, tiny_nf4, texts, changed)

        return measure

    @pytest.fixture(scope="class")
    def report(self, measure):
        return measure()

    def test_source_and_settings(self, report, quantized, parameters):
        assert report["source"] == quantized.provenance["source"]
        assert report["source"]["model_id"] == "tiny-random-gemma2"
        assert report["source"]["model_type"] == "gemma2"
        assert set(report["settings"]) == set(QuantizationParameters.model_fields) - {
            "chat_template",
            "gpu",
            "perplexity_max_tokens",
        }
        assert report["settings"]["quant_type"] == parameters.quant_type
        assert set(report["versions"]) == {"torch", "transformers", "bitsandbytes", "ja-instruct"}
        assert report["chat_template_added"] is True
        assert report["memory_gb"] == quantized.provenance["memory_gb"]
        json.dumps(report)

    def test_every_written_file(self, report, tiny_nf4):
        written = {path.name for path in tiny_nf4.path.iterdir()}
        written -= {"ja_instruct.json", "README.md"}
        assert {"config.json", "generation_config.json", "chat_template.jinja"} <= written
        assert set(report["written"]) == written
        for name, noted in report["written"].items():
            assert noted["sha256"] == sha256(tiny_nf4.path / name)

    def test_summary(self, report, tiny_gemma2, tiny_nf4):
        summary = report["summary"]
        sizes = {
            f"{key}_mb": round((model.path / "model.safetensors").stat().st_size / 1e6, 1)
            for key, model in (("source", tiny_gemma2), ("quantized", tiny_nf4))
        }
        assert {key: summary[key] for key in sizes} == sizes
        assert summary["quantized_mb"] < summary["source_mb"] / 2
        assert 0.05 < summary["mean_relative_error"] < summary["worst_relative_error"] < 0.15
        for name in ("base", "quantized"):
            assert summary[f"perplexity_{name}"] == report["perplexity"][name]["perplexity"] > 1
        assert len({str(value) for value in summary.values()}) == len(summary)

    def test_perplexity_of_all_texts(self, report, tiny_gemma2):
        tokenizer = tiny_gemma2.load_tokenizer()
        counts = [len(tokenizer(record["text"])["input_ids"]) - 1 for record in TEXTS]
        found = report["perplexity"]
        assert (found["texts"], found["tokens"]) == (2, sum(counts))
        assert found["characters"] == sum(len(record["text"]) for record in TEXTS)
        model = tiny_gemma2.load_model(dtype=torch.float32, attn_implementation="eager")
        nats = 0.0
        for record, count in zip(TEXTS, counts, strict=True):
            ids = torch.tensor([tokenizer(record["text"])["input_ids"]])
            nats += count * model(ids, labels=ids).loss.item()
        expected = math.exp(nats / sum(counts))
        assert found["base"]["perplexity"] == pytest.approx(expected, rel=1e-3)

    def test_no_perplexity(self, measure):
        report = measure(texts=[], perplexity_max_tokens=0)
        assert report["perplexity"] == {}
        assert not [key for key in report["summary"] if key.startswith("perplexity")]

    def test_no_texts(self, measure):
        with pytest.raises(InputError, match=r"no text to predict.*perplexity_max_tokens to 0"):
            measure(texts=[{"text": ""}])

    def test_texts_of_another_name(self, measure):
        with pytest.raises(InputError, match=r"'perplexity_texts' lacks the column\(s\) text"):
            measure(texts=[{"content": "本文"}])

    def test_another_base_model_is_refused(self, measure, tiny_gemma2, tmp_path):
        copy = shutil.copytree(tiny_gemma2.path, tmp_path / "other")
        (copy / "config.json").write_text("{}", "utf-8")
        message = f"{copy}/config.json: not the .* bytes that .* was made of"
        with pytest.raises(InputError, match=message):
            measure(ModelDirectory(copy, "other"))


def test_model_that_is_quantized_already_is_refused(tiny_nf4, parameters):
    message = "'tiny-random-gemma2' at .* is quantized already .*bitsandbytes.*16-bit weights"
    with pytest.raises(InputError, match=message):
        quantize(tiny_nf4, parameters)
