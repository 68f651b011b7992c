import dataclasses
import json
from zipfile import ZipFile

import numpy as np
import pytest
from safetensors.numpy import save_file

from ja_instruct.pipelines.sft.checkpoints import (
    FILES,
    STATE_FILE,
    fingerprint,
    last_checkpoint,
    read_state,
)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes a checkpoint of a step."""

    def write(step, name=None):
        directory = tmp_path / (name or f"checkpoint-{step}")
        directory.mkdir()
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
            return fingerprint(model, data, sft_parameters(**changes))

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
