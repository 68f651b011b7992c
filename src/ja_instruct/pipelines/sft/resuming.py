"""Which checkpoint a training resumes from, and why it resumes from no other."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.checkpoints import (
    STATE_FILE,
    fingerprint,
    has_ended,
    last_checkpoint,
    read_state,
)
from ja_instruct.tables.atomic import replacing
from ja_instruct.tables.json_objects import JSONObject, read_json_object
from ja_instruct.tables.json_text import as_json
from kedro_freshness.recipes import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

# What describe_training returned, beside the checkpoints
TRAINING_FILE = "training.json"
# Number of other trainings that are logged, and of differences in one message
LISTED = 3


class _TrainingFields(JSONObject):
    settings: dict[str, Any]
    quantized_model: dict[str, str] | None
    train_dataset: dict[str, Any]


def find_checkpoint(root: Path, training: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Return the checkpoint that a training resumes from, or None; log what is there and why.

    Args:
        root: ``checkpoint_dir``, with a folder for each training.
        training: What ``describe_training`` returned.
        resume: Whether a checkpoint of this training is used.
    """
    directory = root / fingerprint(training)
    own = last_checkpoint(directory)
    if own is not None:
        _log_own(own, resume=resume)
        return own if resume else None
    newest_first = sorted(
        root.glob("*/checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    folders = list(dict.fromkeys(path.parent for path in newest_first))
    found = [one for one in map(last_checkpoint, folders[:LISTED]) if one is not None]
    for checkpoint in found:
        reason = _why_not(checkpoint.parent, training)
        logger.info("sft: not resuming from %s: %s", _summary(checkpoint), reason)
    if not found:
        kind = "complete checkpoint" if folders else "checkpoints"
        logger.info("sft: no %s in %s, so training starts at step 0", kind, root)
    if len(folders) > LISTED:
        logger.info("sft: %d older trainings in %s differ too", len(folders) - LISTED, root)
    return None


def record_training(directory: Path, training: Mapping[str, Any]) -> None:
    """Write what the checkpoints in a directory are of, for the messages of later trainings."""
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / TRAINING_FILE) as new:
        new.write_text(as_json(training), "utf-8")


def _log_own(checkpoint: Path, *, resume: bool) -> None:
    if not resume:
        logger.info("sft: not resuming from %s: sft.resume is false", _summary(checkpoint))
    elif has_ended(read_state(checkpoint)):
        logger.info(
            "sft: this training has finished; its last checkpoint is used, %s. Remove %s, or set "
            "sft.resume to false, to train again",
            _summary(checkpoint),
            checkpoint.parent,
        )
    else:
        logger.info("sft: resuming from %s", _summary(checkpoint))


def _summary(checkpoint: Path) -> str:
    state = read_state(checkpoint)
    saved = time.localtime((checkpoint / STATE_FILE).stat().st_mtime)
    count = sum(path.is_dir() for path in checkpoint.parent.glob("checkpoint-*"))
    return (
        f"step {state['global_step']} of {state['max_steps']}, {checkpoint} (saved "
        f"{time.strftime('%Y-%m-%d %H:%M', saved)}, the last of {count})"
    )


def _why_not(folder: Path, training: Mapping[str, Any]) -> str:
    """Return what differs between the training of a folder and this one."""
    path = folder / TRAINING_FILE
    try:
        other = read_json_object(path, "remove its folder", _TrainingFields)
    except InputError:
        return f"its parameters are not known, as {path.name} is missing or damaged"
    differences = [
        *_differences(other["settings"], training["settings"]),
        *(
            f"{name} has changed"
            for name in ("quantized_model", "train_dataset")
            if other[name] != training[name]
        ),
    ]
    shown = differences[:LISTED]
    more = len(differences) - len(shown)
    listed = ", ".join([*shown, *([f"{more} more"] if more else [])])
    return listed or "an earlier version of this project made it"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(flatten(old, "sft")), dict(flatten(new, "sft"))
    for key in sorted({*before, *after}):
        if key not in before or key not in after or before[key] != after[key]:
            yield f"{key} was {before.get(key, 'not set')} and is {after.get(key, 'not set')}"
