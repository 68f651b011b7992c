"""Checkpoints that a training may resume from: complete, of the same model, data and parameters.

transformers' ``get_last_checkpoint`` also returns a checkpoint that a killed process left half
written.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from ja_instruct.errors import InputError
from ja_instruct.models.json_files import read_adapter_config
from ja_instruct.models.safetensors import read_headers
from ja_instruct.tables.json_objects import JSONObject, read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.sft.parameters import SftParameters

logger = logging.getLogger(__name__)

# Parameters that do not change the adapter's weights
WITHOUT_EFFECT: dict[str, Any] = {
    "gpu": {"memory_gb", "disk_gb"},
    "checkpoint_dir": True,
    "resume": True,
    "model_card": True,
    "training": {"report_to", "save_total_limit", "divergence_nats", "auto_find_batch_size"},
}
STATE_FILE = "trainer_state.json"


class _StateFields(JSONObject):
    global_step: int
    max_steps: int
    log_history: list[dict[str, float]]
    stateful_callbacks: dict[str, dict[str, Any] | list[Any]]
    best_model_checkpoint: str | None = None


# the state is written last
FILES = (
    STATE_FILE,
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
)


def describe_training(
    model: ModelDirectory, train_dataset: Dataset, parameters: SftParameters
) -> dict[str, Any]:
    """Return what a checkpoint must have in common with a training that resumes from it.

    These are ``settings``, the checksums of the model's weights (``quantized_model``), and number
    and checksum of the samples (``train_dataset``).
    """
    digest = hashlib.sha256()
    for sample in train_dataset:
        # with only the answers in the loss, their places are part of the sample
        earlier = sample.get("earlier_answers")
        for part in (sample["prompt"], sample["completion"], *([earlier] if earlier else ())):
            text = str(part).encode("utf-8", "surrogatepass")
            digest.update(len(text).to_bytes(8, "little") + text)
    return {
        "settings": parameters.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "quantized_model": model.provenance.get("weights_sha256"),
        "train_dataset": {"samples": len(train_dataset), "sha256": digest.hexdigest()},
    }


def fingerprint(training: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify what ``describe_training`` returns."""
    return hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:12]


def last_checkpoint(directory: Path) -> Path | None:
    """Return the latest complete checkpoint below ``directory``; None without one."""
    found = []
    for path in directory.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if not step.isdigit():
            continue
        fault = _find_fault(path)
        if fault:  # the process was killed, or the power failed, while it was written
            logger.warning("sft: skipping the incomplete checkpoint %s (%s)", path, fault)
        else:
            found.append((int(step), path))
    return max(found)[1] if found else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer's state: ``global_step``, ``max_steps``, ``log_history``."""
    remedy = "remove the checkpoint"
    return read_json_object(checkpoint / STATE_FILE, remedy, _StateFields)


def has_ended(state: Mapping[str, Any]) -> bool:
    """Return whether a state was saved after the last step, or when training stopped early."""
    control = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
    return state["global_step"] >= state["max_steps"] or bool(control.get("should_training_stop"))


def is_complete(checkpoint: Path) -> bool:
    """Return whether all files that a training resumes from are there and can be read."""
    return not _find_fault(checkpoint)


def _find_fault(checkpoint: Path) -> str:
    """Return which file of a checkpoint is missing or cannot be read, or an empty string."""
    missing = [name for name in FILES if not (checkpoint / name).is_file()]
    if missing:
        return f"no {', '.join(missing)}"
    try:
        read_state(checkpoint)
        read_adapter_config(checkpoint, "remove the checkpoint")
        read_headers(checkpoint)
    except InputError as error:
        return str(error)
    for path in (path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth")):
        if not is_zipfile(path):
            return f"{path}: not what torch.save writes"
    return ""
