import logging
from types import SimpleNamespace

import pytest

from ja_instruct.pipelines.sft.training import fit_to_processes


def arguments(**changes):
    settings = {
        "world_size": 1,
        "ddp_find_unused_parameters": None,
        "auto_find_batch_size": True,
        "per_device_train_batch_size": 4,
    }
    return SimpleNamespace(**{**settings, **changes})


def test_one_process_changes_nothing():
    assert fit_to_processes(arguments()) == arguments()


@pytest.mark.parametrize("was_on", [True, False])
def test_several_processes_keep_their_batches_and_search_nothing(caplog, was_on):
    with caplog.at_level(logging.WARNING):
        fitted = fit_to_processes(arguments(world_size=2, auto_find_batch_size=was_on))
    assert fitted == arguments(
        world_size=2, ddp_find_unused_parameters=False, auto_find_batch_size=False
    )
    assert ("auto_find_batch_size is off" in caplog.text) is was_on
