"""Arranging the samples of an optimizer step with little or no padding.

The gradient does not depend on the arrangement: the loss is the mean over all labelled tokens of
the step. Imports torch: import this module where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ja_instruct.pipelines.sft.samples import IGNORED_LABEL

# FlexAttention works on blocks of 128 tokens
BLOCK_TOKENS = 128

Sample = Mapping[str, torch.Tensor]


def collate_step(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Return the ``samples`` of a step, tensors of one dimension, and ``labels``, (1, tokens).

    The trainer counts the targets of the loss in ``labels``. The first token of a sample is ignored
    there, as nothing predicts it.
    """
    samples = [
        {key: torch.tensor(example[key]) for key in ("input_ids", "labels")} for example in examples
    ]
    labels = torch.cat([_without_first(sample["labels"]) for sample in samples])
    return {"samples": samples, "labels": labels[None]}


def group_by_length(
    lengths: Sequence[int], tokens_per_batch: int, *, packing: bool
) -> list[list[int]]:
    """Return the positions of the samples in each micro-batch, longest samples first.

    A batch holds at most ``tokens_per_batch`` tokens; a longer sample has a batch of its own. With
    ``packing`` only the samples' tokens count, and first-fit decreasing fills the batches.
    Otherwise padding counts too, and samples of similar length share a batch.

    >>> group_by_length([3, 9, 4, 5], 10, packing=False)
    [[1], [3, 2], [0]]
    >>> group_by_length([3, 9, 4, 1], 10, packing=True)
    [[1, 3], [2, 0]]
    """

    def fits(group: list[int], position: int) -> bool:
        # the first sample of a group is its longest
        padded = (len(group) + 1) * lengths[group[0]]
        tokens = sum(lengths[one] for one in (*group, position)) if packing else padded
        return tokens <= tokens_per_batch

    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        open_groups = groups if packing else groups[-1:]
        group = next((one for one in open_groups if fits(one, position)), None)
        if group is None:
            groups.append([position])
        else:
            group.append(position)
    return groups


def padded(samples: Sequence[Sample], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``labels``, each (samples, longest)."""
    ids = [sample["input_ids"] for sample in samples]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad(
            [sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORED_LABEL
        ),
    }


def packed(
    samples: Sequence[Sample], pad_token_id: int, *, multiple_of: int = 1
) -> dict[str, torch.Tensor]:
    """Return the samples in one row: ``input_ids``, ``labels`` and ``position_ids``, (1, tokens).

    Positions start at 0 in each sample, by which transformers separates samples; unsloth uses
    ``packed_seq_lengths``, (samples,). The first token of a sample is not a target. Padding up to
    ``multiple_of`` counts as a sample.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    ids = [sample["input_ids"] for sample in samples]
    labels = [_without_first(sample["labels"]) for sample in samples]
    missing = -sum(lengths) % multiple_of
    if missing:
        ids.append(ids[0].new_full((missing,), pad_token_id))
        labels.append(labels[0].new_full((missing,), IGNORED_LABEL))
        lengths.append(missing)
    positions = [torch.arange(length, device=ids[0].device) for length in lengths]
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat(positions)[None],
        # on the host, so that masks are built without a device synchronization
        "packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32),
    }


def split_rows(inputs: Mapping[str, torch.Tensor], rows: int) -> list[dict[str, torch.Tensor]]:
    """Split a padded batch into parts of at most ``rows``, each padded to its longest sample."""
    parts = []
    for start in range(0, len(inputs["input_ids"]), rows):
        part = {key: value[start : start + rows] for key, value in inputs.items()}
        longest = int(part["attention_mask"].sum(dim=1).max())
        parts.append({key: value[:, :longest] for key, value in part.items()})
    return parts


def target_count(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of tokens in the loss of a batch, as a scalar tensor."""
    return (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()


def _without_first(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([labels.new_tensor([IGNORED_LABEL]), labels[1:]])
