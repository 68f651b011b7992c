"""Encoding the questions of the few-shot pool, as the recipe's retrieval does."""

from __future__ import annotations

import logging
from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ja_instruct import __version__
from ja_instruct.colbert import encode_questions
from ja_instruct.pipelines.rag_index.parameters import RagIndexParameters
from ja_instruct.records import as_dataset, require_columns
from ja_instruct.retrieval import ColbertCheckpoint, RetrievalIndex

if TYPE_CHECKING:
    from datasets import Dataset
else:
    # Kedro validates the parameters of a node only when all its hints resolve at run time, and
    # importing datasets takes a second that `kedro registry list` need not wait for.
    Dataset = Any

logger = logging.getLogger(__name__)

PACKAGES = ("ragatouille", "colbert-ai", "transformers", "torch")
NAMED_IN_WARNINGS = 10


def encode_pool(
    qa_pairs: Dataset, retriever_checkpoint: ColbertCheckpoint, params: RagIndexParameters
) -> tuple[RetrievalIndex, dict[str, Any]]:
    """Encode every question of the pool; warn about those that retrieval cannot do well with.

    Args:
        qa_pairs: The pool, with the columns ``input`` and ``output``.
        retriever_checkpoint: The encoder.
        params: Section ``rag_index``.

    Returns:
        The index, whose position i is record i of ``qa_pairs``, and the report.

    Raises:
        InputError: A column is missing, the pool is empty, or the checkpoint cannot be used.
    """
    pairs = as_dataset(qa_pairs, "qa_pairs")
    require_columns(pairs, ("input", "output"), "qa_pairs")
    questions: list[str] = list(pairs["input"])
    encoded = encode_questions(
        retriever_checkpoint.directory,
        questions,
        batch_size=params.batch_size,
        max_document_tokens=params.max_document_tokens,
    )
    findings = find_weak_questions(questions) | {"truncated": list(encoded.truncated)}
    names = [str(name) for name in pairs["id"]] if "id" in pairs.column_names else None
    _warn_of(findings, names, encoded.padded_length)
    index = RetrievalIndex(
        encoded=encoded,
        model_id=retriever_checkpoint.model_id,
        checkpoint_sha256=retriever_checkpoint.sha256,
        versions={"ja-instruct": __version__, **{name: version(name) for name in PACKAGES}},
    )
    summary = {
        "questions": len(questions),
        "dimension": encoded.embeddings.shape[1],
        "tokens": encoded.embeddings.shape[0],
    }
    summary |= {what: len(positions) for what, positions in findings.items()}
    report = {
        "summary": summary,
        "model_id": index.model_id,
        "checkpoint_sha256": index.checkpoint_sha256,
        "versions": index.versions,
        "positions": findings,
    }
    return index, report


def find_weak_questions(questions: list[str]) -> dict[str, list[int]]:
    """Return the positions of questions without text, and of those asked earlier already.

    >>> find_weak_questions(["日本の首都は?", " ", "富士山の高さは?", "日本の首都は? "])
    {'empty': [1], 'duplicated': [3]}
    """
    positions = defaultdict(list)
    for position, question in enumerate(questions):
        positions[question.strip()].append(position)
    empty = positions.pop("", [])
    later = [position for same in positions.values() for position in same[1:]]
    return {"empty": empty, "duplicated": sorted(later)}


def _warn_of(findings: dict[str, list[int]], names: list[str] | None, window: int) -> None:
    consequences = {
        "empty": "they are near to any query",
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
