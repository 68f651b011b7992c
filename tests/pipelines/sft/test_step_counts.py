"""Parameters that do not fit the number of steps or of held-out samples."""

import pytest
from datasets import Dataset

from ja_instruct.pipelines.sft.step_counts import StepCounts, held_out_count

BY_STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}


@pytest.fixture
def counts(base_parameters):
    """500 own pairs and the recipe's parameters, of which some are changed."""

    def make(train_samples=500, eval_samples=50, **changes):
        parameters = base_parameters(**{"eval_fraction": 0.1, "warmup_steps": 5, **changes})
        return StepCounts(train_samples, eval_samples, parameters)

    return make


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 32),
        ({"num_train_epochs": 1}, 16),
        ({"num_train_epochs": 0.5}, 8),
        ({"max_steps": 7}, 7),
        ({"backend": "peft", "gpu": {"devices": 2}}, 16),
        ({"per_device_train_batch_size": 3}, 42),
        ({"tokens_per_batch": 8192}, 32),
        ({"train_samples": 1}, 2),
    ],
    ids=str,
)
def test_steps(counts, changes, steps):
    assert counts(**changes).steps == steps


@pytest.mark.parametrize("changes", [{}, {"tokens_per_batch": 300}], ids=str)
@pytest.mark.parametrize("batch", [(2, 4), (3, 2), (5, 9)])
def test_steps_are_the_trainers(train_tiny, sft_parameters, samples, batch, changes):
    size, accumulation = batch
    changes = {
        **changes,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1.3,
        "max_steps": -1,
    }
    trained = train_tiny(**changes, held_out=Dataset.from_list([]), eval_fraction=0.0)
    expected = trained.metrics["summary"]["steps"]
    assert StepCounts(len(samples), 0, sft_parameters(**changes)).steps == expected


def test_recipes_parameters_fit_the_recipes_data(base_parameters):
    counts = StepCounts(40_000, 0, base_parameters())
    assert counts.warnings() == []
    assert counts.errors() == []


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 500},
            },
            "sft.training.lr_scheduler_kwargs.num_decay_steps = 500 after warmup_steps = 5, but "
            "training ends after 32 steps: the learning rate does not reach 0.0002; lower "
            "num_decay_steps",
        ),
        (
            {"warmup_steps": 300},
            "sft.training.warmup_steps = 300, but training ends after 32 steps: the learning rate "
            "reaches 2.1e-05 and not 0.0002; lower warmup_steps",
        ),
        (
            {"save_steps": 33},
            "sft.training.save_steps = 33, but training ends after 32 steps: an interrupted "
            "training begins again",
        ),
        (
            {"logging_steps": 40},
            "sft.training.logging_steps = 40, but training ends after 32 steps: there is no curve "
            "of the training loss",
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 100},
            "sft.training.eval_steps = 100, but training ends after 32 steps: there is no "
            "evaluation between its start and its end",
        ),
        (
            {**BY_STEPS, "eval_steps": 16, "save_steps": 16, "early_stopping_patience": 2},
            "sft.training.early_stopping_patience = 2 evaluations, one every 16 steps, but "
            "training ends after 32 steps: it cannot stop early",
        ),
        (
            {"eval_samples": 3},
            "sft.training.per_device_eval_batch_size = 4, but only 3 samples are held out: the "
            "evaluation loss is that of a few samples; raise eval_fraction (now 0.1)",
        ),
        (
            {"eval_samples": 7, "backend": "peft", "gpu": {"devices": 2}, "warmup_steps": 1},
            "sft.training.per_device_eval_batch_size = 4 on each of 2 devices, but only 7 samples "
            "are held out: the evaluation loss is that of a few samples; raise eval_fraction (now "
            "0.1)",
        ),
        (
            {"eval_samples": 0},
            "sft.eval_fraction = 0.1 holds out no samples: nothing is evaluated, and "
            "training.eval_strategy = 'no' has no effect",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_warnings_have_both_numbers(counts, changes, warning):
    fits = {"save_steps": 10}
    assert counts(**fits).warnings() == []
    found = counts(**{**fits, **changes})
    assert found.warnings() == [warning]
    assert found.errors() == []


def test_a_constant_rate_has_no_warmup(counts):
    found = counts(save_steps=30, warmup_steps=300, lr_scheduler_type="constant")
    assert found.warnings() == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"eval_samples": 0, "early_stopping_patience": 2, "eval_steps": 10, "save_steps": 10},
            "sft.training.early_stopping_patience = 2 needs held-out samples, but "
            "sft.eval_fraction = 0.1 holds out none; raise it",
        ),
        (
            {"early_stopping_patience": 2, "eval_steps": 100, "save_steps": 100},
            "sft.training.early_stopping_patience = 2 needs evaluations, but training ends after "
            "32 steps and the first is after eval_steps = 100; lower eval_steps",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 100},
            "sft.training.lr_scheduler_type = 'reduce_lr_on_plateau' needs evaluations, but "
            "training ends after 32 steps and the first is after eval_steps = 100; lower eval_st"
            "eps",
        ),
    ],
    ids=["none held out", "none before the end", "schedule"],
)
def test_errors(counts, changes, error):
    assert counts(**BY_STEPS, **changes).errors() == [error]


def test_trains_when_too_few_pairs_are_held_out(train_tiny):
    trained = train_tiny(held_out=Dataset.from_list([]), eval_strategy="steps", eval_steps=1)
    assert trained.metrics["summary"]["steps"] == 4
    assert "eval_loss_after" not in trained.metrics["summary"]


@pytest.mark.parametrize(("pairs", "fraction", "expected"), [(49, 0.02, 0), (50, 0.02, 1)])
def test_held_out_count(pairs, fraction, expected):
    assert held_out_count(pairs, fraction) == expected
