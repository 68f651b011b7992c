"""The retriever's checkpoint, the index made with it, and the search that ties the two."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ja_instruct.colbert import search
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from ja_instruct.colbert import EncodedQuestions, Hit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColbertCheckpoint:
    """A ColBERT checkpoint on the disk.

    Attributes:
        directory: Holds safetensors weights, configuration, tokenizer and ``artifact.metadata``.
        model_id: What it is, for people: hub repository and revision, or the source it was made of.
        sha256: Over its weight files, in hex.
    """

    directory: Path
    model_id: str
    sha256: str


@dataclass(frozen=True)
class RetrievalIndex:
    """An encoded pool of questions and what it was encoded with.

    Attributes:
        encoded: The questions and their embeddings.
        model_id: The checkpoint's name.
        checkpoint_sha256: The checkpoint's weights.
        versions: Package versions that made it.
    """

    encoded: EncodedQuestions
    model_id: str
    checkpoint_sha256: str
    versions: dict[str, str] = field(default_factory=dict)


def require_same_pool(index: RetrievalIndex, questions: list[str]) -> None:
    """Make sure that position i of the index is still record i of the pool.

    Raises:
        InputError: The pool was changed after the index was made.
    """
    if index.encoded.questions != tuple(questions):
        raise InputError(
            f"'retrieval_index' was made of {len(index.encoded.questions)} questions that are not "
            f"the {len(questions)} of 'qa_pairs' in their order, so its hits would name the wrong "
            f"pairs. Make the index again with 'kedro run --pipelines=rag_index'"
        )


def retrieve(
    index: RetrievalIndex,
    checkpoint: ColbertCheckpoint,
    queries: list[str],
    top_k: int,
    *,
    batch_size: int = 32,
    max_query_tokens: int | None = None,
) -> list[list[Hit]]:
    """Find the questions of the index that are nearest to each query.

    Args:
        index: The encoded pool of n questions.
        checkpoint: The one that the index was made with.
        queries: The m texts to search for.
        top_k: Hits a query; lowered to n, with a log line, when the pool is smaller.
        batch_size: Queries in one forward pass.
        max_query_tokens: Tokens read of a query; see ``ja_instruct.colbert.search``.

    Returns:
        m lists of hits (position in the pool, score), best first.

    Raises:
        InputError: The index was made with other weights.
    """
    if index.checkpoint_sha256 != checkpoint.sha256:
        raise InputError(
            f"'retrieval_index' was made with '{index.model_id}' (weights "
            f"{index.checkpoint_sha256[:12]}), but 'retriever_checkpoint' is "
            f"'{checkpoint.model_id}' (weights {checkpoint.sha256[:12]}); their vectors cannot be "
            f"compared. Make the index again with 'kedro run --pipelines=rag_index'"
        )
    pool_size = len(index.encoded.questions)
    if top_k > pool_size:
        logger.warning("'top_k' is %d, the pool has %d questions: using all", top_k, pool_size)
        top_k = pool_size
    return search(
        checkpoint.directory,
        index.encoded,
        queries,
        top_k,
        batch_size=batch_size,
        max_query_tokens=max_query_tokens,
    )
