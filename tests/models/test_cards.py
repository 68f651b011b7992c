import pytest
from huggingface_hub import ModelCard

from ja_instruct.models.cards import (
    DataSource,
    ModelCardParameters,
    adapter_card,
    merged_card,
    quantized_card,
)

BASE = {
    "model_id": "google/gemma-2-27b",
    "revision": "a" * 40,
    "weights_sha256": {"model-00001-of-00002.safetensors": "b" * 64},
}
CARD = ModelCardParameters(
    license="gemma",
    license_terms="https://ai.google.dev/gemma/terms",
    filtered_pairs=DataSource(name="llm-jp/magpie-sft-v1.0", license="see its page"),
    qa_pairs=DataSource(name="手で書いた問答", license="Apache-2.0"),
)
METRICS = {
    "summary": {
        "steps": 682,
        "train_loss": 1.2345,
    },
    "train_dataset": {
        "samples": 10932,
        "dropped_nothing_to_learn": 13,
        "by_source": {"qa_pairs": 111},
    },
    "eval_dataset": {"samples": 1091, "tokens": 54381},
    "speed": {"tokens_per_second": 2698.1},
}


@pytest.fixture(scope="module")
def settings(read_parameters):
    """The section ``sft``, as provenance has it."""
    section = dict(read_parameters("base")["sft"])
    del section["model_card"]
    return section


@pytest.fixture(scope="module")
def card_of(settings):
    """A function to the card of an adapter."""

    def render(base=BASE, card=CARD, prompt="\n### 質問:\n{question}\n\n### 回答:\n"):
        provenance = {"base": base, "settings": settings, "versions": {"peft": "0.21.2"}}
        return adapter_card(provenance, METRICS, card, prompt, "NVIDIA H100 80GB")

    return render


def leaves(values):
    for value in values.values():
        if isinstance(value, dict):
            yield from leaves(value)
        elif isinstance(value, list):
            yield from map(str, value)
        else:
            yield "none" if value is None else str(value)


def cells(card):
    """The last cell of every table row."""
    rows = [line for line in card.split("\n") if line.startswith("| ")]
    return [row.removesuffix(" |").split(" | ")[-1] for row in rows]


def python_block(card):
    return card.split("```python\n")[1].split("```")[0]


def test_metadata_is_read_by_the_hubs_library(card_of):
    data = ModelCard(card_of()).data.to_dict()
    assert data == {
        "base_model": "google/gemma-2-27b",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": "ja",
        "license": "gemma",
        "datasets": ["llm-jp/magpie-sft-v1.0"],
        "tags": ["lora", "sft", "qlora"],
    }


def test_every_figure_and_parameter_is_in_a_table(card_of, settings):
    shown = ", ".join(cells(card_of())).split(", ")
    parameters = {key: value for key, value in settings.items() if key != "gpu"}
    assert set(leaves({**METRICS, **parameters})) <= set(shown)


def test_source_licenses_hardware_and_prompt_are_shown(card_of):
    card = card_of()
    facts = ("see its page", "手で書いた問答", "NVIDIA H100 80GB", "0.21.2")
    for text in ("a" * 40, "b" * 64, *facts):
        assert text in card
    assert "```text\n\n### 質問:\n{question}\n\n### 回答:\n```" in card


def test_unknown_facts_are_left_out():
    card = adapter_card({"base": {"model_id": "m"}}, {})
    assert "## Results" not in card
    assert "## License" not in card
    assert "None" not in card
    data = ModelCard(card).data.to_dict()
    assert "base_model" not in data
    assert "license" not in data


def test_every_table_has_rows(card_of):
    lines = card_of().split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ---"):
            assert following.startswith("| ")


@pytest.mark.parametrize(
    "name", ['a"b: c', "- x", "日本語: モデル", "a\nb: c", "---", "#x", "{a}", "null", "a|b"]
)
def test_special_characters_are_escaped_in_yaml_tables_and_code(card_of, name):
    card = CARD.model_copy(update={"license": name})
    text = card_of({**BASE, "model_id": name}, card)
    data = ModelCard(text).data.to_dict()
    assert data["license"] == name
    assert data["library_name"] == "peft"
    row = next(line for line in text.split("\n") if line.startswith("| model_id |"))
    assert row.replace("\\|", "").count("|") == 3
    compile(python_block(text), "snippet", "exec")


def test_fence_is_longer_than_backticks_in_the_prompt(card_of):
    card = card_of(prompt="a\n```\nb")
    assert "````text\na\n```\nb\n````" in card


def test_only_a_commit_is_pinned(card_of):
    assert f"revision='{'a' * 40}'" in card_of()
    of_file = {"model_id": "google/gemma-3-270m", "revision": "sha256:" + "c" * 64}
    assert "revision=" not in python_block(card_of(of_file))


def test_other_cards():
    quantized = quantized_card(
        {
            "source": BASE,
            "settings": {"quant_type": "nf4"},
            "weights_sha256": {"model.safetensors": "d" * 64},
        },
        CARD,
    )
    data = ModelCard(quantized).data.to_dict()
    assert (data["base_model_relation"], data["library_name"]) == ("quantized", "transformers")
    assert "datasets" not in data  # nothing was trained
    assert {"nf4", "d" * 64} <= set(cells(quantized))
    merged = merged_card({"base": BASE, "summary": {"matrices_changed": 322}}, CARD)
    assert ModelCard(merged).data.to_dict()["base_model_relation"] == "finetune"
    assert "322" in cells(merged)
    for card in (quantized, merged):
        compile(python_block(card), "snippet", "exec")
