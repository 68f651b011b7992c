"""Perplexity on held-out texts, for models that need not fit in memory."""

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

# A text's scores are squared in its length, and a vocabulary of 256,000 takes megabytes a position:
# both bound what one text takes of the device.
TEXT_TOKENS = 1024
LOGIT_POSITIONS = 256
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Sample:
    """A text as the model reads it.

    Attributes:
        ids: Token ids, BOS first where the tokenizer has one.
        characters: How many characters the predicted tokens stand for.
    """

    ids: list[int]
    characters: int


@dataclass(frozen=True)
class Score:
    """How well a model predicts texts.

    Attributes:
        nats: Negative log-likelihood of all predicted tokens.
        tokens: How many were predicted.
        characters: How many characters they stand for.
    """

    nats: float
    tokens: int
    characters: int

    def as_report(self) -> dict[str, float]:
        """Return perplexity, and nats a token and a character."""
        # beyond it a float has no exponential; no model that predicts anything comes near
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

    A text is cut at ``TEXT_TOKENS``, the last one where the total is reached. Without a BOS token
    a text's first token is not predicted.
    """
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    samples: list[Sample] = []
    left = max_tokens
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
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
    """Return how well a causal language model predicts texts, each on its own.

    Perplexity is exp of the mean negative log-likelihood of the predicted tokens, over all texts;
    nats a character compare models of different tokenizers too. All texts pass a decoder layer
    before the next one is loaded. Masks, rotations, final norm and head are the model's own: its
    ``forward`` is run with the decoder layers' taken out.

    Args:
        model: Its decoder layers may be on ``meta``.
        samples: What to predict.
        description: Shown beside the progress.
        loaded: Has a layer's weights in memory while its context lasts; None where they are.

    Raises:
        InputError: The model predicts nothing that can be counted.
    """
    import torch
    from tqdm import tqdm

    decoder: Any = model.get_decoder()
    layers = list(decoder.layers)
    # other parts, such as a vision tower, may be nowhere
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
            f"{description}: its likelihoods are no numbers ({nats}), so weights are damaged or "
            f"too large for {embeddings.weight.dtype}; compare the model's files with their source"
        )
    return Score(nats, tokens, sum(sample.characters for sample in samples))


@dataclass
class _Passage:
    """A text on its way through the layers.

    Attributes:
        ids: (1, tokens).
        hidden: (1, tokens, hidden size), the residual stream.
        arguments: What the model gives each layer beside the stream: mask, rotation.
    """

    ids: Tensor
    hidden: Tensor | None = None
    arguments: list[dict[str, Any]] = field(default_factory=list)


def _record(model: PreTrainedModel, layers: Sequence[nn.Module], passage: _Passage) -> None:
    """Note what the model gives its layers; none of it depends on what they compute."""

    def note(hidden: Tensor, **arguments: Any) -> Tensor:
        if passage.hidden is None:
            passage.hidden = hidden
        passage.arguments.append(arguments)
        return hidden

    with _replaced_forward(layers, note):
        model(input_ids=passage.ids, use_cache=False, logits_to_keep=1)


def _nats(model: PreTrainedModel, layers: Sequence[nn.Module], passage: _Passage) -> float:
    """Return the negative log-likelihood of a text that has passed all layers, in pieces."""
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
