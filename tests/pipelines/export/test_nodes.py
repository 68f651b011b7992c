"""Merging against PEFT's ``merge_and_unload``, which holds the whole model in memory."""

import json
import shutil
from collections import ChainMap
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from ja_instruct.datasets import AdapterDataset, MergedModelDataset
from ja_instruct.errors import InputError
from ja_instruct.models import lora_merging
from ja_instruct.models.directory import ModelDirectory, write_provenance
from ja_instruct.models.lora_merging import ADAPTER_WEIGHTS, checkpoint_shards
from ja_instruct.pipelines.export import nodes
from ja_instruct.pipelines.export.nodes import check_merged_model
from ja_instruct.prompts import PromptParameters

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DOWN_PROJ = "model.layers.2.mlp.down_proj.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
FAMILIES = ("gemma2", "gemma3_text", "llama")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PROMPTS = PromptParameters(
    format="recipe",
    train_prompt="質問{}回答{}",
    few_shot_header="",
    few_shot_example="{input}{output}",
    task_prompt="{input}",
)
CARD = {
    "license": "gemma",
    "license_terms": "terms",
    "filtered_pairs": {"name": "owner/pairs", "license": "MIT"},
    "qa_pairs": {"name": "mine", "license": "MIT"},
}


def merge_adapter(base, adapter, **changes):
    return nodes.merge_adapter(base, adapter, PROMPTS.model_copy(update=changes))


@pytest.fixture(scope="module")
def make_base(tmp_path_factory, tiny_gemma2):
    """A function to a tiny random model in several shards, with the tokenizer of another."""

    def make(family="gemma2", dtype=torch.bfloat16, **changes):
        from transformers import AutoConfig, AutoModelForCausalLM

        path = tmp_path_factory.mktemp("base") / family
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **{**SMALL, **changes}), dtype=dtype
        )
        model.save_pretrained(path, max_shard_size="20KB")
        assert len(list(path.glob("*.safetensors"))) > 3
        tiny_gemma2.load_tokenizer().save_pretrained(path)
        return ModelDirectory(path, f"owner/{family}", "a" * 40)

    return make


@pytest.fixture(scope="module")
def make_adapter(tmp_path_factory):
    """A function to an adapter of a model, random in both factors."""

    def make(base, size=0.05, **changes):
        from peft import LoraConfig, get_peft_model

        path = tmp_path_factory.mktemp("adapter") / "adapter"
        torch.manual_seed(1)
        settings = {"r": 4, "lora_alpha": 6, "target_modules": list(LAYERS), **changes}
        model = get_peft_model(base.load_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=size)
        model.save_pretrained(path)
        tokenizer = base.load_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(path)
        provenance = {
            "stage": "sft",
            "base": {"model_id": base.model_id, "revision": base.revision},
            "settings": {"lora": settings},
            "model_card": CARD,
        }
        write_provenance(path, provenance)
        return AdapterDataset(filepath=path).load()

    return make


@pytest.fixture(scope="module")
def base(make_base):
    return make_base()


@pytest.fixture(scope="module")
def adapter(base, make_adapter):
    return make_adapter(base)


@pytest.fixture
def export(tmp_path):
    """A function that merges and saves, and loads the handle."""

    def merge(base, adapter, **prompts):
        dataset = MergedModelDataset(filepath=tmp_path / "merged_model")
        dataset.save(merge_adapter(base, adapter, **prompts))
        return dataset.load()

    return merge


@pytest.fixture
def changed_adapter(adapter, tmp_path):
    """A function to a copy of the adapter with another configuration, weights or base."""

    def make_copy(config=None, change=None, base=None):
        path = tmp_path / "changed"
        shutil.copytree(adapter.path, path)
        old = json.loads((path / "adapter_config.json").read_text("utf-8"))
        (path / "adapter_config.json").write_text(json.dumps({**old, **(config or {})}), "utf-8")
        if change is not None:
            changed = [change(*item) for item in load_file(path / ADAPTER_WEIGHTS).items()]
            save_file(dict(ChainMap(*changed)), path / ADAPTER_WEIGHTS)
        provenance = dict(adapter.provenance)
        if base is not None:
            provenance["base"] = base
        return ModelDirectory(path, "adapter", provenance=provenance)

    return make_copy


