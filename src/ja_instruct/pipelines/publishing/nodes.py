"""Nodes of ``publishing``: what is uploaded; the catalog names the repositories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ja_instruct.errors import InputError
from ja_instruct.models.cards import COMMIT
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.publication import Publication
from ja_instruct.pipelines.publishing.parameters import PublishingParameters
from kedro_freshness import unaffected_by


@unaffected_by("params:publishing.commit_message")
def publish_quantized_model(
    quantized_model: ModelDirectory, parameters: PublishingParameters
) -> Publication:
    """Publish the 4-bit model as it is."""
    return _publication(quantized_model, parameters)


@unaffected_by("params:publishing.commit_message")
def publish_adapter(adapter: ModelDirectory, parameters: PublishingParameters) -> Publication:
    """Publish the adapter with the hub's name of its base.

    PEFT records the base's directory on this computer; ``AutoPeftModelForCausalLM`` needs the name.
    """
    base = adapter.provenance.get("base", {})
    if not base.get("model_id"):
        return _publication(adapter, parameters)
    revision = str(base.get("revision") or "")
    changes = {
        "base_model_name_or_path": base["model_id"],
        "revision": revision if COMMIT.fullmatch(revision) else None,
    }
    return replace(_publication(adapter, parameters), json_changes={"adapter_config.json": changes})


@unaffected_by("params:publishing.commit_message")
def publish_merged_model(
    merged_model: ModelDirectory,
    export_report: dict[str, Any],
    parameters: PublishingParameters,
) -> Publication:
    """Publish the merged model as it is, if its check has passed.

    Raises:
        InputError: ``export_report`` describes another model.
    """
    publication = _publication(merged_model, parameters)
    if export_report.get("weights_sha256") != publication.weights_sha256:
        raise InputError(
            f"export_report does not describe the merged model at {merged_model.path}; check it "
            f"with 'kedro run --pipeline=export --nodes=check_merged_model'"
        )
    return publication


def _publication(model: ModelDirectory, parameters: PublishingParameters) -> Publication:
    checksums = model.provenance.get("weights_sha256") or {}
    return Publication(model.path, parameters.commit_message, checksums)
