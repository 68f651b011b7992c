"""A resumed training has the result of one without interruption."""

import dataclasses
import json
import logging
import signal
from pathlib import Path

import pytest

from ja_instruct.datasets import AdapterDataset
from ja_instruct.pipelines.sft.checkpoints import STATE_FILE, last_checkpoint
from ja_instruct.pipelines.sft.cpu_trainer import CpuStepTrainer

# The second epoch begins after the third step
SAVED = {
    "max_steps": 5,
    "neftune_noise_alpha": 5.0,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 9,
}
EARLY = {
    **SAVED,
    "learning_rate": 0.05,
    "max_steps": 30,
    "eval_steps": 1,
    "save_steps": 1,
    "early_stopping_patience": 2,
}
ARRANGEMENTS = {
    "padded": {},
    "grouped": {"tokens_per_batch": 300},
    "packed": {"tokens_per_batch": 300, "packing": True},
}
EXACT = ("loss", "grad_norm", "learning_rate", "eval_loss", "tokens", "mean_token_accuracy")
CLOCKED = {
    "seconds",
    "tokens_per_second",
    *(
        f"{part}_{name}"
        for part in ("train", "eval")
        for name in ("runtime", "samples_per_second", "steps_per_second")
    ),
}
KILLED = Path(__file__).parents[2] / "training_to_be_killed.py"


class PowerCutError(Exception):
    pass


@pytest.fixture
def interrupted(train_tiny, monkeypatch):
    """A function that trains for ``step`` steps."""
    compute = CpuStepTrainer.training_step

    def run(step, **changes):
        def training_step(self, *args):
            if self.state.global_step == step:
                raise PowerCutError
            return compute(self, *args)

        with monkeypatch.context() as patch, pytest.raises(PowerCutError):
            patch.setattr(CpuStepTrainer, "training_step", training_step)
            train_tiny(**changes)

    return run


@pytest.fixture
def untouched(train_tiny, tmp_path):
    """A function that trains without interruption, with checkpoints elsewhere."""
    return lambda **changes: train_tiny(checkpoint_dir=str(tmp_path / "untouched"), **changes)


def without_seconds(history):
    assert all(entry[key] > 0 for entry in history for key in CLOCKED & entry.keys())
    return [
        {key: value if key not in CLOCKED else "seconds" for key, value in entry.items()}
        for entry in history
    ]


def assert_same(resumed, expected, step):
    assert without_seconds(resumed.history) == without_seconds(expected.history)
    (ends,) = [entry for entry in expected.history if "train_loss" in entry]
    assert ends["step"] == expected.metrics["summary"]["steps"]
    for key in EXACT:
        assert expected.curve(key)
    for name, weight in expected.weights.items():
        assert resumed.weights[name].equal(weight), name
        # it was trained
        assert weight.abs().max() > 1e-3
    theirs = dict(expected.metrics["summary"])
    ours = dict(resumed.metrics["summary"])
    assert ours.pop("resumed_from_step", 0) == step
    for clocked in ("train_seconds", "tokens_per_second"):
        assert (ours.pop(clocked) > 0) is (theirs.pop(clocked) > 0) is True
    assert ours == theirs
    seconds = list(resumed.curve("seconds").values())
    assert seconds == sorted(seconds)


def only_folder(tmp_path):
    (folder,) = (tmp_path / "checkpoints").iterdir()
    return folder


