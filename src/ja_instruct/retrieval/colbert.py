"""Encoding and searching a pool of questions in memory, with RAGatouille and a ColBERT encoder.

ColBERT (https://arxiv.org/abs/2004.12832) has one vector per token. The score of a text is the sum,
over the query's tokens, of the best dot product with any token of the text.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ja_instruct.retrieval.colbert_checkpoint import load_retriever, on_cpu
from ja_instruct.retrieval.ranking import Result, best_first

if TYPE_CHECKING:
    from pathlib import Path

    from ragatouille import RAGPretrainedModel
    from torch import Tensor

logger = logging.getLogger(__name__)

# The least that RAGatouille encodes of a query
DEFAULT_QUERY_TOKENS = 32


@dataclass(frozen=True)
class EncodedQuestions:
    """A pool of n questions with one vector per token, stored without padding.

    ``embeddings`` is (tokens of all questions, dimension), float32, with zeros for masked
    punctuation, and ``lengths``, (n,), has the rows of each question. RAGatouille pads questions to
    ``padded_length`` rows; ``truncated`` has the positions of questions longer than that.
    """

    questions: tuple[str, ...]
    embeddings: Tensor
    lengths: Tensor
    padded_length: int
    truncated: tuple[int, ...] = ()


class _Vectors(NamedTuple):
    """A question's embeddings, of shape (tokens, dimension), and whether it was truncated."""

    embeddings: Tensor
    truncated: bool


def _count_tokens(retriever: RAGPretrainedModel, texts: list[str]) -> list[int]:
    """Count the tokens of each text, with two special ones and ColBERT's marker."""
    encoded = retriever.model.inference_ckpt.raw_tokenizer(texts, verbose=False)
    return [len(ids) + 1 for ids in encoded["input_ids"]]


def encode_questions(
    checkpoint_directory: Path,
    questions: list[str],
    *,
    batch_size: int = 32,
    max_document_tokens: int | None = None,
    known: EncodedQuestions | None = None,
) -> EncodedQuestions:
    """Encode a pool of questions in memory with RAGatouille's ``encode``.

    A text that occurs several times, or in ``known``, is not encoded again. An encoding depends on
    the rest of its batch only by rounding: padding changes the order of sums (1e-6 in float32).
    The checkpoint is not loaded when all texts are known.

    Of a question, ``max_document_tokens`` are encoded, special ones included, or as many as the
    encoder's window has, which is RAGatouille's choice for None. ``known`` was encoded
    with the same limit and checkpoint.

    Raises:
        InputError: The checkpoint cannot be used.
    """
    import torch

    vectors: dict[str, _Vectors] = {}
    window = 0
    if known is not None:
        vectors, window = _split(known), known.padded_length
    new = list(dict.fromkeys(text for text in questions if text not in vectors))
    if new:
        encoded, window = _encode(checkpoint_directory, new, batch_size, max_document_tokens)
        vectors |= encoded
    parts = [vectors[text] for text in questions]
    return EncodedQuestions(
        questions=tuple(questions),
        embeddings=torch.cat([part.embeddings for part in parts]),
        lengths=torch.tensor([len(part.embeddings) for part in parts]),
        padded_length=window,
        truncated=tuple(i for i, part in enumerate(parts) if part.truncated),
    )


def _split(encoded: EncodedQuestions) -> dict[str, _Vectors]:
    truncated = set(encoded.truncated)
    parts = encoded.embeddings.split(encoded.lengths.tolist())
    return {
        text: _Vectors(part, position in truncated)
        for position, (text, part) in enumerate(zip(encoded.questions, parts, strict=True))
    }


def _encode(
    checkpoint_directory: Path, texts: list[str], batch_size: int, max_document_tokens: int | None
) -> tuple[dict[str, _Vectors], int]:
    """Return the vectors of distinct texts, and the window."""
    from tqdm import trange

    retriever = load_retriever(checkpoint_directory)
    if max_document_tokens is not None:
        max_document_tokens = min(max_document_tokens, retriever.model.base_model_max_tokens)
    tokens = _count_tokens(retriever, texts)
    order = sorted(range(len(texts)), key=tokens.__getitem__)
    vectors: dict[str, _Vectors] = {}
    window = 0
    for start in trange(0, len(texts), batch_size, desc="encoding questions"):
        positions = order[start : start + batch_size]
        padded = _encode_batch(retriever, [texts[i] for i in positions], max_document_tokens)
        window = padded.shape[1]
        for position, rows in zip(positions, padded, strict=True):
            # the padding goes; a question's last token, [SEP], is never masked
            end = int(rows.ne(0).any(dim=1).nonzero()[-1]) + 1
            vectors[texts[position]] = _Vectors(rows[:end].clone(), tokens[position] > window)
    return vectors, window


