import math
from types import SimpleNamespace

import pytest
import torch

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.callbacks import LossInProgressBar, LossWatch
from ja_instruct.pipelines.sft.checkpoints import last_checkpoint
from ja_instruct.pipelines.sft.cpu_trainer import CpuStepTrainer

ARGUMENTS = SimpleNamespace(learning_rate=2e-4, warmup_steps=300, output_dir="checkpoints/1a2b")


def follow(watch, *entries):
    for step, logs in enumerate(entries, 1):
        logs = {"loss": logs} if isinstance(logs, float) else logs
        watch.on_log(ARGUMENTS, SimpleNamespace(global_step=5 * step), None, logs=logs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_value_that_is_not_finite_stops(key, value, limit):
    with pytest.raises(InputError) as caught:
        follow(LossWatch(limit), 2.0, {"loss": 2.0, key: value})
    for text in (
        "stopped at step 10",
        f"{key} is {value}",
        "sft.training.learning_rate (now 0.0002)",
        "sft.training.warmup_steps (now 300)",
        "checkpoints/1a2b",
    ):
        assert text in str(caught.value)


def test_ten_entries_must_be_above_the_lowest_ten():
    falling = [3.0 - 0.1 * step for step in range(15)]
    lowest = sum(falling[-10:]) / 10
    follow(LossWatch(1.0), *falling, *[lowest + 0.99] * 30)
    with pytest.raises(InputError) as caught:
        follow(LossWatch(1.0), *falling, *[lowest + 1.01] * 10)
    for text in (
        "stopped at step 125",  # the 25th entry: all of the last ten are above
        f"{lowest + 1.01:.2f} nats a token",
        f"{lowest:.2f} at its lowest",
        "sft.training.divergence_nats (now 1;",
        "checkpoints/1a2b",
    ):
        assert text in str(caught.value)


def test_a_slow_rise_is_measured_from_the_lowest():
    with pytest.raises(InputError, match="diverges"):
        follow(LossWatch(1.0), *[2.0 + 0.05 * step for step in range(40)])


def test_losses_before_a_checkpoint_count():
    watch = LossWatch(1.0)
    history = [{"loss": 2.0}, {"eval_loss": 90.0}] * 10
    watch.on_train_begin(ARGUMENTS, SimpleNamespace(log_history=history), None)
    follow(watch, *[3.0] * 9)
    with pytest.raises(InputError, match=r"2\.00 at its lowest"):
        follow(watch, *[3.2] * 10)


@pytest.mark.parametrize(
    ("limit", "entries"),
    [
        (1.0, [*[2.0] * 10, 11.0, *[2.0] * 10]),
        # fewer than ten have no mean
        (0.5, [float(loss) for loss in range(9)]),
        (None, [float(loss) for loss in range(40)]),
        (1.0, [{"eval_loss": 90.0}, {"train_runtime": 1.0}, {}, None]),
    ],
    ids=["single high loss", "beginning", "no limit", "other entries"],
)
def test_training_continues(limit, entries):
    follow(LossWatch(limit), *entries)


class TestInTraining:
    """Checkpoints saved before are kept."""

    def test_weight_that_is_not_a_number(self, train_tiny, sft_parameters, tmp_path, monkeypatch):
        compute = CpuStepTrainer._compute_piece

        def spoil(self, model, piece, count):
            if self.state.global_step == 2:
                with torch.no_grad():
                    next(one for one in model.parameters() if one.requires_grad).fill_(math.nan)
            return compute(self, model, piece, count)

        monkeypatch.setattr(CpuStepTrainer, "_compute_piece", spoil)
        with pytest.raises(InputError, match=r"step 3: loss is nan.*learning_rate \(now 0\.01\)"):
            train_tiny(save_strategy="steps", save_steps=1, save_total_limit=9)
        (directory,) = (tmp_path / "checkpoints").iterdir()
        assert last_checkpoint(directory).name == "checkpoint-2"

    def test_loss_that_rises(self, train_tiny, monkeypatch):
        compute = CpuStepTrainer._compute_piece

        def rise(self, model, piece, count):
            return compute(self, model, piece, count) + self.state.global_step

        monkeypatch.setattr(CpuStepTrainer, "_compute_piece", rise)
        changes = {"max_steps": 12, "learning_rate": 1e-9}
        with pytest.raises(InputError, match="at step 11: the loss diverges"):
            train_tiny(**changes, divergence_nats=0.5)
        trained = train_tiny(**changes, divergence_nats=None)
        assert trained.metrics["summary"]["steps"] == 12


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({"loss": 2.5, "grad_norm": 1.0}, [{"loss": 2.5}]),
        ({"train_runtime": 1.0}, []),
        ({}, []),
        (None, []),
    ],
)
def test_progress_bar_shows_only_the_losses(logs, expected):
    shown = []
    bar = LossInProgressBar()
    bar.training_bar = SimpleNamespace(set_postfix=shown.append)
    bar.on_log(None, SimpleNamespace(is_world_process_zero=True), None, logs=logs)
    assert shown == expected
