"""Nodes of ``publishing``: they say what to publish, the datasets upload it."""

from __future__ import annotations

import re
from typing import Any

from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.publication import Publication
from ja_instruct.pipelines.publishing.parameters import PublishingParameters

_COMMIT = re.compile(r"[0-9a-f]{40}")


def publish_quantized_model(
    quantized_model: ModelDirectory, parameters: PublishingParameters
) -> Publication:
    """Describe the publication of the 4-bit model."""
    return _publication(quantized_model, parameters)


def publish_adapter(adapter: ModelDirectory, parameters: PublishingParameters) -> Publication:
    """Describe the publication of the adapter.

    PEFT notes as its base the directory on this computer; the published copy names the model
    instead, so that ``AutoPeftModelForCausalLM`` finds it.
    """
    base = adapter.provenance.get("base", {})
    changes: dict[str, dict[str, Any]] = {}
    if base.get("model_id"):
        revision = str(base.get("revision") or "")
        changes["adapter_config.json"] = {
            "base_model_name_or_path": base["model_id"],
            "revision": revision if _COMMIT.fullmatch(revision) else None,
        }
    return _publication(adapter, parameters, changes)


def publish_merged_model(
    merged_model: ModelDirectory,
    export_report: dict[str, Any],
    parameters: PublishingParameters,
) -> Publication:
    """Describe the publication of the merged model, which must have passed its check.

    Raises:
        InputError: ``export_report`` is about another model than this.
    """
    publication = _publication(merged_model, parameters)
    if export_report.get("weights_sha256") != publication.weights_sha256:
        raise InputError(
            f"export_report is not about the merged model at {merged_model.path}; check it with "
            f"'kedro run --pipeline=export --nodes=check_merged_model'"
        )
    return publication


def _publication(
    model: ModelDirectory,
    parameters: PublishingParameters,
    json_changes: dict[str, dict[str, Any]] | None = None,
) -> Publication:
    checksums = model.provenance.get("weights_sha256") or {}
    return Publication(model.path, parameters.commit_message, checksums, json_changes or {})
