"""Model cards (``README.md`` of a model directory), filled in from a run's provenance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ja_instruct.config import Parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from huggingface_hub import ModelCardData

Kind = Literal["adapter", "quantized", "merged"]
Row = tuple[str, ...]

COMMIT = re.compile(r"[0-9a-f]{40}")
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

# for the keys of a run's figures that are not plain words
_LABELS = {
    "train_loss": "training loss, mean over the run (nats a token)",
    "eval_loss_before": "held-out loss before training (nats a token)",
    "eval_loss_after": "held-out loss after training (nats a token)",
    "eval_loss_best": "held-out loss, best (nats a token)",
    "trainable_millions": "trained weights (millions)",
    "cut": "samples cut at max_seq_length",
    "dropped_over_long": "samples left out: longer than max_seq_length",
    "dropped_nothing_to_learn": "samples left out: no answer within max_seq_length",
    "longest": "longest sample, before any cut (tokens)",
    "loss_tokens": "tokens in the loss",
    "train_tokens": "tokens trained on, over all epochs",
}


class DataSource(Parameters):
    """A set of training data, as the model card names it."""

    name: str = Field(description="owner/name on the hub, or a description in words")
    license: str = Field(description="Its license, or where to read it")


class ModelCardParameters(Parameters):
    """The facts of a model card that a run cannot find out."""

    license: str = Field(
        description="The model's license, inherited from the base: an identifier of the hub"
    )
    license_terms: str = Field(description="Where its terms are, or what to know about them")
    filtered_pairs: DataSource
    qa_pairs: DataSource


def adapter_card(
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    card: ModelCardParameters | None = None,
    prompt: str = "",
    hardware: str = "",
) -> str:
    """Return the card of a LoRA adapter: Markdown below a YAML block that the hub reads.

    It is filled from its ``ja_instruct.json`` and from ``train_metrics``, whose figures are shown
    under their keys. ``prompt`` is the text before the answer. Empty facts are left out.
    """
    base, settings = provenance.get("base", {}), dict(provenance.get("settings", {}))
    settings.pop("gpu", None)
    lora, training = settings.pop("lora", {}), settings.pop("training", {})
    metrics = dict(metrics)
    counts = {
        "trained on": metrics.pop("train_dataset", {}),
        "held out": metrics.pop("eval_dataset", {}),
    }
    summary = {"hardware": hardware} if hardware else {}
    revision = str(base.get("revision") or "")
    pinned = f", revision={revision!r}" if COMMIT.fullmatch(revision) else ""
    longest = max((len(run) for run in re.findall(r"`+", prompt)), default=0)
    return _render(
        "adapter",
        base,
        card,
        samples=[(title, _rows(one)) for title, one in counts.items() if one],
        results=_rows({**summary, **metrics.pop("summary", {}), **metrics}),
        lora=_rows(lora),
        training=_rows({**settings, **training}),
        pinned_base=(
            "'quantized_model'"
            if base.get("multimodal")
            else f"{base.get('model_id', '')!r}{pinned}"
        ),
        prompt=prompt.removesuffix("\n"),
        fence="`" * max(3, longest + 1),  # longer than any run of backticks in the prompt
        versions=_rows(provenance.get("versions", {})),
    )


def quantized_card(provenance: Mapping[str, Any], card: ModelCardParameters | None = None) -> str:
    """Return the card of a quantized model, from its ``ja_instruct.json``."""
    return _render(
        "quantized",
        provenance.get("source", {}),
        card,
        quantization=_rows(provenance.get("settings", {})),
        versions=_rows(provenance.get("versions", {})),
        files=_rows(provenance.get("weights_sha256") or {}),
    )


def merged_card(provenance: Mapping[str, Any], card: ModelCardParameters | None = None) -> str:
    """Return the card of a merged 16-bit model, from its ``ja_instruct.json``."""
    return _render(
        "merged",
        provenance.get("base", {}),
        card,
        adapter=_rows(provenance.get("adapter", {})),
        merging=_rows(provenance.get("summary", {})),
        versions=_rows(provenance.get("versions", {})),
    )


def is_hub_name(name: str) -> bool:
    """Return whether ``name`` is a valid ``owner/name`` of the hub.

    >>> is_hub_name("google/gemma-2-27b"), is_hub_name("/models/gemma"), is_hub_name("質問 500 組")
    (True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _render(
    kind: Kind, base: Mapping[str, Any], sources: ModelCardParameters | None, **parts: Any
) -> str:
    from huggingface_hub import ModelCard

    base_name = str(base.get("model_id", "unknown"))
    trained_on = []
    if sources is not None and kind != "quantized":
        named = {"filtered_pairs": sources.filtered_pairs, "qa_pairs": sources.qa_pairs}
        trained_on = [(name, one.name, one.license) for name, one in named.items()]
    source = {key: base[key] for key in ("model_id", "revision") if base.get(key)}
    checksums = base.get("weights_sha256") or {}
    card = ModelCard.from_template(
        _card_data(kind, base_name, sources, [name for _, name, _ in trained_on]),
        template_str=TEMPLATE.read_text("utf-8"),
        kind=kind,
        base_name=base_name,
        base=_rows({**source, **{f"SHA-256 of {name}": one for name, one in checksums.items()}}),
        data=trained_on,
        multimodal=base.get("multimodal", False),
        sources=sources,
        table=_table,
        **parts,
    )
    return str(card)


def _card_data(
    kind: Kind, base_name: str, sources: ModelCardParameters | None, datasets: list[str]
) -> ModelCardData:
    from huggingface_hub import ModelCardData

    relation, library, tags = {
        "adapter": ("adapter", "peft", ["lora", "sft", "qlora"]),
        "quantized": ("quantized", "transformers", ["4-bit", "bitsandbytes"]),
        "merged": ("finetune", "transformers", ["sft", "lora"]),
    }[kind]
    # the hub rejects a card that names its base or data in another form than owner/name
    is_known = is_hub_name(base_name)
    return ModelCardData(
        base_model=base_name if is_known else None,
        base_model_relation=relation if is_known else None,
        library_name=library,
        pipeline_tag="text-generation",
        language="ja",
        license=sources.license if sources is not None else None,
        datasets=[name for name in datasets if is_hub_name(name)] or None,
        tags=tags,
    )


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        rows.append((f"{prefix}{_LABELS.get(key, key)}", "none" if shown is None else str(shown)))
    return rows


def _table(rows: Iterable[Row], header: Row) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Escape characters that would end a cell or begin HTML."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())