def _encode_batch(
    retriever: RAGPretrainedModel, texts: list[str], max_document_tokens: int | None
) -> Tensor:
    """Encode texts of similar length; return shape (texts, window, dimension), zero-padded.

    One batch per call: within a call colbert-ai pads all batches to the longest text of all, and
    RAGatouille pads all texts to the window.
    """
    with on_cpu():
        retriever.encode(
            texts,
            bsize=len(texts),
            max_document_length=max_document_tokens or "auto",
            verbose=False,
        )
    # RAGatouille's doc_masks are all -inf and never read
    padded: Tensor = retriever.model.in_memory_embed_docs
    retriever.clear_encoded_docs(force=True)
    return padded


def score_packed(query: Tensor, embeddings: Tensor, lengths: Tensor, window: int) -> Tensor:
    """Return ColBERT's score of a query for every text, on embeddings without padding.

    RAGatouille's rows of padding are zero and take part in the maximum, so a token never scores
    below 0 in a text shorter than the window. That is kept here.

    The query is (query tokens, dimension), the tokens of all texts are (tokens, dimension), their
    lengths (texts,). The scores, (texts,), are summed in float32 for any type of embeddings.

    >>> import torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> score_packed(torch.eye(2), embeddings, torch.tensor([2, 1]), window=3).tolist()
    [3.0, 0.0]
    """
    import torch

    similarities = (embeddings @ query.to(embeddings.dtype).T).float()
    best = torch.segment_reduce(similarities, "max", lengths=lengths, axis=0)
    padded = (lengths < window)[:, None]
    return torch.where(padded, best.clamp(min=0), best).sum(-1)


def _encode_queries(
    retriever: RAGPretrainedModel, queries: list[str], max_query_tokens: int | None
) -> list[Tensor]:
    """Return the vectors of each query, (1, tokens, dimension).

    Queries are encoded one by one, each at its own length: ColBERT pads a batch to one length with
    [MASK] tokens, which count in the score, so results would depend on the other queries.
    """
    from tqdm import tqdm

    checkpoint, window = retriever.model.inference_ckpt, retriever.model.base_model_max_tokens
    counts = _count_tokens(retriever, queries)
    vectors = []
    for query, count in zip(tqdm(queries, desc="encoding queries"), counts, strict=True):
        if max_query_tokens is None:
            (encoded,) = retriever.model._encode_index_free_queries([query], 1)
        else:
            length = max(DEFAULT_QUERY_TOKENS, min(count, max_query_tokens, window))
            checkpoint.query_tokenizer.query_maxlen = length
            encoded = checkpoint.queryFromText([query], bsize=1)
        vectors.append(encoded)
    _report_cut_queries(counts, [encoded.shape[1] for encoded in vectors], window)
    return vectors


def _report_cut_queries(counts: list[int], lengths: list[int], window: int) -> None:
    cut = [length for count, length in zip(counts, lengths, strict=True) if count > length]
    if cut:
        logger.warning(
            "%d of %d queries are longer than %d tokens, and only their beginning was used; "
            "'max_query_tokens' sets the limit, up to the %d that the encoder reads",
            len(cut),
            len(counts),
            min(cut),
            window,
        )


def search(
    checkpoint_directory: Path,
    encoded: EncodedQuestions,
    queries: list[str],
    top_k: int,
    *,
    max_query_tokens: int | None = None,
) -> list[list[Result]]:
    """Search n questions for each of m queries, like a ``search_encoded_docs`` of each alone.

    RAGatouille pads the pool to its longest text. With JSQuAD's 1,145 passages, one of which fills
    the window, that takes 0.9 GB, and a query takes five times as long.

    The checkpoint is that which ``encoded`` was made with. Of a query, ``max_query_tokens`` are
    encoded, special ones included, or as many as the encoder reads. None is RAGatouille's choice:
    1.35 times the words between spaces, and at least 32. RAGatouille chooses by the longest query
    of a call, and the contest's recipe calls it for each task.

    Returns:
        m lists of ``top_k`` results, from 1 to n, best first. Equal texts have equal scores; the
        earlier position wins a tie.

    Raises:
        InputError: The checkpoint cannot be used.
    """
    import torch

    retriever = load_retriever(checkpoint_directory)
    with on_cpu():
        query_vectors = _encode_queries(retriever, queries, max_query_tokens)
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(encoded.questions):
        positions.setdefault(text, []).append(position)
    vectors = _split(encoded)
    parts = [vectors[text].embeddings for text in positions]
    embeddings = torch.cat(parts)
    lengths = torch.tensor([len(part) for part in parts])
    of_texts = list(positions.values())
    found = []
    for query in query_vectors:
        scores = score_packed(query[0], embeddings, lengths, encoded.padded_length)
        best = torch.topk(scores, min(top_k, len(of_texts)))
        scored = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        results = (Result(at, score) for score, text in scored for at in of_texts[text])
        found.append(best_first(results, top_k))
    return found
