import logging
from types import SimpleNamespace

import pytest
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from ja_instruct.pipelines.sft.callbacks import LossInProgressBar, LossWatch
from ja_instruct.pipelines.sft.neftune import PackedNeftune
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
def test_several_processes_keep_their_batches(caplog, was_on):
    fitted = fit_to_processes(arguments(world_size=2, auto_find_batch_size=was_on))
    assert fitted == arguments(
        world_size=2, ddp_find_unused_parameters=False, auto_find_batch_size=False
    )
    assert ("auto_find_batch_size is off" in caplog.text) is was_on


def callbacks(trainer, kind):
    return [one for one in trainer.callback_handler.callbacks if isinstance(one, kind)]


class TestBuiltTrainer:
    def test_back_off_is_not_that_of_transformers(self, make_trainer):
        for asked in (True, False):
            trainer = make_trainer(auto_find_batch_size=asked)
            assert trainer.backs_off is asked
            assert trainer.args.auto_find_batch_size is False

    def test_watches_the_loss(self, make_trainer):
        for limit in (2.5, None):  # a loss that is not finite stops it anyway
            (watch,) = callbacks(make_trainer(divergence_nats=limit), LossWatch)
            assert watch._divergence_nats == limit

    def test_shows_one_progress_bar(self, make_trainer):
        bars = callbacks(make_trainer(), ProgressCallback | PrinterCallback)
        assert [type(bar) for bar in bars] == [LossInProgressBar]

    def test_stops_early(self, make_trainer):
        strategies = {"eval_strategy": "epoch", "save_strategy": "epoch"}
        assert callbacks(make_trainer(**strategies), EarlyStoppingCallback) == []
        early = {"early_stopping_patience": 3, "early_stopping_threshold": 0.25}
        (stopping,) = callbacks(make_trainer(**strategies, **early), EarlyStoppingCallback)
        assert stopping.early_stopping_patience == 3
        assert stopping.early_stopping_threshold == 0.25

    def test_packed_samples_use_packed_neftune(self, make_trainer):
        packed = {"tokens_per_batch": 300, "packing": True}
        trainer = make_trainer(**packed, neftune_noise_alpha=5.0)
        assert isinstance(trainer.neftune, PackedNeftune)
        assert trainer.args.neftune_noise_alpha is None
        assert make_trainer(**packed).neftune is None
        for padded in ({}, {"tokens_per_batch": 300}):
            trainer = make_trainer(**padded, neftune_noise_alpha=5.0)
            assert trainer.neftune is None
            assert trainer.args.neftune_noise_alpha == 5.0

    def test_separation_is_logged(self, make_trainer, caplog):
        with caplog.at_level(logging.INFO):
            make_trainer(tokens_per_batch=300, packing=True)
        assert "sft: packed samples do not mix (difference " in caplog.text
