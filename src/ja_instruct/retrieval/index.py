"""The encoder's checkpoint, the index of a pool, and the search that uses both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from ja_instruct.errors import InputError
from ja_instruct.retrieval.bm25 import search_bigrams
from ja_instruct.retrieval.colbert import EncodedQuestions, search
from ja_instruct.retrieval.colbert_checkpoint import hash_weights
from ja_instruct.retrieval.ranking import Result, fuse_rankings

logger = logging.getLogger(__name__)

Retriever = Literal["colbert", "bm25", "hybrid"]

# Results of each ranking that are fused; later ones would add 1/160 at most.
FUSED_RESULTS = 100


class ColbertCheckpoint:
    """A ColBERT checkpoint that is downloaded or converted on first use; BM25 never uses it.

    ``model_id`` is its name for people: hub repository and revision, or its source.
    """

    def __init__(
        self, directory: Path | Callable[[], Path], model_id: str, sha256: str | None = None
    ) -> None:
        """Create the handle of a directory, or of a function that makes one and returns it.

        Without ``sha256``, the checksum over the weight files is computed on demand.
        """
        self._source = directory
        self.model_id = model_id
        self._sha256 = sha256

    @cached_property
    def directory(self) -> Path:
        """The checkpoint's directory; raises ``InputError`` when it is unavailable or unsafe."""
        return self._source if isinstance(self._source, Path) else self._source()

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 over its weight files, in hex."""
        return self._sha256 or hash_weights(self.directory)


@dataclass(frozen=True)
class RetrievalIndex:
    """A pool of questions, ready to be searched by one of the retrievers.

    ``encoded`` and what describes its checkpoint, ``model_id`` and ``checkpoint_sha256``, are None
    for BM25. ``max_document_tokens`` of a question are encoded; None is the encoder's window.
    """

    retriever: Retriever
    questions: tuple[str, ...]
    encoded: EncodedQuestions | None = None
    model_id: str | None = None
    checkpoint_sha256: str | None = None
    max_document_tokens: int | None = None
    versions: dict[str, str] = field(default_factory=dict)


def require_same_pool(index: RetrievalIndex, questions: list[str]) -> None:
    """Raise ``InputError`` unless position i of the index is record i of the pool."""
    if index.questions != tuple(questions):
        raise InputError(
            f"'retrieval_index' was made from {len(index.questions)} questions that are not "
            f"the {len(questions)} of 'few_shot_pool' in their order, so its results would name "
            f"the wrong pairs. Make the index again with 'kedro run --pipelines=rag_index'"
        )


def retrieve(
    index: RetrievalIndex,
    checkpoint: ColbertCheckpoint,
    queries: list[str],
    top_k: int,
    *,
    max_query_tokens: int | None = None,
) -> list[list[Result]]:
    """Search an index of n questions for each of m queries, with the index's retriever.

    The scores of different retrievers cannot be compared: ColBERT sums similarities, BM25 weights,
    and ``hybrid`` reciprocal ranks. ``max_query_tokens`` is that of
    ``ja_instruct.retrieval.colbert.search``.

    Returns:
        m lists of ``top_k`` results, or n if the pool is smaller, best first; the earlier position
        wins a tie.

    Raises:
        InputError: The index was made with other weights, or ``top_k`` is less than 1.
    """
    pool_size = len(index.questions)
    if top_k < 1:
        raise InputError(f"'top_k' is {top_k}, but must be at least 1")
    if top_k > pool_size:
        logger.warning("'top_k' is %d, the pool has %d questions: using all", top_k, pool_size)
        top_k = pool_size
    if not queries:
        return []
    if index.retriever == "bm25":
        return search_bigrams(index.questions, queries, top_k)

    def search_vectors(count: int) -> list[list[Result]]:
        encoded = _encoded_with(index, checkpoint)
        return search(
            checkpoint.directory, encoded, queries, count, max_query_tokens=max_query_tokens
        )

    if index.retriever == "colbert":
        return search_vectors(top_k)
    depth = min(max(top_k, FUSED_RESULTS), pool_size)
    # questions without a common bigram have no rank
    by_words = search_bigrams(index.questions, queries, depth, keep_unrelated=False)
    return [
        fuse_rankings([[result.position for result in results] for results in both], top_k)
        for both in zip(search_vectors(depth), by_words, strict=True)
    ]


def _encoded_with(index: RetrievalIndex, checkpoint: ColbertCheckpoint) -> EncodedQuestions:
    if index.encoded is None or index.checkpoint_sha256 != checkpoint.sha256:
        raise InputError(
            f"'retrieval_index' was made with '{index.model_id}' (weights "
            f"{str(index.checkpoint_sha256)[:12]}), but 'retriever_checkpoint' is "
            f"'{checkpoint.model_id}' (weights {checkpoint.sha256[:12]}); their vectors cannot be "
            f"compared. Make the index again with 'kedro run --pipelines=rag_index'"
        )
    return index.encoded