def read_weights(model):
    weights = {}
    for shard in checkpoint_shards(model):
        weights |= load_file(model.path / shard)
    return weights


class TestAgainstPeft:
    @pytest.mark.parametrize(
        ("base_changes", "adapter_changes"),
        [
            *(({"family": family, "dtype": dtype}, {}) for family in FAMILIES for dtype in DTYPES),
            # embeddings and a head of its own, which stay
            ({"family": "llama", "tie_word_embeddings": False}, {}),
            ({}, {"use_rslora": True}),
            ({}, {"r": 1, "lora_alpha": 64}),
            ({}, {"target_modules": ["q_proj", "down_proj"]}),
        ],
        ids=str,
    )
    def test_every_weight_is_equal(
        self, base_changes, adapter_changes, make_base, make_adapter, export
    ):
        from peft import PeftModel

        base = make_base(**base_changes)
        adapter = make_adapter(base, **adapter_changes)
        adapted = PeftModel.from_pretrained(base.load_model(), adapter.path)
        expected = adapted.merge_and_unload().state_dict()
        old, found = read_weights(base), read_weights(export(base, adapter))
        assert set(found) == set(old)
        for key, weight in found.items():
            assert weight.dtype == old[key].dtype
            assert torch.equal(weight, expected[key]), key


def logits_of(model, tokenizer, prompt):
    with torch.no_grad():
        return model.eval()(**tokenizer(prompt, return_tensors="pt")).logits


def test_logits_are_the_adapters(tiny_gemma2, make_adapter, export):
    from peft import PeftModel

    adapter = make_adapter(tiny_gemma2)
    exported = export(tiny_gemma2, adapter)
    tokenizer, merged = exported.load_tokenizer(), exported.load_model()
    alone = tiny_gemma2.load_model()
    unmerged = PeftModel.from_pretrained(tiny_gemma2.load_model(), adapter.path)
    for prompt in ("日本の首都はどこですか?", "### 質問:\n猫\n\n### 回答:\n", "a"):
        found, expected, base = (
            logits_of(model, tokenizer, prompt) for model in (merged, unmerged, alone)
        )
        # float32, and logits up to 30
        assert (found - expected).abs().max() < 2e-3
        assert (found - base).abs().max() > 0.1


class TestDirectory:
    @pytest.fixture
    def merged(self, base, adapter, export):
        return export(base, adapter)

    def test_shards_and_configuration_are_the_bases(self, merged, base):
        shards = checkpoint_shards(base)
        assert checkpoint_shards(merged) == shards
        for shard in shards:
            old, new = load_file(base.path / shard), load_file(merged.path / shard)
            assert set(old) == set(new)
            for key in old:
                assert torch.equal(old[key], new[key]) != any(layer in key for layer in LAYERS), key
        # training ends answers with the EOS that the base knows
        names = ("config.json", "generation_config.json", "model.safetensors.index.json")
        for name in names:
            assert (merged.path / name).read_bytes() == (base.path / name).read_bytes()

    def test_too_little_disk_is_reported_before_anything_is_written(
        self, base, adapter, export, monkeypatch, tmp_path
    ):
        free = SimpleNamespace(free=10)
        monkeypatch.setattr(lora_merging.shutil, "disk_usage", lambda path: free)
        with pytest.raises(InputError, match=rf"GB of disk are needed .* in {tmp_path}, 0.0 GB"):
            export(base, adapter)
        assert list(tmp_path.iterdir()) == []

    def test_files_that_transformers_does_not_write_are_copied(
        self, base, adapter, export, tmp_path
    ):
        """The SentencePiece model, and what a multimodal base needs for pictures."""
        names = ("tokenizer.model", "preprocessor_config.json", "processor_config.json")
        copy = shutil.copytree(base.path, tmp_path / "base")
        for name in names:
            (copy / name).write_text(name)
        merged = export(ModelDirectory(copy, base.model_id, base.revision), adapter)
        assert [(merged.path / name).read_text() for name in names] == list(names)

    @pytest.mark.parametrize("has_settings", [True, False])
    def test_generation_ends_where_training_ends_an_answer(
        self, base, changed_adapter, export, tmp_path, has_settings
    ):
        copy = shutil.copytree(base.path, tmp_path / "base")
        if not has_settings:
            (copy / "generation_config.json").unlink()
        adapter = changed_adapter()
        end = adapter.load_tokenizer().convert_tokens_to_ids("<end_of_turn>")
        template = "{% for m in messages %}{{ m['content'] + '<end_of_turn>' }}{% endfor %}"
        (adapter.path / "chat_template.jinja").write_text(template)
        same = ModelDirectory(copy, base.model_id, base.revision)
        merged = export(same, adapter, format="chat_template")
        settings = json.loads((merged.path / "generation_config.json").read_text("utf-8"))
        expected = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": [1, end]}
        assert {name: settings[name] for name in expected} == expected
        assert merged.load_model().generation_config.eos_token_id == [1, end]

    def test_tokenizer_provenance_and_card(self, merged, base, adapter):
        assert merged.load_tokenizer().chat_template == "{{ messages[0]['content'] }}"
        assert merged.model_id == base.model_id
        assert merged.revision == base.revision
        assert merged.provenance["stage"] == "export"
        trained = merged.provenance["adapter"]
        assert trained["weights_sha256"] == adapter.provenance["weights_sha256"]
        assert set(merged.provenance["weights_sha256"]) == set(checkpoint_shards(base))
        card = ModelCard((merged.path / "README.md").read_text("utf-8")).data
        assert (card.base_model, card.datasets) == ("owner/gemma2", ["owner/pairs"])


