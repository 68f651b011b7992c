"""The loss of the CPU trainer against transformers' own, which computes all logits."""

import pytest
import torch
from datasets import Dataset

from ja_instruct.pipelines.sft.cpu_trainer import CpuStepTrainer
from ja_instruct.pipelines.sft.samples import IGNORED_LABEL

LENGTHS = (40, 7, 90, 23)
QUESTION_TOKENS = 5


@pytest.fixture(scope="module")
def rows():
    """Four samples of unequal length; the first tokens are not in the loss."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = [2, *torch.randint(300, 2000, (length - 1,), generator=generator).tolist()]
        labels = [IGNORED_LABEL] * QUESTION_TOKENS + ids[QUESTION_TOKENS:]
        rows.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(rows)


@pytest.fixture
def trainer(trainer_with_adapter):
    trainer = trainer_with_adapter()
    trainer.model.eval()
    return trainer


def collate(trainer, rows):
    return trainer.data_collator([dict(row) for row in rows])


@torch.no_grad()
def assert_transformers_loss(trainer, batch):
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(trainer.model(**batch).loss.item(), rel=1e-5, abs=1e-5)


def test_batch_is_padded(trainer, rows):
    assert isinstance(trainer, CpuStepTrainer)
    batch = collate(trainer, rows)
    assert batch["input_ids"].shape == (4, max(LENGTHS))
    assert batch["attention_mask"].sum(dim=1).tolist() == list(LENGTHS)


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1, 2, 3]])
def test_loss_is_transformers_own(trainer, rows, chosen):
    assert_transformers_loss(trainer, collate(trainer, rows.select(chosen)))


def test_padding_on_the_left_is_ignored(trainer, rows):
    """On the right the causal mask hides it already."""
    batch = collate(trainer, rows)
    missing = (max(LENGTHS) - batch["attention_mask"].sum(dim=1)).tolist()
    batch = {
        key: torch.stack([row.roll(n) for row, n in zip(values, missing, strict=True)])
        for key, values in batch.items()
    }
    assert_transformers_loss(trainer, batch)


def test_softcapping_matters_here(trainer, rows):
    """Otherwise the equality above would not test it."""
    batch = collate(trainer, rows)
    config = trainer.model.config
    with torch.no_grad():
        bounded = trainer.model(**batch).loss.item()
        config.final_logit_softcapping = None
        unbounded = trainer.model(**batch).loss.item()
        config.final_logit_softcapping = 30.0
    assert abs(bounded - unbounded) > 0.01


def test_gradients_are_transformers_own(trainer, rows):
    batch = collate(trainer, rows)
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(trainer.model(**batch).loss, weights)
    gradients = torch.autograd.grad(trainer.compute_loss(trainer.model, batch), weights)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_num_items_in_batch_replaces_the_count(trainer, rows, kind):
    batch = collate(trainer, rows)
    given = kind(3 * (sum(LENGTHS) - len(LENGTHS) * QUESTION_TOKENS))
    with torch.no_grad():
        mean = trainer.compute_loss(trainer.model, batch)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=given)
    assert loss.item() == pytest.approx(mean.item() / 3, rel=1e-6)


def test_full_logits_are_refused(trainer, rows):
    with pytest.raises(ValueError, match="cannot return outputs"):
        trainer.compute_loss(trainer.model, collate(trainer, rows), return_outputs=True)
