"""Training samples: conversations as token ids and labels."""

from __future__ import annotations

import logging
from dataclasses import asdict
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Literal

from ja_instruct.control_tokens import ControlTokens
from ja_instruct.prompts import eos_text
from ja_instruct.text import common_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.chat_template import Turn
    from ja_instruct.prompts import PromptBuilder

    # token ids, and the ranges of them that are in the loss
    _Encoded = tuple[list[int], list[tuple[int, int]]]

IGNORED_LABEL = -100
BATCH_SAMPLES = 1000
WARN_ABOVE_SHARE = 0.01

logger = logging.getLogger(__name__)


def to_samples(
    rows: Iterable[tuple[str, str, Sequence[Turn]]], builder: PromptBuilder, source: str
) -> list[dict[str, Any]]:
    """Return the sample of each question, answer and history.

    It has ``prompt``, ``completion`` and ``source``, and ``earlier_answers`` if any row has a
    history; see ``TrainingSample``.
    """
    from tqdm import tqdm

    # without a chat template 130,000 pairs take less than the delay
    shown = {"desc": f"sft: {source}", "unit": "sample", "delay": 2, "disable": None}
    samples = [
        {**asdict(builder.sample(*row)), "source": source} for row in tqdm(list(rows), **shown)
    ]
    if not any(sample["earlier_answers"] for sample in samples):
        for sample in samples:
            del sample["earlier_answers"]
    return samples


def encode_dataset(
    samples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    completion_only_loss: bool,
    over_long: Literal["cut", "drop"] = "cut",
) -> tuple[Dataset, dict[str, int]]:
    """Encode the samples; cut or drop long ones, and drop those without a label.

    The text of a sample is prompt and completion, plus EOS when the completion is not empty, as
    in the recipe. With ``completion_only_loss`` only the labels of the completion and of the
    prompt's ``earlier_answers`` are not -100. Each of them starts at the first token in which the
    whole text differs from the text before it.

    Returns:
        A dataset of ``input_ids`` and ``labels`` in the order of ``samples``, and counts:
        ``samples``, their ``tokens`` and the ``loss_tokens`` among them, samples that are ``cut``,
        ``dropped_over_long`` or ``dropped_nothing_to_learn`` (no token of the answer is left), and
        ``longest``, the tokens of the longest sample before it is cut.

    Raises:
        InputError: The tokenizer has no EOS.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    control = ControlTokens(tokenizer)
    dropped = ("dropped_over_long", "dropped_nothing_to_learn")
    counts = dict.fromkeys(("samples", "tokens", "loss_tokens", "cut", *dropped, "longest"), 0)
    parts = []
    with tqdm(total=len(samples), desc="sft: tokenizing", unit="sample", disable=None) as bar:
        for first in range(0, len(samples), BATCH_SAMPLES):
            batch = samples[first : first + BATCH_SAMPLES]
            encoded = _encode(batch, control, completion_only_loss)
            kept = _shorten(encoded, max_seq_length, over_long, counts)
            if kept:
                parts.append(Dataset.from_dict(_as_columns(kept)))
            bar.update(len(batch["prompt"]))
    _warn_of_long_samples(counts, len(samples), max_seq_length)
    return concatenate_datasets(parts or [Dataset.from_dict(_as_columns([]))]), counts


def _encode(
    batch: dict[str, list[Any]], control: ControlTokens, completion_only_loss: bool
) -> list[_Encoded]:
    """Return the ids of every sample, and the ranges of its tokens that are in the loss."""
    end = eos_text(control.tokenizer)
    texts = [
        prompt + completion + (end if completion else "")
        for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)
    ]
    encoded = control.encode(texts)
    if not completion_only_loss:
        return [(ids, [(0, len(ids))]) for ids in encoded]
    # the ends of all parts that are alternately out of the loss and in it
    earlier = batch.get("earlier_answers") or [None] * len(texts)
    cuts = [
        [*chain.from_iterable(spans or ()), len(prompt)]
        for prompt, spans in zip(batch["prompt"], earlier, strict=True)
    ]
    beginnings = iter(
        control.encode(
            [prompt[:cut] for prompt, own in zip(batch["prompt"], cuts, strict=True) for cut in own]
        )
    )
    found = []
    for ids, own in zip(encoded, cuts, strict=True):
        places = [common_length(ids, next(beginnings)) for _ in own]
        found.append((ids, list(pairwise([*places, len(ids)]))[::2]))
    return found


def _shorten(
    encoded: list[_Encoded],
    max_seq_length: int,
    over_long: Literal["cut", "drop"],
    counts: dict[str, int],
) -> list[_Encoded]:
    """Return the samples that are kept, cut to length; add to the counts of ``encode_dataset``."""
    kept = []
    for ids, learned in encoded:
        longer = len(ids) > max_seq_length
        counts["longest"] = max(counts["longest"], len(ids))
        left = [(start, min(end, max_seq_length)) for start, end in learned]
        loss_tokens = sum(max(0, end - start) for start, end in left)
        if longer and over_long == "drop":
            counts["dropped_over_long"] += 1
        elif not loss_tokens:
            counts["dropped_nothing_to_learn"] += 1
        else:
            counts["cut"] += longer
            counts["loss_tokens"] += loss_tokens
            kept.append((ids[:max_seq_length], left))
    counts["samples"] += len(kept)
    counts["tokens"] += sum(len(ids) for ids, _ in kept)
    return kept


def _as_columns(rows: list[_Encoded]) -> dict[str, list[list[int]]]:
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for ids, learned in rows:
        labels = [IGNORED_LABEL] * len(ids)
        for start, end in learned:
            labels[start:end] = ids[start:end]
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    return columns


def _warn_of_long_samples(counts: dict[str, int], samples: int, max_seq_length: int) -> None:
    over_long = counts["cut"] + counts["dropped_over_long"]
    nothing = counts["dropped_nothing_to_learn"]
    if over_long + nothing > WARN_ABOVE_SHARE * samples:
        logger.warning(
            "Of %d samples %d are cut and %d dropped, as they exceed sft.max_seq_length=%d tokens "
            "(the longest has %d); %d more have no answer within it. Raise sft.max_seq_length, or "
            "reject them in data_filtering (its rule token_count)",
            samples,
            counts["cut"],
            counts["dropped_over_long"],
            max_seq_length,
            counts["longest"],
            nothing,
        )
