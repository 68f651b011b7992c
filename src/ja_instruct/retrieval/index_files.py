"""A ``RetrievalIndex`` on the disk: a directory of ``index.json`` and, for ColBERT, safetensors.

``index.json`` holds the retriever, the questions, the encoder and package versions, which is all
that BM25 needs. ``embeddings.safetensors`` holds ``embeddings``, of shape (tokens, dimension), and
``lengths``, of shape (questions,).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from ja_instruct.errors import InputError
from ja_instruct.models.safetensors import read_headers
from ja_instruct.retrieval.colbert import EncodedQuestions
from ja_instruct.retrieval.index import ColbertCheckpoint, RetrievalIndex, Retriever
from ja_instruct.tables.atomic import discard_unfinished, replacing
from ja_instruct.tables.json_objects import JSONObject, read_json_object
from ja_instruct.tables.json_text import as_json

logger = logging.getLogger(__name__)

TENSORS = "embeddings.safetensors"
DESCRIPTION = "index.json"
ENCODER_FIELDS = ("model_id", "checkpoint_sha256", "max_document_tokens", "versions")
_REMEDY = "delete the directory and make the index again with 'kedro run --pipelines=rag_index'"


class _Description(JSONObject):
    retriever: str
    questions: list[str]
    model_id: str | None
    checkpoint_sha256: str | None
    max_document_tokens: int | None
    versions: dict[str, str]
    padded_length: int = 0
    truncated: list[int] = Field([])


class EncodingCache:
    """The questions that an earlier run encoded, so that the next encodes only new ones.

    The node that encodes reads the cache and writes to it; deleting the directory makes the next
    run encode everything. It is a dataset apart from ``retrieval_index``, because in Kedro no node
    may read what it writes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(
        self,
        checkpoint: ColbertCheckpoint,
        max_document_tokens: int | None,
        versions: Mapping[str, str],
    ) -> EncodedQuestions | None:
        """Return the questions that were encoded exactly as they would be now.

        It is None when there are none, an argument differs, or a file cannot be read.
        """
        if not self._directory.exists():
            return None
        try:
            index = read_index(self._directory)
        except InputError as error:
            logger.info("all questions are encoded, as the cache cannot be used: %s", error)
            return None
        is_same = (
            index.max_document_tokens == max_document_tokens
            and all(index.versions.get(name) == version for name, version in versions.items())
            and index.checkpoint_sha256 == checkpoint.sha256
        )
        return index.encoded if is_same else None

    def write(self, index: RetrievalIndex) -> None:
        """Save the encoded questions of an index in place of the earlier ones."""
        discard_unfinished(self._directory)
        write_index(index, self._directory)


def read_index(directory: Path) -> RetrievalIndex:
    """Read an index; its embeddings are on the CPU.

    Raises:
        InputError: A file cannot be read, or the two files do not belong together.
    """
    content = read_description(directory)
    encoded = None if content["retriever"] == "bm25" else _read_encoded(directory, content)
    encoder = {name: content[name] for name in ENCODER_FIELDS}
    return RetrievalIndex(content["retriever"], tuple(content["questions"]), encoded, **encoder)


def read_description(directory: Path) -> dict[str, Any]:
    """Return ``index.json``; it raises ``InputError`` like ``read_index``."""
    content = read_json_object(directory / DESCRIPTION, _REMEDY, _Description)
    retriever = content["retriever"]
    if retriever not in get_args(Retriever):
        raise _unusable(directory, f"'{DESCRIPTION}' is for the unknown retriever '{retriever}'")
    return content


def check_index(directory: Path) -> None:
    """Raise ``InputError`` if a file cannot be read; the embeddings' header alone is read."""
    if read_description(directory)["retriever"] == "bm25":
        return
    try:
        tensors = read_headers(directory)
    except InputError as error:
        raise _unusable(directory, str(error)) from error
    if not {"embeddings", "lengths"} <= tensors.keys():
        raise _unusable(directory, f"no '{TENSORS}' with 'embeddings' and 'lengths'")


def write_index(index: RetrievalIndex, directory: Path) -> None:
    """Write an index, which appears complete or not at all and replaces an older one."""
    content: dict[str, Any] = {"retriever": index.retriever}
    content |= {name: getattr(index, name) for name in ENCODER_FIELDS}
    encoded = index.encoded
    if encoded is not None:
        content |= {
            "dimension": encoded.embeddings.shape[1],
            "tokens": encoded.embeddings.shape[0],
            "padded_length": encoded.padded_length,
            "truncated": list(encoded.truncated),
        }
    content["questions"] = list(index.questions)
    with replacing(directory) as new:
        new.mkdir()
        if encoded is not None:
            from safetensors.torch import save_file

            save_file(
                {"embeddings": encoded.embeddings, "lengths": encoded.lengths},
                new / TENSORS,
                metadata={"questions_sha256": _hash_questions(encoded.questions)},
            )
        (new / DESCRIPTION).write_text(as_json(content), encoding="utf-8")


def _hash_questions(questions: Sequence[str]) -> str:
    return sha256(json.dumps(list(questions)).encode()).hexdigest()


def _read_encoded(directory: Path, content: dict[str, Any]) -> EncodedQuestions:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(directory / TENSORS, framework="pt") as file:
            embeddings, lengths = file.get_tensor("embeddings"), file.get_tensor("lengths")
            questions_hash = (file.metadata() or {}).get("questions_sha256")
        encoded = EncodedQuestions(
            questions=tuple(content["questions"]),
            embeddings=embeddings,
            lengths=lengths,
            padded_length=content["padded_length"],
            truncated=tuple(content["truncated"]),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(directory, error) from error
    if questions_hash != _hash_questions(encoded.questions):
        fault = f"'{TENSORS}' was made from other questions than '{DESCRIPTION}'"
        raise _unusable(directory, fault)
    if embeddings.ndim != 2 or tuple(lengths.shape) != (len(encoded.questions),):
        fault = (
            f"'{DESCRIPTION}' names {len(encoded.questions)} questions, but the tensors have the "
            f"shapes {tuple(embeddings.shape)} and {tuple(lengths.shape)}"
        )
        raise _unusable(directory, fault)
    if int(lengths.sum()) != embeddings.shape[0] or lengths.max() > encoded.padded_length:
        fault = (
            f"'lengths' adds up to {int(lengths.sum())} tokens, at most {int(lengths.max())} a "
            f"question; there are {embeddings.shape[0]} embeddings and the window is "
            f"{encoded.padded_length}"
        )
        raise _unusable(directory, fault)
    return encoded


def _unreadable(directory: Path, error: Exception) -> InputError:
    return _unusable(directory, f"cannot be read ({type(error).__name__}: {error})")


def _unusable(directory: Path, fault: str) -> InputError:
    return InputError(f"{directory}: {fault}; {_REMEDY}")