class TestInterrupted:
    @pytest.mark.parametrize(
        ("arrangement", "changes", "stopped_at", "resumed_from"),
        [
            ("padded", {}, 3, 2),
            ("packed", {}, 3, 2),
            # in the second epoch
            ("padded", {"max_steps": 6}, 5, 4),
            ("packed", {"max_steps": 6}, 5, 4),
            # between the two
            ("packed", {"save_steps": 3}, 4, 3),
            ("grouped", {"save_strategy": "epoch", "eval_strategy": "epoch"}, 4, 3),
            # before there is any checkpoint
            ("padded", {}, 1, 0),
        ],
    )
    def test_resumed_training_equals_an_uninterrupted_one(
        self, interrupted, train_tiny, untouched, arrangement, changes, stopped_at, resumed_from
    ):
        changes = {**SAVED, **ARRANGEMENTS[arrangement], **changes}
        interrupted(stopped_at, **changes)
        assert_same(train_tiny(**changes), untouched(**changes), resumed_from)

    @pytest.mark.parametrize(
        "changes",
        [
            # between two entries of the log
            {"logging_steps": 3, "save_steps": 1},
            # the second epoch, of three, begins after the third step
            {"logging_steps": 2, "save_steps": 1, "eval_strategy": "epoch", "max_steps": 7},
            {
                "logging_steps": 2,
                "save_steps": 1,
                "eval_strategy": "no",
                "packing": True,
                "tokens_per_batch": 300,
            },
        ],
        ids=str,
    )
    def test_stopped_at_any_step(self, interrupted, train_tiny, untouched, tmp_path, changes):
        changes = {**SAVED, **changes}
        expected = untouched(**changes)
        steps = changes["max_steps"]
        for step in range(1, steps):
            mine = {**changes, "checkpoint_dir": str(tmp_path / str(step))}
            interrupted(step, **mine)
            resumed = train_tiny(**mine)
            assert_same(resumed, expected, step)
            # the training has finished
            assert_same(train_tiny(**mine), expected, steps)

    def test_more_than_once(self, interrupted, train_tiny, untouched):
        changes = {**SAVED, "save_steps": 1, "max_steps": 4}
        for stopped_at in (1, 3):
            interrupted(stopped_at, **changes)
        assert_same(train_tiny(**changes), untouched(**changes), 3)

    def test_noise_is_random(self, train_tiny, untouched):
        """Otherwise the equalities above would not test that its state is restored."""
        changes = {**SAVED, "save_strategy": "no", "max_steps": 1}
        without = train_tiny(**{**changes, "neftune_noise_alpha": None}).curve("loss")
        assert without != untouched(**changes).curve("loss")

    @pytest.mark.parametrize("damage", ["missing", "truncated"])
    def test_incomplete_checkpoint_is_skipped(
        self, interrupted, train_tiny, tmp_path, caplog, damage
    ):
        interrupted(4, **SAVED)
        state = only_folder(tmp_path) / "checkpoint-4" / STATE_FILE
        if damage == "missing":
            state.unlink()
        else:
            state.write_text(state.read_text("utf-8")[:200], "utf-8")
        with caplog.at_level(logging.INFO):
            assert train_tiny(**SAVED).metrics["summary"]["resumed_from_step"] == 2
        checkpoint = only_folder(tmp_path) / "checkpoint-2"
        assert f"sft: resuming from step 2 of 5, {checkpoint} (saved" in caplog.text
        assert last_checkpoint(only_folder(tmp_path)).name == "checkpoint-5"

    def test_moved_folder_is_found(self, interrupted, train_tiny, tmp_path):
        interrupted(3, **SAVED)
        moved = (tmp_path / "checkpoints").rename(tmp_path / "moved")
        trained = train_tiny(**SAVED, checkpoint_dir=str(moved))
        assert trained.metrics["summary"]["resumed_from_step"] == 2

    @pytest.mark.parametrize("change", ["learning_rate", "data", "model", "resume"])
    def test_another_training_starts_from_scratch(
        self, interrupted, train_tiny, samples, tiny_nf4, tmp_path, caplog, change
    ):
        interrupted(3, **SAVED)
        provenance = {**tiny_nf4.provenance, "weights_sha256": {"model.safetensors": "0" * 64}}
        changes = {
            "learning_rate": 0.011,
            "data": samples.select(range(20)),
            "model": dataclasses.replace(tiny_nf4, provenance=provenance),
            "resume": False,
        }
        reasons = {
            "learning_rate": "sft.training.learning_rate was 0.01 and is 0.011",
            "data": "train_dataset has changed",
            "model": "quantized_model has changed",
            "resume": "sft.resume is false",
        }
        with caplog.at_level(logging.INFO):
            trained = train_tiny(**SAVED, **{change: changes[change]})
        last = f"step 2 of 5, {tmp_path}/checkpoints/"
        (message,) = [one for one in caplog.messages if "not resuming" in one]
        assert last in message
        assert message.endswith(f": {reasons[change]}")
        assert "resumed_from_step" not in trained.metrics["summary"]
        assert list(trained.curve("loss")) == [1, 2, 3, 4, 5]
        folders = len(list((tmp_path / "checkpoints").iterdir()))
        assert folders == (1 if change == "resume" else 2)