class TestRefused:
    @pytest.mark.parametrize(
        ("trained_on", "message"),
        [
            ({"model_id": "owner/other"}, r"'owner/gemma2', but .* trained on 'owner/other'"),
            ({"model_id": "owner/gemma2", "revision": "b" * 40}, "trained on revision bbbb"),
        ],
    )
    def test_other_base(self, trained_on, message, base, changed_adapter):
        with pytest.raises(InputError, match=message):
            merge_adapter(base, changed_adapter(base=trained_on))

    def test_other_weights(self, base, changed_adapter):
        files = base.checksums("hashing")
        known = {"model_id": base.model_id, "revision": None, "source_files": files}
        assert merge_adapter(base, changed_adapter(base=known)).model.factors
        files[checkpoint_shards(base)[2]] = {"sha256": "0" * 64, "bytes": 1}
        adapter = ModelDirectory(base.path, "adapter", provenance={"base": known})
        with pytest.raises(InputError, match=r"model-00003-of-.* not the file that was quantized"):
            merge_adapter(base, adapter)

    def test_quantized_base(self, tiny_nf4, adapter):
        with pytest.raises(InputError, match="quantized already"):
            merge_adapter(tiny_nf4, adapter)

    @pytest.mark.parametrize("known", [{}, {"model_id": "owner/gemma2", "revision": None}])
    def test_unknown_origin_is_accepted(self, known, base, changed_adapter):
        assert merge_adapter(base, changed_adapter(base=known)).model.factors

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
            ({"bias": "lora_only"}, r"bias is 'lora_only'.*sft\.lora\.bias"),
            ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
            ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"use_dora": True}, "use_dora"),
            ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ],
    )
    def test_other_kinds_of_adapter(self, config, message, base, changed_adapter):
        with pytest.raises(InputError, match=message):
            merge_adapter(base, changed_adapter(config))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 4}, r"'model\.layers\.3\..*' at .* does not have"),
            ({"intermediate_size": 64}, r"is \(32, 48\) in base_model .* shape \(32, 64\)"),
        ],
    )
    def test_layers_of_another_base(self, changes, message, base, make_base, make_adapter):
        adapter = make_adapter(make_base(**changes))
        with pytest.raises(InputError, match=message):
            merge_adapter(base, adapter)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda key, one: {} if "lora_B" in key else {key: one}, r"has only .*lora_A"),
            (
                lambda key, one: {key: one * 0 if "lora_B" in key else one},
                r"changes nothing.*--pipeline=sft",
            ),
            (
                lambda key, one: {key: one / 0 if "layers.1.mlp.up_proj.lora_A" in key else one},
                r"layers\.1\.mlp\.up_proj\.lora_A.* not finite",
            ),
        ],
        ids=["half of a pair", "untrained", "not finite"],
    )
    def test_other_weights_of_the_adapter(self, change, message, base, changed_adapter):
        with pytest.raises(InputError, match=message):
            merge_adapter(base, changed_adapter(change=change))

    def test_adapted_head(self, make_base, make_adapter):
        """PEFT saves the whole head beside its factors."""
        base = make_base("llama", tie_word_embeddings=False)
        adapter = make_adapter(base, target_modules=["lm_head", "q_proj"])
        with pytest.raises(InputError, match=r"lm_head\.base_layer\.weight' is not a factor"):
            merge_adapter(base, adapter)

    def test_missing_shard(self, base, adapter, tmp_path):
        copy = shutil.copytree(base.path, tmp_path / "base")
        (copy / checkpoint_shards(base)[1]).unlink()
        with pytest.raises(InputError, match=r"index\.json lists .* model-00002-of-"):
            merge_adapter(ModelDirectory(copy, base.model_id, base.revision), adapter)


