"""Perplexity on held-out texts, also of models that do not fit in memory."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Both limit the device memory of one text: attention scores grow with the square of its length, and
# the logits of 256,000 tokens take megabytes per position.
TEXT_TOKENS = 1024
LOGIT_POSITIONS = 256
# exp overflows a float above it; the loss of a usable model is far smaller.
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Sample:
    """Token ids of a text, with BOS if there is one, and the characters of the predicted tokens."""

    ids: list[int]
    characters: int


@dataclass(frozen=True)
class Score:
    """The negative log-likelihood of texts, with the number of their predicted tokens."""

    nats: float
    tokens: int
    characters: int

    def as_report(self) -> dict[str, float]:
        """Return perplexity, nats per token and nats per character."""
        exponent = min(self.nats / self.tokens, LARGEST_EXPONENT)
        return {
            "perplexity": round(math.exp(exponent), 4),
            "nats_per_token": round(self.nats / self.tokens, 6),
            "nats_per_character": round(self.nats / self.characters, 6),
        }


def make_samples(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> list[Sample]:
    """Return the first texts, up to ``max_tokens`` predicted tokens in total.

    Texts are truncated to ``TEXT_TOKENS`` tokens, the last one to the total. Without a BOS token
    the first token of a text is not predicted.
    """
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    samples: list[Sample] = []
    left = max_tokens
    for text in texts:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,  # <eos> in a text is text
            return_offsets_mapping=True,
        )
        length = min(left + 1 - len(bos), TEXT_TOKENS)
        ids, ends = encoded["input_ids"][:length], encoded["offset_mapping"][:length]
        predicted = len(bos) + len(ids) - 1
        if predicted > 0:
            start = 0 if bos else ends[0][1]
            samples.append(Sample(bos + ids, ends[-1][1] - start))
            left -= predicted
        if left <= 0:
            break
    return samples


def score(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    description: str,
    loaded: Callable[[nn.Module], AbstractContextManager[None]] | None = None,
) -> Score:
    """Return the negative log-likelihood of texts under a causal language model.

    Each text is predicted on its own. All texts pass a decoder layer before the next one is
    loaded. Masks, rotary embeddings, final norm and head are the model's own: its ``forward`` runs
    with the ``forward`` of the decoder layers replaced. With ``loaded``, which loads a layer's
    weights while its context is active, the decoder layers may be on ``meta``.

    Raises:
        InputError: The likelihood is not a finite number.
    """
    import torch
    from tqdm import tqdm

    decoder: Any = model.get_decoder()
    layers = list(decoder.layers)
    # not model.device: other parts, such as a vision tower, may be on meta
    embeddings: Any = model.get_input_embeddings()
    passages = [
        _Passage(torch.tensor([sample.ids], device=embeddings.weight.device)) for sample in samples
    ]
    with torch.inference_mode():
        for passage in passages:
            _record(model, layers, passage)
        for position, layer in enumerate(
            tqdm(layers, desc=description, unit="layer", disable=None)
        ):
            with loaded(layer) if loaded else nullcontext():
                for passage in passages:
                    output = layer(passage.hidden, **passage.arguments[position])
                    passage.hidden = output[0] if isinstance(output, tuple) else output
        scoring = tqdm(passages, desc=f"{description}, head", unit="text", disable=None)
        nats = sum(_nats(model, layers, passage) for passage in scoring)
    tokens = sum(len(sample.ids) - 1 for sample in samples)
    if not math.isfinite(nats):
        raise InputError(
            f"{description}: the likelihood is {nats}, so weights are damaged or too large for "
            f"{embeddings.weight.dtype}; compare the model's files with their source"
        )
    return Score(nats, tokens, sum(sample.characters for sample in samples))


@dataclass
class _Passage:
    """A text between two layers."""

    ids: Tensor  # (1, tokens)
    hidden: Tensor | None = None  # the residual stream (1, tokens, hidden size)
    # of each layer: mask, rotary embeddings
    arguments: list[dict[str, Any]] = field(default_factory=list)


def _record(model: PreTrainedModel, layers: Sequence[nn.Module], passage: _Passage) -> None:
    """Record the arguments of each layer, which do not depend on the layers' outputs."""

    def record(hidden: Tensor, **arguments: Any) -> Tensor:
        if passage.hidden is None:
            passage.hidden = hidden
        passage.arguments.append(arguments)
        return hidden

    with _replaced_forward(layers, record):
        model(input_ids=passage.ids, use_cache=False, logits_to_keep=1)


def _nats(model: PreTrainedModel, layers: Sequence[nn.Module], passage: _Passage) -> float:
    """Return the negative log-likelihood of a text that has passed all layers."""
    import torch
    from torch.nn.functional import cross_entropy

    total = 0.0
    count = passage.ids.shape[1] - 1
    with _replaced_forward(layers, lambda *_, **__: passage.hidden):
        for start in range(0, count, LOGIT_POSITIONS):
            stop = min(start + LOGIT_POSITIONS, count)
            kept = torch.arange(start, stop, device=passage.ids.device)
            output = model(input_ids=passage.ids, use_cache=False, logits_to_keep=kept)
            targets = passage.ids[0, kept + 1]
            total += float(cross_entropy(output.logits[0].float(), targets, reduction="sum"))
    return total


@contextmanager
def _replaced_forward(
    layers: Sequence[nn.Module], forward: Callable[..., Tensor | None]
) -> Iterator[None]:
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = forward
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own
