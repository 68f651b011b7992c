import json
import math
from types import SimpleNamespace

import pytest
import torch

from ja_instruct.datasets import AdapterDataset
from ja_instruct.pipelines.sft.results import (
    evaluation_losses,
    mean_training_loss,
    provenance_of,
    summarize,
)

COUNTS = {
    "samples": 21,
    "tokens": 2100,
    "cut": 3,
    "dropped_over_long": 1,
    "dropped_nothing_to_learn": 4,
}
HISTORY = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 5, "loss": 2.5, "gpu_memory_gb": 20.123},
    {"step": 5, "eval_loss": 2.1234567},
    {"step": 10, "loss": 2.0, "gpu_memory_gb": 21.987},
    {"step": 10, "eval_loss": 2.25},
    {"step": 10, "train_loss": 7.0, "train_runtime": 99.0},
]


@pytest.fixture
def trainer():
    """What ``summarize`` reads of a trainer."""
    model = torch.nn.Linear(1000, 30)
    model.bias.requires_grad_(False)
    meter = SimpleNamespace(totals=lambda: (4200, 8.04))
    return SimpleNamespace(model=model, state=SimpleNamespace(global_step=10), meter=meter)


def test_summary(trainer):
    summary = summarize(trainer, HISTORY, COUNTS, {"samples": 5}, 0)
    assert summary == {
        "train_samples": 21,
        "eval_samples": 5,
        "samples_cut": 3,
        "samples_dropped": 5,
        "steps": 10,
        "train_loss": 2.25,
        "train_seconds": 8.0,
        "train_tokens": 4200,
        "tokens_per_second": 522.4,
        "trainable_millions": 0.03,
        "eval_loss_before": 3.0,
        "eval_loss_after": 2.25,
        "eval_loss_best": 2.1235,
        "peak_gpu_memory_gb": 21.99,
    }
    resumed = summarize(trainer, HISTORY, COUNTS, {"samples": 5}, 5)
    assert resumed == {**summary, "resumed_from_step": 5}


def test_summary_without_held_out_samples_and_gpu(trainer):
    trainer.meter.totals = lambda: (0, 0.0)
    summary = summarize(trainer, [], COUNTS, {"samples": 0}, 0)
    assert math.isnan(summary.pop("train_loss"))
    assert summary["tokens_per_second"] == 0
    assert {"eval_loss_before", "eval_loss_after", "peak_gpu_memory_gb"}.isdisjoint(summary)


def test_losses_of_a_training_never_evaluated_before_it():
    history = [{"step": 4, "eval_loss": 2.0}, {"step": 8, "eval_loss": 2.5}]
    assert evaluation_losses(history) == {"eval_loss_after": 2.5, "eval_loss_best": 2.0}


def test_provenance_has_the_settings(tiny_nf4, sft_parameters):
    parameters = sft_parameters(learning_rate=0.02)
    provenance = provenance_of(tiny_nf4, parameters, {"steps": 4})
    assert provenance["metrics"] == {"steps": 4}
    settings = provenance["settings"]
    assert settings["training"]["learning_rate"] == 0.02
    assert settings["gpu"] == {"devices": None}
    # data and licenses do not change the weights
    assert "model_card" not in settings
    others = {"model_card", "checkpoint_dir", "resume"}
    assert settings.keys() == parameters.model_dump().keys() - others
    assert set(provenance["versions"]) == {"torch", "transformers", "peft", "trl"}


def test_card_beside_the_adapter_has_the_figures(train_tiny, samples, tmp_path):
    trained = train_tiny(tokens_per_batch=300, packing=True)
    dataset = AdapterDataset(filepath=tmp_path / "adapter")
    dataset.save(trained.artifact)
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    summary = trained.metrics["summary"]
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    rows = {row[0]: row[-1] for row in cells}
    for label, name in (
        ("training loss, mean over the run (nats a token)", "train_loss"),
        ("held-out loss before training (nats a token)", "eval_loss_before"),
        ("held-out loss after training (nats a token)", "eval_loss_after"),
        ("tokens trained on, over all epochs", "train_tokens"),
    ):
        assert float(rows[label]) == summary[name]
    for text in ("tiny-random-gemma2", "tokens_per_batch", "gemma", samples[0]["prompt"]):
        assert text in card
    provenance = json.loads((tmp_path / "adapter" / "ja_instruct.json").read_text("utf-8"))
    assert provenance["metrics"].items() <= summary.items()
    # of this run alone
    assert summary.keys() - provenance["metrics"].keys() == {"train_seconds", "tokens_per_second"}
    assert dataset.load().provenance["settings"]["training"]["packing"] is True


def test_mean_loss_of_a_training_too_short_for_an_entry_is_the_trainers():
    assert mean_training_loss([{"step": 0, "eval_loss": 9.0}, {"step": 3, "train_loss": 7.0}]) == 7
