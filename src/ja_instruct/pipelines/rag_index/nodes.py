"""Nodes of ``rag_index``."""

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
from ja_instruct.retrieval.index import ColbertCheckpoint, RetrievalIndex, Retriever
from ja_instruct.retrieval.index_files import EncodingCache
from ja_instruct.tables.columns import as_dataset, require_columns
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
else:  # Kedro resolves the hints of a node, and importing datasets takes a second
    Dataset = Any

logger = logging.getLogger(__name__)

ENCODER_PACKAGES = ("ragatouille", "colbert-ai", "transformers", "torch")
NAMED_IN_WARNINGS = 10
CONSEQUENCES = {
    "colbert": "they are near to any query",
    "bm25": "no query finds them",
    "hybrid": "the encoder takes them to be near to any query",
}


@unaffected_by("encoding_cache", "params:rag_index.batch_size")
def encode_pool(
    few_shot_pool: Dataset,
    retriever_checkpoint: ColbertCheckpoint,
    params: RagIndexParameters,
    encoding_cache: EncodingCache | None = None,
) -> tuple[RetrievalIndex, dict[str, Any]]:
    """Index every question of the pool, and warn about questions that retrieval handles badly.

    ``bm25`` uses neither checkpoint nor cache. Questions in the cache, if encoded with the same
    encoder and package versions, are not encoded again; new ones are added.

    Returns:
        The index, whose position i is record i of ``few_shot_pool``, and the report.

    Raises:
        InputError: A column is missing, the pool is empty, or the checkpoint cannot be used.
    """
    pairs = as_dataset(few_shot_pool, "few_shot_pool")
    require_columns(pairs, ("input", "output"), "few_shot_pool")
    questions: list[str] = list(pairs["input"])
    if not questions:
        raise InputError("'few_shot_pool' is empty: there are no questions to index")
    reused: set[str] = set()
    if params.retriever == "bm25":
        index = RetrievalIndex("bm25", tuple(questions), versions=_versions("bm25s"))
    else:
        index, reused = _encode(questions, retriever_checkpoint, params, encoding_cache)
    weak = find_weak_questions(questions, params.retriever)
    if index.encoded is not None:
        weak["truncated"] = list(index.encoded.truncated)
    names = [str(name) for name in pairs["id"]] if "id" in pairs.column_names else None
    _warn_of(weak, names, index)
    report = {
        "summary": _summarize(index, weak, reused),
        "retriever": index.retriever,
        "model_id": index.model_id,
        "checkpoint_sha256": index.checkpoint_sha256,
        "versions": index.versions,
        "positions": weak,
    }
    return index, report


def _versions(*packages: str) -> dict[str, str]:
    return {"ja-instruct": __version__, **{name: version(name) for name in packages}}


def _encode(
    questions: list[str],
    checkpoint: ColbertCheckpoint,
    params: RagIndexParameters,
    cache: EncodingCache | None,
) -> tuple[RetrievalIndex, set[str]]:
    """Return the index, and the texts whose encoding was in the cache."""
    versions = _versions(*ENCODER_PACKAGES)
    known = None
    if cache is not None:
        known = cache.read(checkpoint, params.max_document_tokens, versions)
    encoded = encode_questions(
        checkpoint.directory,
        questions,
        batch_size=params.batch_size,
        max_document_tokens=params.max_document_tokens,
        known=known,
    )
    index = RetrievalIndex(
        params.retriever,
        tuple(questions),
        encoded=encoded,
        model_id=checkpoint.model_id,
        checkpoint_sha256=checkpoint.sha256,
        max_document_tokens=params.max_document_tokens,
        versions=versions | (_versions("bm25s") if params.retriever == "hybrid" else {}),
    )
    reused = set(known.questions) if known is not None else set()
    if cache is not None and not reused.issuperset(questions):
        cache.write(index)
    return index, reused


def _summarize(
    index: RetrievalIndex, weak: dict[str, list[int]], reused: set[str]
) -> dict[str, int]:
    summary = {"questions": len(index.questions)}
    if index.encoded is not None:
        summary |= {
            "dimension": index.encoded.embeddings.shape[1],
            "tokens": index.encoded.embeddings.shape[0],
            "encoded": len(set(index.questions) - reused),
            "reused": len(set(index.questions) & reused),
        }
    return summary | {weakness: len(positions) for weakness, positions in weak.items()}


def find_weak_questions(
    questions: list[str], retriever: Retriever = "colbert"
) -> dict[str, list[int]]:
    """Return the positions of questions without text, and of repeated questions.

    BM25 does not distinguish width, case and white space, so more questions repeat each other.

    >>> pool = ["日本の首都は?", " ", "富士山の高さは?", "日本の首都は? ", "日本の首都は？"]
    >>> find_weak_questions(pool)
    {'empty': [1], 'duplicated': [3]}
    >>> find_weak_questions(pool, "bm25")
    {'empty': [1], 'duplicated': [3, 4]}
    """
    same_as: Callable[[str], str] = normalize if retriever == "bm25" else str.strip
    positions = defaultdict(list)
    for position, question in enumerate(questions):
        # without a character to compare, a question is empty for an encoder too
        positions[same_as(question) if normalize(question) else ""].append(position)
    empty = positions.pop("", [])
    later = [position for same in positions.values() for position in same[1:]]
    return {"empty": empty, "duplicated": sorted(later)}


def _warn_of(weak: dict[str, list[int]], names: list[str] | None, index: RetrievalIndex) -> None:
    window = 0 if index.encoded is None else index.encoded.padded_length
    consequences = {
        "empty": CONSEQUENCES[index.retriever],
        "duplicated": "they take the place of other examples in a prompt",
        "truncated": f"the encoder reads their first {window} tokens",
    }
    for weakness, positions in weak.items():
        if not positions:
            continue
        first = positions[:NAMED_IN_WARNINGS]
        where = [f"{i} ({names[i]})" if names else str(i) for i in first]
        logger.warning(
            "%d question(s) of 'few_shot_pool' are %s: %s. Positions from 0: %s%s",
            len(positions),
            weakness,
            consequences[weakness],
            ", ".join(where),
            ", …" if len(positions) > len(first) else "",
        )