class TestCheck:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_report(self, dtype, make_base, make_adapter, export):
        base = make_base(dtype=dtype)
        adapter = make_adapter(base)
        merged = export(base, adapter)
        report = check_merged_model(base, adapter, merged)
        summary = report["summary"]
        old, new = read_weights(base), read_weights(merged)
        changed = sum(int((old[key] != new[key]).sum()) for key in old)
        total = sum(one.numel() for one in old.values())
        assert summary["matrices"] == summary["matrices_changed"] == 3 * len(LAYERS)
        assert summary["weights_changed_percent"] == round(100 * changed / total, 2)
        assert summary["update_kept_percent"] == pytest.approx(100, abs=1)
        assert report["unchanged_matrices"] == []
        assert report["weights_sha256"] == merged.provenance["weights_sha256"]
        json.dumps(report, allow_nan=False)

    def test_update_lost_to_rounding_is_logged(self, base, make_adapter, export, caplog):
        adapter = make_adapter(base, size=1e-6)
        report = check_merged_model(base, adapter, export(base, adapter))
        assert report["summary"]["update_kept_percent"] < 50
        assert "too coarse" in caplog.text

    def test_unchanged_matrix_is_counted(self, base, changed_adapter, export):
        name = "model.layers.0.mlp.up_proj"
        adapter = changed_adapter(
            change=lambda key, one: {key: one * 0 if f"{name}.lora_B" in key else one}
        )
        report = check_merged_model(base, adapter, export(base, adapter))
        assert report["unchanged_matrices"] == [f"{name}.weight"]
        assert report["summary"]["matrices_changed"] == 3 * len(LAYERS) - 1

    @pytest.mark.parametrize(
        ("key", "spoil", "message"),
        [
            (DOWN_PROJ, lambda old, new: old, "base plus adapter"),
            (
                DOWN_PROJ,
                lambda old, new: (2 * new.float() - old).to(new.dtype),
                "base plus adapter",
            ),
            (DOWN_PROJ, lambda old, new: new.float(), "base plus adapter"),
            (DOWN_PROJ, lambda old, new: with_last_row(new, torch.nan), "base plus adapter"),
            (Q_PROJ, lambda old, new: with_last_row(new, 0), "base plus adapter"),
            ("model.norm.weight", lambda old, new: new + 1, "the base's"),
        ],
        ids=["base", "doubled", "float32", "nan", "one row", "not adapted"],
    )
    def test_wrong_tensor_is_detected(self, key, spoil, message, base, adapter, export):
        merged = export(base, adapter)
        old = read_weights(base)[key]
        for shard in checkpoint_shards(merged):
            path = merged.path / shard
            weights = load_file(path)
            if key in weights:
                save_file({**weights, key: spoil(old, weights[key])}, path, {"format": "pt"})
        with pytest.raises(InputError, match=f"'{key}' differs from {message}"):
            check_merged_model(base, adapter, merged)


def with_last_row(tensor, value):
    return torch.cat([tensor[:-1], torch.full_like(tensor[-1:], value)])
