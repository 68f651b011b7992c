"""Nodes of ``export`` and ``gguf_export``."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct import __version__
from ja_instruct.errors import InputError
from ja_instruct.models.cards import ModelCardParameters, merged_card
from ja_instruct.models.directory import ModelArtifact, ModelDirectory, refuse_quantized
from ja_instruct.models.gguf import GGUFConversion
from ja_instruct.models.lora_merging import (
    MergedModel,
    lora_scaling,
    match_factors,
    refuse_useless_factors,
)
from ja_instruct.models.text_model import mark_multimodal
from ja_instruct.pipelines.export.merge_check import compare_with_base
from ja_instruct.pipelines.export.parameters import ExportParameters
from ja_instruct.prompts import PromptParameters, answer_ends
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from ja_instruct.models.checksums import FileRecord

logger = logging.getLogger(__name__)

_UPDATE_KEPT_PERCENT_MIN = 90


@unaffected_by("params:prompts", but=("params:prompts.format",))
def merge_adapter(
    base_model: ModelDirectory, adapter: ModelDirectory, prompts: PromptParameters
) -> ModelArtifact:
    """Merge the adapter into the 16-bit base: W + scaling · B A for each adapted matrix W.

    Returns:
        The merged model, whose matrices are computed shard by shard while it is saved, with the
        adapter's tokenizer. Its ``generation_config.json`` lists the tokens with which training
        ends an answer. A multimodal base keeps its other parts.

    Raises:
        InputError: The adapter was trained on another base, is not plain LoRA, does not fit, or
            would change nothing.
    """
    refuse_quantized(base_model)
    _require_same_base(base_model, adapter)
    scaling = lora_scaling(adapter)
    factors = match_factors(adapter, base_model)
    refuse_useless_factors(adapter, factors)
    provenance = {
        "stage": "export",
        "base": {
            "model_id": base_model.model_id,
            "revision": base_model.revision,
            **mark_multimodal(base_model.load_config()),
        },
        "adapter": {
            "weights_sha256": adapter.provenance.get("weights_sha256"),
            "trained_on": adapter.provenance.get("base"),
            "lora": adapter.provenance.get("settings", {}).get("lora"),
        },
        "summary": {"matrices": len(factors), "scaling": scaling},
        "versions": {
            "ja-instruct": __version__,
            **{name: version(name) for name in ("torch", "safetensors")},
        },
    }
    known = adapter.provenance.get("model_card")
    card = merged_card(provenance, None if known is None else ModelCardParameters(**known))
    tokenizer = adapter.load_tokenizer()
    ends = answer_ends(tokenizer, stop_at_end_of_turn=prompts.format == "chat_template")
    model = MergedModel(base_model, adapter, scaling, factors, ends)
    return ModelArtifact(model, tokenizer, provenance, card)


def _require_same_base(base_model: ModelDirectory, adapter: ModelDirectory) -> None:
    trained_on = adapter.provenance.get("base", {})
    model_id = trained_on.get("model_id")
    if model_id is None:
        logger.warning(
            "%s does not name the model it was trained on, so '%s' may be the wrong base for it",
            adapter.path,
            base_model.model_id,
        )
        return
    if model_id != base_model.model_id:
        raise InputError(
            f"base_model is '{base_model.model_id}', but the adapter at {adapter.path} was "
            f"trained on '{model_id}'; merge it into that one, or train it again"
        )
    revisions = (trained_on.get("revision"), base_model.revision)
    if None not in revisions and revisions[0] != revisions[1]:
        raise InputError(
            f"base_model '{model_id}' is revision {revisions[1]}, but the adapter at "
            f"{adapter.path} was trained on revision {revisions[0]}; set 'revision' of base_model "
            f"in the catalog to it"
        )
    _require_same_weights(base_model, trained_on.get("source_files") or {}, adapter)


def _require_same_weights(
    base_model: ModelDirectory, recorded: dict[str, FileRecord], adapter: ModelDirectory
) -> None:
    weights = {
        name: record["sha256"] for name, record in recorded.items() if name.endswith(".safetensors")
    }
    if not weights:
        return
    found = base_model.checksums("export: hashing the base")
    for name, sha256 in weights.items():
        if name not in found or found[name]["sha256"] != sha256:
            raise InputError(
                f"base_model '{base_model.model_id}' at {base_model.path}: {name} is not the file "
                f"that was quantized for the adapter at {adapter.path} (SHA-256 {sha256}); give "
                f"the same weights, or run 'quantization' and 'sft' again"
            )


def check_merged_model(
    base_model: ModelDirectory, adapter: ModelDirectory, merged_model: ModelDirectory
) -> dict[str, Any]:
    """Read the merged model back and compare every tensor with base and adapter.

    Returns:
        ``export_report``: how many matrices and weights changed, how much of the update the base's
        type has kept, sizes (10⁶ bytes), checksums.

    Raises:
        InputError: A matrix differs from base plus adapter by more than rounding, or a weight
            changed that the adapter does not adapt.
    """
    report = compare_with_base(base_model, adapter, merged_model)
    kept = report["summary"]["update_kept_percent"]
    if kept < _UPDATE_KEPT_PERCENT_MIN:
        logger.warning(
            "The merged model keeps %s %% of the adapter's update: the base's type is too coarse "
            "for the rest. Base and adapter unmerged keep all of it",
            kept,
        )
    copied = ("base", "adapter", "versions", "weights_sha256")
    return {**report, **{key: merged_model.provenance.get(key) for key in copied}}


def export_gguf(
    merged_model: ModelDirectory, gguf_converter: Path, parameters: ExportParameters
) -> GGUFConversion:
    """Convert the merged model to a GGUF file.

    Returns:
        The conversion; llama.cpp's script runs while the file is saved, and writes it in place.
    """
    return GGUFConversion(merged_model.path, gguf_converter, parameters.gguf_outtype)
