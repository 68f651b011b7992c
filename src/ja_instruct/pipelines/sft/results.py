"""The results of a training: figures, provenance, model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ja_instruct.models.cards import adapter_card

if TYPE_CHECKING:
    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.sft.parameters import SftParameters
    from ja_instruct.pipelines.sft.step_trainer import StepTrainer

Entry = dict[str, float]

# Left out of the adapter's directory: identical trainings write identical files.
_FIGURES_OF_ONE_RUN = {
    "train_seconds",
    "tokens_per_second",
    "peak_gpu_memory_gb",
    "resumed_from_step",
}
_SETTINGS_OF_ONE_RUN = {"checkpoint_dir": True, "resume": True, "model_card": True}


def mean_training_loss(history: Sequence[Entry]) -> float:
    """Return the mean loss over the optimizer's steps, in nats a token.

    An entry's loss is the mean of the steps since the entry before it. Without such an entry the
    trainer's own mean is returned.

    >>> mean_training_loss([{"step": 5, "loss": 3.0}, {"step": 6, "loss": 1.5}])
    2.75
    """
    total, before = 0.0, 0.0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    trainers = (entry["train_loss"] for entry in history if "train_loss" in entry)
    return total / before if before else next(trainers, math.nan)


def evaluation_losses(history: Sequence[Entry]) -> dict[str, float]:
    """Return the held-out losses before and after training, and the lowest after the first step.

    >>> evaluation_losses([{"step": 0, "eval_loss": 3.0}, {"step": 5, "eval_loss": 2.5}])
    {'eval_loss_before': 3.0, 'eval_loss_after': 2.5, 'eval_loss_best': 2.5}
    """
    losses = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not losses:
        return {}
    found = {"eval_loss_before": losses[0][1]} if losses[0][0] == 0 else {}
    trained = [loss for step, loss in losses if step]
    if trained:
        found |= {"eval_loss_after": trained[-1], "eval_loss_best": min(trained)}
    return {name: round(loss, 4) for name, loss in found.items()}


def summarize(
    trainer: StepTrainer,
    history: Sequence[Entry],
    counts: dict[str, int],
    eval_counts: dict[str, int],
    resumed_from_step: int,
) -> dict[str, Any]:
    """Return the main figures of a training."""
    tokens, seconds = trainer.meter.totals()
    model: Any = trainer.model
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    summary: dict[str, Any] = {
        "train_samples": counts["samples"],
        "eval_samples": eval_counts["samples"],
        "samples_cut": counts["cut"],
        "samples_dropped": counts["dropped_over_long"] + counts["dropped_nothing_to_learn"],
        "steps": trainer.state.global_step,
        "train_loss": round(mean_training_loss(history), 4),
        "train_seconds": round(seconds, 1),
        "train_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
        "trainable_millions": round(trainable / 1e6, 2),
        **evaluation_losses(history),
    }
    memory = [entry["gpu_memory_gb"] for entry in history if "gpu_memory_gb" in entry]
    if memory:
        summary["peak_gpu_memory_gb"] = round(max(memory), 2)
    if resumed_from_step:
        summary["resumed_from_step"] = resumed_from_step
    return summary


def provenance_of(
    model: ModelDirectory, parameters: SftParameters, summary: dict[str, Any]
) -> dict[str, Any]:
    """Return the provenance that is saved in the adapter's directory."""
    source = model.provenance.get("source", {})
    return {
        "stage": "sft",
        "base": {
            "model_id": model.model_id,
            "revision": model.revision,
            "weights_sha256": model.provenance.get("weights_sha256"),
            # of the 16-bit model, which the adapter may be merged into
            "source_files": source.get("files"),
            **({"multimodal": True} if source.get("multimodal") else {}),
        },
        # gpu.devices stays, as it multiplies the batch
        "settings": parameters.model_dump(
            mode="json", exclude={"gpu": {"memory_gb", "disk_gb"}, **_SETTINGS_OF_ONE_RUN}
        ),
        "metrics": _without_figures_of_one_run(summary),
        "model_card": parameters.model_card.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
    }


def _without_figures_of_one_run(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in _FIGURES_OF_ONE_RUN}


def write_card(
    provenance: dict[str, Any], parameters: SftParameters, metrics: dict[str, Any], prompt: str
) -> str:
    """Return the adapter's model card, with ``prompt`` as an example of a training prompt."""
    import torch

    on_gpu = parameters.device == "cuda" and torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if on_gpu else "CPU"
    metrics = {**metrics, "summary": _without_figures_of_one_run(metrics["summary"])}
    return adapter_card(provenance, metrics, parameters.model_card, prompt, hardware)
