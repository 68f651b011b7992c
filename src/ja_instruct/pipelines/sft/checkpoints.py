"""Checkpoints that a training may resume from: complete, of the same model, data and parameters.

transformers' ``get_last_checkpoint`` also returns a checkpoint that a killed process left half
written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.sft.parameters import SftParameters

# Parameters that do not change the adapter's weights
WITHOUT_EFFECT: dict[str, Any] = {
    "gpu": {"memory_gb", "disk_gb"},
    "checkpoint_dir": True,
    "resume": True,
    "model_card": True,
    "training": {"report_to", "save_total_limit", "divergence_nats", "auto_find_batch_size"},
}
STATE_FILE = "trainer_state.json"
# the state is written last
FILES = (
    STATE_FILE,
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
)


def fingerprint(model: ModelDirectory, train_dataset: Dataset, parameters: SftParameters) -> str:
    """Return 12 hexadecimal digits that identify weights, data and parameters of a training."""
    digest = hashlib.sha256()
    settings = parameters.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    weights = model.provenance.get("weights_sha256")
    digest.update(json.dumps([settings, weights], sort_keys=True).encode())
    for sample in train_dataset:
        for key in ("prompt", "completion"):
            text = str(sample[key]).encode("utf-8", "surrogatepass")
            digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:12]


def last_checkpoint(directory: Path) -> Path | None:
    """Return the latest complete checkpoint below ``directory``; None without one."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in directory.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and is_complete(path)
    ]
    return max(found)[1] if found else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer's state: ``global_step``, ``max_steps``, ``log_history``."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text("utf-8"))
    return state


def has_ended(state: Mapping[str, Any]) -> bool:
    """Return whether a state was saved after the last step, or when training stopped early."""
    control = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {})
    return state["global_step"] >= state["max_steps"] or bool(control.get("should_training_stop"))


def is_complete(checkpoint: Path) -> bool:
    """Return whether all files that a training resumes from are there."""
    if not all((checkpoint / name).is_file() for name in FILES):
        return False
    try:
        read_state(checkpoint)
    except ValueError:  # the process was killed while it wrote the file
        return False
    return True
