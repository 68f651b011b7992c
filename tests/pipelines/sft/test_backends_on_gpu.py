"""unsloth against PEFT, and packed rows against padded batches, on a CUDA device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

# bfloat16 keeps 8 bits; the losses are means over hundreds of tokens, each of a few layers
TOLERANCE = 0.01
STEPS = 6
PROGRAM = Path(__file__).with_name("train_one_side.py")
ARRANGEMENTS = {
    "padded": {},
    "grouped": {"tokens_per_batch": 512},
    "packed": {"tokens_per_batch": 512, "packing": True},
}


@pytest.fixture(scope="module")
def losses(tiny_nf4, tmp_path_factory, subprocess_environment):
    """Training and held-out losses of each backend and arrangement, all at the same time."""
    folder = tmp_path_factory.mktemp("sides")
    running = {}
    for backend in ("peft", "unsloth"):
        for name, training in ARRANGEMENTS.items():
            result = folder / f"{backend}-{name}.json"
            job = {
                "model": str(tiny_nf4.path),
                "backend": backend,
                "steps": STEPS,
                "training": training,
                "result": str(result),
            }
            # unsloth writes its patched trainers to the working folder, and patches for good
            cwd = folder / f"{backend}-{name}"
            cwd.mkdir()
            running[backend, name] = (
                result,
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), json.dumps(job)],
                    cwd=cwd,
                    env=subprocess_environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                ),
            )
    found = {}
    for key, (result, process) in running.items():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, f"{key}: {output[-4000:]}"
        found[key] = json.loads(result.read_text("utf-8"))
    return found


def test_the_backends_begin_with_the_same_losses(losses):
    expected = losses["peft", "padded"]
    found = losses["unsloth", "padded"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=TOLERANCE)


def test_losses_fall(losses):
    for one in losses.values():
        assert one["losses"][-1] < 0.8 * one["losses"][0]
        assert len(one["losses"]) == STEPS


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
@pytest.mark.parametrize("arrangement", ["grouped", "packed"])
def test_arrangement_changes_no_loss(losses, backend, arrangement):
    expected, found = losses[backend, "padded"], losses[backend, arrangement]
    assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=TOLERANCE)


def test_gpu_is_measured(losses):
    for one in losses.values():
        assert one["summary"]["peak_gpu_memory_gb"] > 0
        assert one["summary"]["tokens_per_second"] > 0
