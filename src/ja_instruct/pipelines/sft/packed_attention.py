"""Packed rows in which no sample sees another, and the proof of it before training.

transformers tells the samples of a row apart by their positions, unsloth by their lengths. Only for
Gemma 2, whose attention scores it bounds by a tanh, unsloth knows no kernel without flash-attn: it
writes out all scores of a row and refuses to pack. Here that attention is PyTorch's FlexAttention
(arXiv:2412.05496), which skips what no sample may see. Imports torch: import this module where it
is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.micro_batches import BLOCK_TOKENS, packed

# Relative difference of hidden states. A CPU computes in float32; on a GPU the matrices compute in
# bfloat16, whose 8 bits are rounded differently in kernels of different shapes, layer after layer.
# A sample that sees another one differs by tenths.
TOLERANCE = {"cpu": 1e-3, "cuda": 0.05}
CHECKED_TOKENS = 96

Score = Callable[..., torch.Tensor]


class TransformersPacking:
    """Packed rows for models whose forward is transformers' own: their positions say it all."""

    multiple_of = 1

    def begin(self, row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a row, as ``packed`` makes it, as the model takes it."""
        return {key: value for key, value in row.items() if key != "packed_seq_lengths"}

    def end(self) -> None:
        """Nothing is left behind."""


class UnslothPacking:
    """Packed rows for models of unsloth."""

    multiple_of = BLOCK_TOKENS

    def __init__(self, model: Any) -> None:
        """Tell unsloth that rows are longer than samples, and give Gemma 2 its attention."""
        from unsloth.utils.packing import _enable_hf_packed_attention, mark_allow_overlength

        mark_allow_overlength(model)
        _enable_hf_packed_attention()
        self._gemma2: Any = None
        if model.config.model_type == "gemma2":
            self._gemma2 = backbone_of(model)
            _use_flex_attention()

    def begin(self, row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the row; what Gemma 2 may see is noted in the model itself, as unsloth does."""
        if self._gemma2 is not None:
            lengths = row["packed_seq_lengths"]
            documents = document_ids(lengths, self._gemma2.device)
            whole = block_mask(documents, len(documents))
            window = self._gemma2.config.sliding_window
            self._gemma2.GA_mask = whole
            self._gemma2.SWA_mask = (
                whole if int(lengths.max()) <= window else block_mask(documents, window)
            )
        return dict(row)

    def end(self) -> None:
        """Forget the row: unsloth makes its own masks anew where it finds none."""
        if self._gemma2 is not None:
            for name in ("GA_mask", "SWA_mask"):
                # memory may have run out before there was one
                vars(self._gemma2).pop(name, None)


def backbone_of(model: Any) -> Any:
    """Return the part of a PEFT model around a causal language model that ends before the head."""
    return model.get_base_model().base_model


def document_ids(lengths: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the number of its sample for each token, (tokens,)."""
    numbers = torch.arange(len(lengths), dtype=torch.int32)
    return torch.repeat_interleave(numbers, lengths.cpu()).to(device)


def block_mask(documents: torch.Tensor, window: int) -> Any:
    """Return what each token of a row may see: of its sample the last ``window`` up to itself.

    Args:
        documents: What ``document_ids`` returns.
        window: In tokens; of the row's length it takes nothing away.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    # as a tensor: compiled for one number, the kernel would be compiled for each
    reach = torch.tensor(window, device=documents.device)

    def visible(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        return (documents[query] == documents[key]) & (key <= query) & (query - key < reach)

    tokens = len(documents)
    return create_block_mask(visible, None, None, tokens, tokens, device=documents.device)


def bounded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    *,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Return attention with scores bounded by ``softcap * tanh(score / softcap)`` (Gemma 2).

    Args:
        query: (batch, heads, tokens, width).
        key: (batch, key heads, tokens, width); each serves ``heads / key heads`` heads.
        value: As ``key``.
        mask: A ``BlockMask``.
        scale: Factor of the scores.
        softcap: Their bound.

    Returns:
        (batch, heads, tokens, width).
    """
    attention = _compiled_flex_attention() if query.is_cuda else _flex_attention()
    result: torch.Tensor = attention(
        query,
        key,
        value,
        score_mod=_bounded_score(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result


def _flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    # compiled for the first row, then once more for rows of any length, with and without gradients
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    return torch.compile(_flex_attention(), fullgraph=True)


@lru_cache(maxsize=4)
def _bounded_score(softcap: float) -> Score:
    def bounded(score: Any, *_places: Any) -> Any:
        return softcap * torch.tanh(score / softcap)

    return bounded


def _use_flex_attention() -> None:
    """Put our attention where unsloth's Gemma 2 looks for its own, for rows with our masks."""
    from torch.nn.attention.flex_attention import BlockMask
    from unsloth.models import gemma2

    theirs = gemma2.slow_attention_softcapping
    if getattr(theirs, "is_ja_instruct", False):
        return

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal_mask: Any,
        module: Any,
        batch_size: int,
        tokens: int,
    ) -> torch.Tensor:
        if not isinstance(causal_mask, BlockMask):
            unsloths: torch.Tensor = theirs(
                query, key, value, causal_mask, module, batch_size, tokens
            )
            return unsloths
        config = module.config
        result = bounded_attention(
            query,
            key,
            value,
            causal_mask,
            scale=1 / math.sqrt(config.query_pre_attn_scalar),
            softcap=config.attn_logit_softcapping,
        )
        return result.transpose(1, 2).reshape(batch_size, query.shape[-2], -1)

    attention.is_ja_instruct = True  # type: ignore[attr-defined]
    gemma2.slow_attention_softcapping = attention


def contamination(
    model: Any, sequences: Sequence[torch.Tensor], packing: TransformersPacking | UnslothPacking
) -> float:
    """Return how much the hidden states of samples differ between a row of them and each alone.

    Args:
        model: A PEFT model around a causal language model.
        sequences: Token ids, (tokens,) each; only their beginnings are looked at.
        packing: Makes the row.

    Returns:
        The largest of the relative differences (Frobenius norm).
    """
    backbone = backbone_of(model)
    short = [ids[:CHECKED_TOKENS].to(model.device) for ids in sequences]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone = [_hidden(backbone, {"input_ids": ids[None]}) for ids in short]
        samples = [{"input_ids": ids, "labels": ids} for ids in short]
        row = packing.begin(packed(samples, 0, multiple_of=packing.multiple_of))
        together = _hidden(backbone, {key: row[key] for key in row if key != "labels"})
        packing.end()
    model.train(was_training)
    differences = []
    start = 0
    for hidden in alone:
        piece = together[:, start : start + hidden.shape[1]].float()
        difference = (piece - hidden.float()).norm() / hidden.float().norm()
        differences.append(float(difference))
        start += hidden.shape[1]
    return max(differences)


def require_separate_samples(
    model: Any, sequences: Sequence[torch.Tensor], packing: TransformersPacking | UnslothPacking
) -> float:
    """Raise ``InputError`` when a sample in a packed row is computed otherwise than alone.

    Returns:
        The relative difference of the hidden states, for the log.
    """
    difference = contamination(model, sequences, packing)
    if not difference <= TOLERANCE[model.device.type]:
        raise InputError(
            f"packed samples would see each other: their hidden states differ by {difference:.1%} "
            f"from those of each sample alone. The attention of this model and these library "
            f"versions cannot keep them apart; set sft.training.packing to false"
        )
    return difference


def _hidden(backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden: torch.Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    return hidden