@pytest.fixture
def train_nothing(train_tiny, monkeypatch):
    """``train_tiny``, which fails if it computes a step."""

    def run(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(CpuStepTrainer, "training_step", lambda *_: pytest.fail("trains"))
            return train_tiny(**changes)

    return run


class TestFinished:
    @pytest.mark.parametrize("changes", [{}, {"eval_steps": 5}, {"eval_strategy": "no"}], ids=str)
    def test_last_checkpoint_is_used(self, train_tiny, train_nothing, caplog, tmp_path, changes):
        first = train_tiny(**{**SAVED, **changes})
        with caplog.at_level(logging.INFO):
            again = train_nothing(**{**SAVED, **changes})
        assert_same(again, first, 5)
        assert "training has finished; its last checkpoint is used, step 5 of 5, " in caplog.text
        assert f"Remove {only_folder(tmp_path)}" in caplog.text
        assert "sft.resume to false" in caplog.text

    @pytest.mark.parametrize("changes", [{"resume": False}, {"save_strategy": "no"}], ids=str)
    def test_otherwise_it_is_trained_again(self, train_tiny, changes):
        changes = {**SAVED, **changes}
        assert_same(train_tiny(**changes), train_tiny(**changes), 0)


@pytest.fixture(scope="session")
def unlike(samples):
    """Held-out samples whose loss rises in the end."""
    return samples.from_list(
        [
            {"prompt": "秋の", "completion": "夜長に本を読む。" * times, "source": "filtered_pairs"}
            for times in (1, 3, 2)
        ]
    )


class TestStoppedEarly:
    @pytest.fixture
    def loss_of(self, make_trainer, unlike):
        """A function that computes the held-out loss of a model."""

        def compute(model):
            from ja_instruct.pipelines.sft.samples import encode_dataset

            trainer = make_trainer()
            trainer.model = trainer.model_wrapped = model
            encoded, _ = encode_dataset(unlike, trainer._tokenizer, 256, False)
            return trainer.evaluate(encoded)["eval_loss"]

        return compute

    def test_adapter_is_the_best_one(self, train_tiny, unlike, loss_of):
        trained = train_tiny(**EARLY, held_out=unlike)
        summary = trained.metrics["summary"]
        between = [entry for entry in trained.history if "eval_loss" in entry][:-1]
        losses = {entry["step"]: entry["eval_loss"] for entry in between}
        best = min(losses, key=losses.get)
        assert 0 < best < summary["steps"] == best + 2 < 30
        assert summary["eval_loss_best"] == round(losses[best], 4)
        # the last evaluation is of what is returned
        assert summary["eval_loss_after"] == summary["eval_loss_best"]
        assert loss_of(trained.artifact.model) == pytest.approx(losses[best], rel=1e-6)
        assert losses[summary["steps"]] > losses[best] + 0.01

    def test_threshold_stops_earlier(self, train_tiny, unlike):
        changes = {**EARLY, "early_stopping_threshold": 100.0}
        assert train_tiny(**changes, held_out=unlike).metrics["summary"]["steps"] <= 3

    def test_more_patience_trains_longer(self, train_tiny, unlike):
        def steps(patience):
            changes = {**EARLY, "early_stopping_patience": patience}
            return train_tiny(**changes, held_out=unlike).metrics["summary"]["steps"]

        assert steps(1) < steps(3)

    def test_patience_survives_an_interruption(self, interrupted, train_tiny, untouched, unlike):
        expected = untouched(**EARLY, held_out=unlike)
        steps = expected.metrics["summary"]["steps"]
        interrupted(steps - 1, **EARLY, held_out=unlike)
        assert_same(train_tiny(**EARLY, held_out=unlike), expected, steps - 1)

    @pytest.mark.parametrize("moved", [False, True])
    def test_stopped_training_is_not_resumed(
        self, train_tiny, train_nothing, unlike, tmp_path, moved
    ):
        first = train_tiny(**EARLY, held_out=unlike)
        directory = tmp_path / "checkpoints"
        if moved:
            directory = directory.rename(tmp_path / "moved")
        again = train_nothing(**EARLY, held_out=unlike, checkpoint_dir=str(directory))
        assert_same(again, first, first.metrics["summary"]["steps"])


@pytest.fixture
def train_in_process(sft_parameters, samples, tiny_nf4, run_python, tmp_path):
    """A function that trains in a process of its own."""

    def run(changes, seed=0, status=0, **job):
        path = tmp_path / "job.json"
        content = {
            "parameters": sft_parameters(**changes).model_dump(mode="json"),
            "samples": samples.to_list(),
            "held_out": samples.select(range(5)).to_list(),
            "model": str(tiny_nf4.path),
            "model_id": tiny_nf4.model_id,
            "provenance": tiny_nf4.provenance,
            **job,
        }
        path.write_text(json.dumps(content), "utf-8")
        run_python(KILLED, path, env={"PYTHONHASHSEED": str(seed)}, status=status)

    return run


def test_process_that_is_killed_while_it_saves(train_in_process, train_tiny, untouched, tmp_path):
    train_in_process(SAVED, step=4, status=-signal.SIGKILL)
    folder = only_folder(tmp_path)
    assert (folder / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert not (folder / "checkpoint-4" / STATE_FILE).exists()
    assert_same(train_tiny(**SAVED), untouched(**SAVED), 2)


@pytest.mark.slow
def test_adapter_has_the_same_bytes_in_every_process(
    train_in_process, interrupted, train_tiny, tmp_path
):
    interrupted(3, **SAVED)
    AdapterDataset(filepath=tmp_path / "resumed").save(train_tiny(**SAVED).artifact)
    # a process has a hash seed of its own, on which the order of a set depends
    for seed in (1, 2):
        changes = {**SAVED, "checkpoint_dir": str(tmp_path / f"checkpoints {seed}")}
        train_in_process(changes, seed, adapter=str(tmp_path / str(seed)))
    first, *others = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("1", "2", "resumed")
    )
    assert {"README.md", "adapter_config.json", "ja_instruct.json"} < first.keys()
    for other in others:
        assert other.keys() == first.keys()
        assert [name for name in first if other[name] != first[name]] == []


def test_seconds_continue_from_the_first_part(interrupted, train_tiny, tmp_path):
    interrupted(3, **SAVED)
    path = only_folder(tmp_path) / "checkpoint-2" / STATE_FILE
    state = json.loads(path.read_text("utf-8"))
    saved = state["stateful_callbacks"]["StepTrainer"]
    saved["seconds"] += 3600
    meter = saved["meter"]
    meter["seconds"] += 3600
    meter["logged"][1] += 3600
    for entry in state["log_history"]:
        if "seconds" in entry:
            entry["seconds"] += 3600
    path.write_text(json.dumps(state), "utf-8")
    trained = train_tiny(**SAVED)
    assert 3600 < trained.curve("seconds")[2] < trained.curve("seconds")[3] < 3700
    (ends,) = [entry for entry in trained.history if "train_loss" in entry]
    assert 3600 < ends["train_runtime"] < 3700
    assert ends["train_steps_per_second"] == pytest.approx(5 / 3600, abs=5e-4)
    assert ends["train_samples_per_second"] == pytest.approx(40 / 3600, abs=1e-3)
    summary = trained.metrics["summary"]
    assert 3600 < summary["train_seconds"] < 3700
    # of the steps since the entry before it alone
    assert trained.curve("tokens_per_second")[3] > 10
    speed = summary["train_tokens"] / 3600
    assert summary["tokens_per_second"] == pytest.approx(speed, rel=0.05, abs=0.05)
