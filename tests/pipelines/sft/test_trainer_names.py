"""The names are those of the installed libraries."""

import contextlib
import inspect

import pytest
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ja_instruct.pipelines.sft import trainer_names
from ja_instruct.pipelines.sft.trainer_names import (
    OPTIMIZERS,
    REPORTERS,
    SCHEDULES,
    UNSUPPORTED_OPTIMIZERS,
    check_schedule,
    missing_packages,
    require_optimizer,
)

# set by the trainer, or printed
OTHER_ARGUMENTS = {
    "self",
    "optimizer",
    "num_warmup_steps",
    "num_training_steps",
    "last_epoch",
    "kwargs",
    "verbose",
}


def test_optimizers_are_those_of_transformers():
    names = {one.value for one in OptimizerNames}
    unsupported = {name for name in names if name.startswith(tuple(UNSUPPORTED_OPTIMIZERS))}
    assert {*OPTIMIZERS} == names - unsupported
    assert all(any(one.startswith(part) for one in names) for part in UNSUPPORTED_OPTIMIZERS)
    for name in unsupported:
        with pytest.raises(ValueError, match="cannot be used: it "):
            require_optimizer(name)
    for name in OPTIMIZERS:
        require_optimizer(name)


def test_schedules_and_their_arguments_are_those_of_transformers():
    assert {*SCHEDULES} == {one.value for one in SchedulerType}
    # transformers does not pass on arguments of these two
    classes = {
        "reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "greedy": GreedyLR,
    }
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        found = inspect.signature(classes.get(kind.value, function)).parameters
        assert {*SCHEDULES[kind.value]} == {*found} - OTHER_ARGUMENTS, kind


def test_reporters_are_those_of_transformers():
    # transformers adds kubeflow by itself, inside of one
    assert {*REPORTERS} == {*INTEGRATION_TO_CALLBACK} - {"kubeflow"}


@pytest.mark.parametrize(
    ("name", "arguments", "is_possible"),
    [
        ("cosine_with_min_lr", {}, False),
        ("cosine_with_min_lr", {"min_lr": 1e-5}, True),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}, True),
        ("warmup_stable_decay", {}, False),
        ("warmup_stable_decay", {"num_decay_steps": 2}, True),
        ("polynomial", {"lr_end": 2e-3}, False),
        ("polynomial", {"lr_end": 1e-5, "power": 2}, True),
        ("cosine", {"cycles": 2}, False),
        ("cosine", {"num_cycles": 2}, True),
    ],
)
def test_what_is_refused_is_what_transformers_refuses(name, arguments, is_possible):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    try:
        get_scheduler(name, optimizer, 1, 8, arguments)
    except (TypeError, ValueError):
        assert not is_possible
        with pytest.raises(ValueError, match=r"lr_scheduler_(type|kwargs)"):
            check_schedule(name, arguments, 1e-3)
    else:
        assert is_possible
        check_schedule(name, arguments, 1e-3)


def make_rates(name, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, 2, 8, arguments)
    return [1e-3 * scheduler.lr_lambdas[0](step) for step in range(9)]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("inverse_sqrt", {"timescale": 0}, {"timescale": 1}),
        ("inverse_sqrt", {"timescale": -3}, {"timescale": 30}),
        ("polynomial", {"power": -1}, {"power": 0.5}),
        ("cosine_with_min_lr", {"min_lr": 5}, {"min_lr": 1e-4}),
        ("cosine_with_min_lr", {"min_lr_rate": 2}, {"min_lr_rate": 0.0}),
        ("cosine_with_min_lr", {"min_lr": 1e-4, "min_lr_rate": 0.1}, {"min_lr": 0}),
        (
            "cosine_warmup_with_min_lr",
            {"min_lr": 0, "warmup_lr_rate": 9},
            {"min_lr": 0, "warmup_lr_rate": 0.5},
        ),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 2, "min_lr_ratio": 3},
            {"num_decay_steps": 2, "min_lr_ratio": 0.1},
        ),
    ],
)
def test_figures_with_which_the_rate_cannot_be_computed(name, wrong, right):
    """Division by zero in the middle of a training, or rates above learning_rate."""
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs"):
        check_schedule(name, wrong, 1e-3)
    with contextlib.suppress(ArithmeticError, TypeError, ValueError):
        assert max(make_rates(name, wrong)) > 1e-3
    check_schedule(name, right, 1e-3)
    assert 0 <= max(make_rates(name, right)) <= 1e-3


def test_missing_packages_by_their_names_at_pypi(monkeypatch):
    assert missing_packages(["adamw_8bit", "mlflow"]) == {}
    monkeypatch.setattr(trainer_names, "find_spec", lambda name: None)
    missing = {"stable_adamw": "torch-optimi", "comet_ml": "comet-ml"}
    assert missing_packages([*missing, "sgd"]) == missing


def test_trains_with_a_schedule_that_has_arguments(train_tiny):
    trained = train_tiny(
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.004}
    )
    rates = trained.curve("learning_rate")
    assert min(rates.values()) >= 0.004
    assert rates[1] == 0.01
