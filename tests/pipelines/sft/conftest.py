"""Trainings of the tiny model, a fraction of a second each."""

from __future__ import annotations

import copy
import gc
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from datasets import Dataset

    from ja_instruct.models.directory import ModelArtifact, ModelDirectory
    from ja_instruct.pipelines.sft.parameters import SftParameters
    from ja_instruct.pipelines.sft.step_trainer import StepTrainer
    from ja_instruct.prompts import PromptParameters

# Eight samples a step: the third and last of an epoch has five, and its last batch one
TRAINING = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_steps": 4,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "neftune_noise_alpha": None,
    "report_to": [],
    "save_strategy": "no",
}
SAMPLES = 21


@dataclass(frozen=True)
class Trained:
    """What the node ``train`` returns."""

    artifact: ModelArtifact
    metrics: dict[str, Any]
    history: list[dict[str, float]]

    def curve(self, key: str) -> dict[int, float]:
        """Return what was logged under a key, by step."""
        return {int(entry["step"]): entry[key] for entry in self.history if key in entry}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's, copied."""
        return {
            name: weight.detach().clone()
            for name, weight in self.artifact.model.named_parameters()
            if weight.requires_grad
        }


@pytest.fixture(scope="session")
def samples() -> Dataset:
    """Return samples of different lengths, some beyond the tiny model's window of 64 tokens."""
    from datasets import Dataset

    chance = random.Random(5)
    return Dataset.from_list(
        [
            {
                "prompt": "質問" + "日本の首都はどこ" * chance.randint(1, 9),
                "completion": "東京です" * chance.randint(1, 20),
                "source": "filtered_pairs",
            }
            for _ in range(SAMPLES)
        ]
    )


@pytest.fixture(scope="session")
def prompts(read_parameters: Callable[[str], dict[str, Any]]) -> PromptParameters:
    """Return the recipe's prompts."""
    from ja_instruct.prompts import PromptParameters

    return PromptParameters(**read_parameters("base")["prompts"])


def changed(section: dict[str, Any], changes: dict[str, Any]) -> SftParameters:
    """Return ``sft`` with changes to it, to its parts, or to ``sft.training`` by bare names."""
    from ja_instruct.pipelines.sft.parameters import SftParameters

    section = copy.deepcopy(section)
    for name, value in changes.items():
        part = section if name in section else section["training"]
        part[name] = {**part[name], **value} if isinstance(value, dict) else value
    return SftParameters(**section)


@pytest.fixture(scope="session")
def base_parameters(
    read_parameters: Callable[[str], dict[str, Any]],
) -> Callable[..., SftParameters]:
    """Return a function that changes parameters of the environment ``base``."""
    section = read_parameters("base")["sft"]
    return lambda **changes: changed(section, changes)


@pytest.fixture(scope="session")
def section_of_test(read_parameters: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return ``sft`` of the environment ``test``, with ``TRAINING``."""
    section: dict[str, Any] = read_parameters("test")["sft"]
    section["training"] |= TRAINING
    return section


@pytest.fixture
def sft_parameters(section_of_test: dict[str, Any], tmp_path: Path) -> Callable[..., SftParameters]:
    """Return a function that changes parameters of ``section_of_test``."""
    directory = {"checkpoint_dir": str(tmp_path / "checkpoints")}
    return lambda **changes: changed(section_of_test, {**directory, **changes})


@pytest.fixture
def _quick_collection() -> Iterator[None]:
    """Exclude the libraries' objects from garbage collection, which takes as long as a training."""
    import ja_instruct.pipelines.sft.training  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def train_tiny(
    tiny_nf4: ModelDirectory,
    samples: Dataset,
    sft_parameters: Callable[..., SftParameters],
    _quick_collection: None,
) -> Callable[..., Trained]:
    """Return a function that trains on ``samples`` and evaluates the first five of them."""
    from ja_instruct.pipelines.sft.nodes import train

    def run(
        *,
        data: Dataset = samples,
        held_out: Dataset | None = None,
        model: ModelDirectory = tiny_nf4,
        **changes: Any,
    ) -> Trained:
        evaluation = samples.select(range(5)) if held_out is None else held_out
        return Trained(*train(model, data, evaluation, sft_parameters(**changes)))

    return run


@pytest.fixture
def make_trainer(
    tiny_nf4: ModelDirectory,
    samples: Dataset,
    sft_parameters: Callable[..., SftParameters],
    _quick_collection: None,
) -> Callable[..., StepTrainer]:
    """Return a function that builds the node's trainer."""
    from ja_instruct.pipelines.sft.backends import adapt_with_peft
    from ja_instruct.pipelines.sft.samples import encode_dataset
    from ja_instruct.pipelines.sft.training import build_trainer

    def make(**changes: Any) -> StepTrainer:
        parameters = sft_parameters(**changes)
        model, tokenizer = adapt_with_peft(tiny_nf4, parameters)
        limits = (parameters.max_seq_length, parameters.completion_only_loss)
        encoded, _ = encode_dataset(samples, tokenizer, *limits)
        return build_trainer(model, tokenizer, encoded, encoded.select(range(5)), parameters)

    return make


@pytest.fixture
def trainer_with_adapter(make_trainer: Callable[..., StepTrainer]) -> Callable[..., StepTrainer]:
    """Return ``make_trainer`` with weights in the adapter that change the model."""
    import torch

    def make(**changes: Any) -> StepTrainer:
        trainer = make_trainer(**changes)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        return trainer

    return make
