"""Model cards (``README.md`` of a model directory), written from what a run noted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ja_instruct.config import Parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_COMMIT = re.compile(r"[0-9a-f]{40}")
# as huggingface_hub checks it, which does not export its check
_OWNER_AND_NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<![.-])(?<!\.git)", re.ASCII)
_NAME_LENGTH_MAX = 96

# where two keys of a run's figures are not plain words
_LABELS = {
    "train_loss": "training loss, mean over the run (nats a token)",
    "eval_loss_before": "held-out loss before training (nats a token)",
    "eval_loss_after": "held-out loss after training (nats a token)",
    "eval_loss_best": "held-out loss, best (nats a token)",
    "train_seconds": "training time (s)",
    "trainable_millions": "trained weights (millions)",
    "cut": "samples cut at max_seq_length",
    "dropped_over_long": "samples left out: longer than max_seq_length",
    "dropped_nothing_to_learn": "samples left out: no answer within max_seq_length",
    "longest": "longest sample, before any cut (tokens)",
    "loss_tokens": "tokens in the loss",
    "train_tokens": "tokens trained on, over all epochs",
    "tokens_per_second": "tokens a second",
    "peak_gpu_memory_gb": "peak GPU memory (10⁹ bytes)",
}
_PROMPT = "What comes before an answer, between the tokens BOS and the answer itself:"


class DataSource(Parameters):
    """A set of training data, as the card names it."""

    name: str = Field(description="owner/name on the hub, or words")
    license: str = Field(description="Its license, or where to read it")


class ModelCardParameters(Parameters):
    """What a model card tells that no run can find out."""

    license: str = Field(
        description="The model's license, inherited from the base: an identifier of the hub"
    )
    license_terms: str = Field(description="Where its terms are, or what to know about them")
    filtered_pairs: DataSource
    qa_pairs: DataSource


@dataclass(frozen=True)
class AdapterFacts:
    """What ``adapter_card`` is written from.

    Attributes:
        base: ``model_id``, ``revision`` and ``weights_sha256`` of what was trained on.
        parameters: The section ``sft``, as a dictionary.
        metrics: ``train_metrics``: ``summary``, counts of ``train_dataset`` and ``eval_dataset``,
            anything else. Missing parts are left out, unknown ones shown under their keys.
        versions: Library to version.
        card: Data and licenses; None leaves them out.
        prompt: The text before the answer, ``{question}`` where the question goes; may be empty.
        hardware: What it was trained on, in words; may be empty.
    """

    base: Mapping[str, Any]
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    card: ModelCardParameters | None = None
    prompt: str = ""
    hardware: str = ""


def adapter_card(facts: AdapterFacts) -> str:
    """Return the card of a LoRA adapter: Markdown after a YAML block that the hub reads."""
    settings = dict(facts.parameters)
    for elsewhere in ("gpu", "model_card"):
        settings.pop(elsewhere, None)
    lora = settings.pop("lora", {})
    training = settings.pop("training", {})
    metrics = dict(facts.metrics)
    counts = [(name, metrics.pop(name, {})) for name in ("train_dataset", "eval_dataset")]
    summary = {"hardware": facts.hardware} if facts.hardware else {}
    summary |= {**metrics.pop("summary", {}), **metrics}
    base = str(facts.base.get("model_id", "unknown"))
    parts = [
        _front_matter(base, "adapter", "peft", ["lora", "sft", "qlora"], facts.card),
        f"# LoRA adapter of {base}",
        "Trained by supervised fine-tuning on Japanese questions and answers, over the base's "
        "weights in 4 bits (QLoRA, arXiv:2305.14314). Written from the run that made it.",
        *_section("Base model", _table(_base_rows(facts.base))),
        *_data_section(facts.card),
        *_section("Samples", *[_counts_table(name, one) for name, one in counts if one]),
        *_section("Results", _table(_rows(summary))),
        *_section("LoRA", _table(_rows(lora))),
        *_section("Training", _table(_rows({**settings, **training}))),
        *_section("How to load it", _adapter_snippet(facts.base)),
        *(_section("Prompt", _PROMPT, _fenced(facts.prompt)) if facts.prompt else []),
        *_section("Versions", _table(_rows(facts.versions))),
        *_license_section(facts.card),
    ]
    return _join(parts)


def quantized_card(provenance: Mapping[str, Any], card: ModelCardParameters | None = None) -> str:
    """Return the card of a quantized model, from its ``ja_instruct.json``."""
    source = provenance.get("source", {})
    base = str(source.get("model_id", "unknown"))
    tags = ["4-bit", "bitsandbytes"]
    snippet = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "."  # this directory, or its name on the hub\n'
        'model = AutoModelForCausalLM.from_pretrained(path, device_map="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
    )
    parts = [
        _front_matter(base, "quantized", "transformers", tags, card, with_data=False),
        f"# {base} in 4 bits",
        "The publisher's 16-bit weights, quantized with bitsandbytes; nothing was trained.",
        *_section("Base model", _table(_base_rows(source))),
        *_section("Settings", _table(_rows(provenance.get("settings", {})))),
        *_section("How to load it", _fenced(snippet, "python")),
        *_section("Versions", _table(_rows(provenance.get("versions", {})))),
        *_section("Files (SHA-256)", _table(_rows(provenance.get("weights_sha256") or {}))),
        *_license_section(card),
    ]
    return _join(parts)


def merged_card(provenance: Mapping[str, Any], card: ModelCardParameters | None = None) -> str:
    """Return the card of a merged 16-bit model, from its ``ja_instruct.json``."""
    source = provenance.get("base", {})
    base = str(source.get("model_id", "unknown"))
    snippet = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "."  # this directory, or its name on the hub\n'
        'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
    )
    parts = [
        _front_matter(base, "finetune", "transformers", ["sft", "lora"], card),
        f"# {base} with a LoRA adapter merged into it",
        "The publisher's 16-bit weights with the adapter's update added, W + scaling · B A, "
        "in float32 and rounded once to the base's type.",
        *_section("Base model", _table(_base_rows(source))),
        *_section("Adapter", _table(_rows(provenance.get("adapter", {})))),
        *_data_section(card),
        *_section("Merging", _table(_rows(provenance.get("summary", {})))),
        *_section("How to load it", _fenced(snippet, "python")),
        *_section("Versions", _table(_rows(provenance.get("versions", {})))),
        *_license_section(card),
    ]
    return _join(parts)


def is_hub_name(name: str) -> bool:
    """Tell whether ``name`` has the form ``owner/name`` of the hub.

    >>> is_hub_name("google/gemma-2-27b"), is_hub_name("/models/gemma"), is_hub_name("質問 500 組")
    (True, False, False)
    """
    return len(name) <= _NAME_LENGTH_MAX and _OWNER_AND_NAME.fullmatch(name) is not None


def _front_matter(
    base: str,
    relation: str,
    library: str,
    tags: list[str],
    card: ModelCardParameters | None,
    *,
    with_data: bool = True,
) -> str:
    from huggingface_hub import ModelCardData

    sources = [card.filtered_pairs, card.qa_pairs] if card is not None and with_data else []
    # the hub refuses a card whose base or data have names of another form
    known = is_hub_name(base)
    data = ModelCardData(
        base_model=base if known else None,
        base_model_relation=relation if known else None,
        library_name=library,
        pipeline_tag="text-generation",
        language="ja",
        license=card.license if card is not None else None,
        datasets=[source.name for source in sources if is_hub_name(source.name)] or None,
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---"


def _base_rows(base: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = _rows({key: base.get(key) for key in ("model_id", "revision") if base.get(key)})
    checksums = base.get("weights_sha256") or {}
    return rows + [(f"SHA-256 of {name}", str(value)) for name, value in checksums.items()]


def _data_section(card: ModelCardParameters | None) -> list[str]:
    if card is None:
        return []
    rows = [
        ("filtered_pairs", card.filtered_pairs.name, card.filtered_pairs.license),
        ("qa_pairs", card.qa_pairs.name, card.qa_pairs.license),
    ]
    return _section("Data", _table(rows, ("data set", "source", "license")))


def _license_section(card: ModelCardParameters | None) -> list[str]:
    if card is None:
        return []
    return _section("License", f"`{card.license}`, as the base model's: {card.license_terms}")


def _counts_table(name: str, counts: Mapping[str, Any]) -> str:
    title = {"train_dataset": "trained on", "eval_dataset": "held out"}[name]
    return _table(_rows(counts), (title, ""))


def _adapter_snippet(base: Mapping[str, Any]) -> str:
    name = str(base.get("model_id", ""))
    revision = str(base.get("revision") or "")
    pinned = f", revision={revision!r}" if _COMMIT.fullmatch(revision) else ""
    code = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "# the 4-bit directory that it was trained on (the run's 'quantized_model'), or the base\n"
        f"base = AutoModelForCausalLM.from_pretrained(\n"
        f'    {name!r}{pinned}, dtype="auto", device_map="auto"\n'
        ")\n"
        'path = "."  # this directory, or its name on the hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        "model = PeftModel.from_pretrained(base, path)\n"
    )
    return _fenced(code, "python")


def _section(title: str, *texts: str) -> list[str]:
    shown = [text for text in texts if text]
    return [f"## {title}", *shown] if shown else []


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{_LABELS.get(key, key)}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else str(value)


def _table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = ("", "")) -> str:
    lines = [" | ".join(map(_cell, row)) for row in rows]
    if not lines:
        return ""
    head = [" | ".join(map(_cell, header)), " | ".join("---" for _ in header)]
    return "\n".join(f"| {line} |" for line in [*head, *lines])


def _cell(text: str) -> str:
    """Keep what would end a cell, or begin HTML, from doing so."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def _fenced(text: str, language: str = "text") -> str:
    """Return a code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"
