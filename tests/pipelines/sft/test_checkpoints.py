import dataclasses
import json
import logging
import os
from zipfile import ZipFile

import numpy as np
import pytest
from safetensors.numpy import save_file

from ja_instruct.pipelines.sft.checkpoints import (
    FILES,
    STATE_FILE,
    describe_training,
    fingerprint,
    last_checkpoint,
    read_state,
)
from ja_instruct.pipelines.sft.resuming import TRAINING_FILE, find_checkpoint, record_training


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes a checkpoint of a step."""

    def write(step, name=None):
        directory = tmp_path / (name or f"checkpoint-{step}")
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text("{}", "utf-8")
        save_file({"a": np.zeros(3)}, directory / "adapter_model.safetensors")
        for file in ("optimizer.pt", "scheduler.pt"):
            with ZipFile(directory / file, "w"):
                pass
        state = {
            "global_step": step,
            "max_steps": 20,
            "log_history": [],
            "stateful_callbacks": {},
        }
        (directory / STATE_FILE).write_text(json.dumps(state), "utf-8")
        return directory

    return write


class TestLastCheckpoint:
    def test_none_without_checkpoints(self, tmp_path):
        assert last_checkpoint(tmp_path) is None
        assert last_checkpoint(tmp_path / "never made") is None

    def test_the_one_with_the_most_steps(self, tmp_path, checkpoint):
        for step in (900, 1200, 300):
            checkpoint(step)
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1200"
        assert read_state(last_checkpoint(tmp_path))["global_step"] == 1200

    @pytest.mark.parametrize("missing", FILES)
    def test_incomplete_one_is_skipped(self, tmp_path, checkpoint, missing):
        checkpoint(300)
        (checkpoint(600) / missing).unlink()
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-300"

    @pytest.mark.parametrize("content", [b"", b'{"global_step": 600, "max_st', b'{"a": "\xe3\x81'])
    def test_incomplete_state_is_skipped(self, tmp_path, checkpoint, content):
        checkpoint(300)
        (checkpoint(600) / STATE_FILE).write_bytes(content)
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-300"

    def test_other_folders_are_ignored(self, tmp_path, checkpoint):
        checkpoint(0, "checkpoint-best")
        checkpoint(0, "runs")
        (tmp_path / "checkpoint-7").touch()
        assert last_checkpoint(tmp_path) is None


class TestFingerprint:
    @pytest.fixture
    def of(self, tiny_nf4, samples, sft_parameters):
        def compute(model=tiny_nf4, data=samples, **changes):
            return fingerprint(describe_training(model, data, sft_parameters(**changes)))

        return compute

    def test_is_always_the_same(self, of):
        assert of() == of()
        assert len(of()) == 12
        assert int(of(), 16) > 0

    @pytest.mark.parametrize(
        "changes",
        [
            {"learning_rate": 0.02},
            {"seed": 1},
            {"max_steps": 5},
            {"neftune_noise_alpha": 5.0},
            {"tokens_per_batch": 300},
            {"tokens_per_batch": 300, "packing": True},
            {"save_steps": 7},
            {"max_seq_length": 128},
            {"completion_only_loss": True},
            {"over_long": "drop"},
            {"optim": "adamw_8bit"},
            {"lora": {"seed": 1}},
            {"lora": {"lora_alpha": 8}},
        ],
        ids=str,
    )
    def test_depends_on_the_parameters(self, of, changes):
        assert of(**changes) != of()

    def test_several_devices_multiply_the_batch(self, of):
        one, two = (of(device="cuda", gpu={"devices": devices}) for devices in (1, 2))
        assert one != two

    @pytest.mark.parametrize(
        "changes",
        [
            {"checkpoint_dir": "elsewhere"},
            {"resume": False},
            {"report_to": ["mlflow"]},
            {"save_total_limit": 7},
            {"divergence_nats": None},
            {"auto_find_batch_size": True},
            {"gpu": {"memory_gb": 3.0, "disk_gb": 9.0}, "device": "cuda"},
        ],
        ids=str,
    )
    def test_ignores_parameters_without_effect(self, of, changes):
        expected = of(device=changes.get("device", "cpu"))
        assert of(**changes) == expected

    def test_depends_on_the_places_of_earlier_answers(self, of, samples):
        places = [
            [[[0, 2]]] + [None] * (len(samples) - 1),
            [[[0, 3]]] + [None] * (len(samples) - 1),
        ]
        found = [of(data=samples.add_column("earlier_answers", column)) for column in places]
        assert len({of(), *found}) == 3

    def test_depends_on_every_text_and_their_order(self, of, samples):
        def changed(position, key):
            rows = samples.to_list()
            rows[position][key] += "。"
            return samples.from_list(rows)

        found = {of(), of(data=samples.select(range(1, len(samples))))}
        found |= {of(data=changed(at, key)) for at in (0, 20) for key in ("prompt", "completion")}
        found.add(of(data=samples.select([1, 0, *range(2, len(samples))])))
        assert len(found) == 7

    def test_depends_on_where_a_text_ends(self, of, samples):
        def one(prompt, completion):
            return [{"prompt": prompt, "completion": completion}]

        assert of(data=one("東京", "です")) != of(data=one("東京で", "す"))
        assert of(data=one("\ud83d", "です")) != of(data=one("", "です"))

    def test_depends_on_weights_and_not_on_their_name(self, of, tiny_nf4):
        other = {**tiny_nf4.provenance, "weights_sha256": {"model.safetensors": "0" * 64}}
        assert of(dataclasses.replace(tiny_nf4, provenance=other)) != of()
        assert of(dataclasses.replace(tiny_nf4, model_id="another/name")) == of()


MINE = {
    "settings": {"max_seq_length": 64, "training": {"optim": "sgd", "seed": 1}},
    "quantized_model": {"model.safetensors": "0" * 64},
    "train_dataset": {"samples": 3, "sha256": "1" * 64},
}


class TestFindCheckpoint:
    @pytest.fixture
    def find(self, tmp_path, caplog):
        """A function that returns the checkpoint and what is logged."""

        def find(resume=True, training=MINE):
            caplog.clear()
            with caplog.at_level(logging.INFO):
                found = find_checkpoint(tmp_path, training, resume=resume)
            return found, [record.getMessage() for record in caplog.records]

        return find

    @pytest.fixture
    def saved(self, tmp_path, checkpoint):
        """A function that writes checkpoints of a training, changed by dotted names."""

        def save(*steps, minute=0, **changes):
            training = json.loads(json.dumps(MINE))
            for name, value in changes.items():
                *parts, last = name.split("__")
                place = training
                for part in parts:
                    place = place[part]
                place[last] = value
            folder = tmp_path / fingerprint(training)
            record_training(folder, training)
            for step in steps:
                path = checkpoint(step, f"{folder.name}/checkpoint-{step}")
                for one in (path, path / STATE_FILE):
                    os.utime(one, (1_800_000_000 + 60 * minute,) * 2)
            return folder

        return save

    def test_none(self, find, tmp_path):
        message = f"sft: no checkpoints in {tmp_path}, so training starts at step 0"
        assert find() == (None, [message])
        assert find(resume=False) == (None, [message])

    def test_of_this_training(self, find, saved):
        folder = saved(4, 8)
        saved(12, settings__max_seq_length=32)
        found, (message,) = find()
        assert found == folder / "checkpoint-8"
        expected = f"sft: resuming from step 8 of 20, {found} (saved 2027-01-15 "
        assert message.startswith(expected)
        assert message.endswith(", the last of 2)")

    def test_of_this_training_that_has_finished(self, find, saved):
        folder = saved(20)
        found, (message,) = find()
        assert found == folder / "checkpoint-20"
        assert "this training has finished; its last checkpoint is used, step 20 of 20" in message
        assert f"Remove {folder}, or set sft.resume to false, to train again" in message

    def test_not_wanted(self, find, saved):
        folder = saved(4)
        found, (message,) = find(resume=False)
        assert found is None
        assert message.startswith(f"sft: not resuming from step 4 of 20, {folder}/checkpoint-4 (")
        assert message.endswith("): sft.resume is false")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            (
                {"settings__training__optim": "lion_8bit"},
                "sft.training.optim was lion_8bit and is sgd",
            ),
            (
                {"settings__training__lr": 0.1, "settings__max_seq_length": 32},
                "sft.max_seq_length was 32 and is 64, sft.training.lr was 0.1 and is not set",
            ),
            ({"quantized_model": None}, "quantized_model has changed"),
            ({"train_dataset__samples": 4}, "train_dataset has changed"),
            (
                {f"settings__{name}": 0 for name in "abcde"},
                "sft.a was 0 and is not set, sft.b was 0 and is not set, sft.c was 0 and is not "
                "set, 2 more",
            ),
        ],
    )
    def test_of_another_training(self, find, saved, changes, reason):
        folder = saved(4, 8, **changes)
        found, (message,) = find()
        assert found is None
        assert message.startswith(f"sft: not resuming from step 8 of 20, {folder}/checkpoint-8 (")
        assert message.endswith(f", the last of 2): {reason}")

    @pytest.mark.parametrize("content", [None, b"", b'{"settings": 3}'])
    def test_of_another_training_that_is_not_known(self, find, saved, content):
        file = saved(4, settings__max_seq_length=32) / TRAINING_FILE
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        found, (message,) = find()
        assert found is None
        assert message.endswith(
            "its parameters are not known, as training.json is missing or damaged"
        )

    def test_latest_of_many(self, find, saved):
        for at, length in enumerate((10, 20, 30, 40, 50)):
            saved(4, minute=at, settings__max_seq_length=length)
        found, messages = find()
        assert found is None
        lengths = [message.partition(" was ")[2] for message in messages[:3]]
        assert lengths == ["50 and is 64", "40 and is 64", "30 and is 64"]
        assert messages[3].startswith("sft: 2 older trainings in ")

    def test_incomplete_one_of_another_training(self, find, saved, tmp_path):
        folder = saved(4, settings__max_seq_length=32)
        (folder / "checkpoint-4" / STATE_FILE).unlink()
        found, messages = find()
        assert found is None
        assert [message.partition(" (")[0] for message in messages] == [
            f"sft: skipping the incomplete checkpoint {folder}/checkpoint-4",
            f"sft: no complete checkpoint in {tmp_path}, so training starts at step 0",
        ]
