"""Packed rows whose samples do not attend to each other, and the check of it before training.

TRL packs with flash-attn only, and unsloth refuses to pack Gemma 2, whose scores have a soft cap,
without it; so that attention is computed here by FlexAttention (arXiv:2412.05496). Imports torch:
import this module where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.micro_batches import BLOCK_TOKENS, packed

# Relative difference of hidden states. A GPU computes in bfloat16, whose 8 bits are rounded
# differently in kernels of different shapes, layer after layer. Attention to another sample makes a
# difference of tenths.
TOLERANCE = {"cpu": 1e-3, "cuda": 0.05}
CHECKED_TOKENS = 96


class TransformersPacking:
    """Packed rows for transformers' own models, which separate samples by ``position_ids``."""

    multiple_of = 1

    def begin(self, row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the model's inputs for a row that ``packed`` made."""
        return {key: value for key, value in row.items() if key != "packed_seq_lengths"}

    def end(self) -> None:
        """Do nothing: the model keeps no state of the row."""


class UnslothPacking:
    """Packed rows for unsloth's models, which separate samples by ``packed_seq_lengths``."""

    multiple_of = BLOCK_TOKENS

    def __init__(self, model: Any) -> None:
        """Let unsloth accept rows of any length, and give Gemma 2 our attention."""
        from unsloth.utils.packing import _enable_hf_packed_attention, mark_allow_overlength

        mark_allow_overlength(model)
        _enable_hf_packed_attention()
        self._gemma2: Any = None
        if model.config.model_type == "gemma2":
            self._gemma2 = backbone_of(model)
            _use_flex_attention()

    def begin(self, row: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the row; the masks of Gemma 2 are set on the model, where unsloth looks."""
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
        """Remove the masks; without them unsloth makes its own."""
        if self._gemma2 is not None:
            for name in ("GA_mask", "SWA_mask"):
                # memory may have run out before a mask was set
                vars(self._gemma2).pop(name, None)


Packing = TransformersPacking | UnslothPacking


def backbone_of(model: Any) -> Any:
    """Return a causal language model without its adapter wrapper and its head."""
    return model.get_base_model().base_model


def document_ids(lengths: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return each token's sample number, (tokens,)."""
    numbers = torch.arange(len(lengths), dtype=torch.int32)
    return torch.repeat_interleave(numbers, lengths.cpu()).to(device)


def block_mask(documents: torch.Tensor, window: int) -> BlockMask:
    """Return the causal mask of a row: a token attends to the last ``window`` of its sample.

    The token itself counts in the window. ``documents``, (tokens,), are the samples' numbers.
    """
    # a tensor, as the kernel would be compiled again for each number
    reach = torch.tensor(window, device=documents.device)

    def causal_mask(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (documents[query] == documents[key]) & (key <= query) & (query - key < reach)

    tokens = len(documents)
    return create_block_mask(causal_mask, None, None, tokens, tokens, device=documents.device)


def softcap_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Return attention with the scores ``softcap * tanh(score / softcap)`` (Gemma 2).

    The query and the result are (batch, heads, tokens, width), key and value (batch, key heads,
    tokens, width); a key head serves ``heads / key heads`` heads. The scores are multiplied by
    ``scale`` before the soft cap.
    """
    attention: Callable[..., Any] = flex_attention
    if query.is_cuda:
        attention = _compiled_flex_attention()
    result: torch.Tensor = attention(
        query,
        key,
        value,
        score_mod=_softcap_score(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    # compiled for the first row, then for rows of any length, with and without gradients
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, fullgraph=True)


@lru_cache(maxsize=4)
def _softcap_score(softcap: float) -> Callable[..., torch.Tensor]:
    def score_mod(score: torch.Tensor, *_indices: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def _use_flex_attention() -> None:
    """Replace the attention of unsloth's Gemma 2 for rows with our masks."""
    from unsloth.models import gemma2

    theirs = gemma2.slow_attention_softcapping
    if getattr(theirs, "is_ja_instruct", False):
        return

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal_mask: BlockMask | torch.Tensor | None,
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
        result = softcap_attention(
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


def require_separate_samples(
    model: Any, sequences: Sequence[torch.Tensor], packing: Packing
) -> float:
    """Return how much the hidden states of samples in a packed row differ from each sample alone.

    It is the largest relative difference (Frobenius norm) over ``sequences``, token ids of shape
    (tokens,) each, of which only the beginnings are compared.

    Raises:
        InputError: The difference shows attention to other samples.
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
    lengths = [hidden.shape[1] for hidden in alone]
    parts = together[:, : sum(lengths)].split(lengths, dim=1)
    difference = max(
        float((part.float() - hidden.float()).norm() / hidden.float().norm())
        for part, hidden in zip(parts, alone, strict=True)
    )
    if not difference <= TOLERANCE[model.device.type]:
        raise InputError(
            f"packed samples would attend to each other: their hidden states differ by "
            f"{difference:.1%} from those of each sample alone. The attention of this model and "
            f"these library versions cannot keep them apart; set sft.training.packing to false"
        )
    return difference


def _hidden(backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden: torch.Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    return hidden
