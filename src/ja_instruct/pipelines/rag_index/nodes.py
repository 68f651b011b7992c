"""Making the pool's questions ready for retrieval, as the recipe does or without a model."""

from __future__ import annotations

import logging
from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ja_instruct import __version__
from ja_instruct.errors import InputError
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.retrieval.bm25 import normalize
from ja_instruct.retrieval.colbert import encode_questions
from ja_instruct.retrieval.index import (
    ColbertCheckpoint,
    RetrievalIndex,
    Retriever,
    reusable_encoding,
)
from ja_instruct.tables.columns import as_dataset, require_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

    from ja_instruct.retrieval.colbert import EncodedQuestions
else:
    # Kedro validates the parameters of a node only when all its hints resolve at run time, and
    # importing datasets takes a second that `kedro registry list` need not wait for.
    Dataset = Any

logger = logging.getLogger(__name__)

ENCODER_PACKAGES = ("ragatouille", "colbert-ai", "transformers", "torch")
NAMED_IN_WARNINGS = 10


def encode_pool(
    qa_pairs: Dataset,
    retriever_checkpoint: ColbertCheckpoint,
    params: RagIndexParameters,
    previous_retrieval_index: RetrievalIndex | None = None,
) -> tuple[RetrievalIndex, dict[str, Any]]:
    """Index every question of the pool; warn about those that retrieval cannot do well with.

    ``bm25`` encodes nothing and leaves the checkpoint alone.

    Args:
        qa_pairs: The pool, with the columns ``input`` and ``output``.
        retriever_checkpoint: The encoder.
        params: Section ``rag_index``.
        previous_retrieval_index: What an earlier run made; the questions that it encoded by the
            same means are not encoded again.

    Returns:
        The index, whose position i is record i of ``qa_pairs``, and the report.

    Raises:
        InputError: A column is missing, the pool is empty, or the checkpoint cannot be used.
    """
    pairs = as_dataset(qa_pairs, "qa_pairs")
    require_columns(pairs, ("input", "output"), "qa_pairs")
    questions: list[str] = list(pairs["input"])
    if not questions:
        raise InputError("there is no question to index: 'qa_pairs' is empty")
    known = None
    if params.retriever == "bm25":
        index = RetrievalIndex("bm25", tuple(questions), versions=_versions("bm25s"))
    else:
        known = reusable_encoding(
            previous_retrieval_index,
            retriever_checkpoint,
            max_document_tokens=params.max_document_tokens,
            versions=_versions(*ENCODER_PACKAGES),
        )
        index = _encode(questions, retriever_checkpoint, params, known)
    findings = find_weak_questions(questions, params.retriever)
    if index.encoded is not None:
        findings["truncated"] = list(index.encoded.truncated)
    names = [str(name) for name in pairs["id"]] if "id" in pairs.column_names else None
    _warn_of(findings, names, index)
    reused = set() if known is None else set(known.questions)
    report = {
        "summary": _summarize(index, findings, reused),
        "retriever": index.retriever,
        "model_id": index.model_id,
        "checkpoint_sha256": index.checkpoint_sha256,
        "versions": index.versions,
        "positions": findings,
    }
    return index, report


def _versions(*packages: str) -> dict[str, str]:
    return {"ja-instruct": __version__, **{name: version(name) for name in packages}}


def _encode(
    questions: list[str],
    checkpoint: ColbertCheckpoint,
    params: RagIndexParameters,
    known: EncodedQuestions | None,
) -> RetrievalIndex:
    encoded = encode_questions(
        checkpoint.directory,
        questions,
        batch_size=params.batch_size,
        max_document_tokens=params.max_document_tokens,
        known=known,
    )
    return RetrievalIndex(
        params.retriever,
        tuple(questions),
        encoded=encoded,
        model_id=checkpoint.model_id,
        checkpoint_sha256=checkpoint.sha256,
        max_document_tokens=params.max_document_tokens,
        versions=_versions(*ENCODER_PACKAGES, *(["bm25s"] if params.retriever == "hybrid" else [])),
    )


def _summarize(
    index: RetrievalIndex, findings: dict[str, list[int]], reused: set[str]
) -> dict[str, int]:
    summary = {"questions": len(index.questions)}
    if index.encoded is not None:
        summary |= {
            "dimension": index.encoded.embeddings.shape[1],
            "tokens": index.encoded.embeddings.shape[0],
            "encoded": len(set(index.questions) - reused),
            "reused": len(set(index.questions) & reused),
        }
    return summary | {what: len(positions) for what, positions in findings.items()}


def find_weak_questions(
    questions: list[str], retriever: Retriever = "colbert"
) -> dict[str, list[int]]:
    """Return the positions of questions without text, and of those asked earlier already.

    BM25 takes questions for the same that an encoder tells apart.

    >>> pool = ["日本の首都は?", " ", "富士山の高さは?", "日本の首都は? ", "日本の首都は？"]
    >>> find_weak_questions(pool)
    {'empty': [1], 'duplicated': [3]}
    >>> find_weak_questions(pool, "bm25")
    {'empty': [1], 'duplicated': [3, 4]}
    """
    same_as: Callable[[str], str] = normalize if retriever == "bm25" else str.strip
    positions = defaultdict(list)
    for position, question in enumerate(questions):
        # nothing to compare by is empty for an encoder too
        positions[same_as(question) if normalize(question) else ""].append(position)
    empty = positions.pop("", [])
    later = [position for same in positions.values() for position in same[1:]]
    return {"empty": empty, "duplicated": sorted(later)}


def _warn_of(
    findings: dict[str, list[int]], names: list[str] | None, index: RetrievalIndex
) -> None:
    found_by = {
        "colbert": "they are near to any query",
        "bm25": "no query finds them",
        "hybrid": "the encoder takes them to be near to any query",
    }
    window = 0 if index.encoded is None else index.encoded.padded_length
    consequences = {
        "empty": found_by[index.retriever],
        "duplicated": "they take the place of other examples in a prompt",
        "truncated": f"the encoder reads their first {window} tokens",
    }
    for what, positions in findings.items():
        if not positions:
            continue
        first = positions[:NAMED_IN_WARNINGS]
        where = [f"{i} ({names[i]})" if names else str(i) for i in first]
        logger.warning(
            "%d question(s) of 'qa_pairs' are %s: %s. Positions from 0: %s%s",
            len(positions),
            what,
            consequences[what],
            ", ".join(where),
            ", …" if len(positions) > len(first) else "",
        )
