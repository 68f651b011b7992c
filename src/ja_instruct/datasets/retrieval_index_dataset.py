"""``RetrievalIndexDataset``: a pool of questions, ready to be searched, as safetensors and JSON."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kedro.io import AbstractDataset

from ja_instruct.errors import InputError
from ja_instruct.retrieval.colbert import EncodedQuestions
from ja_instruct.retrieval.index import RetrievalIndex, Retriever
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

TENSORS = "embeddings.safetensors"
DESCRIPTION = "index.json"


def _hash_questions(questions: Sequence[str]) -> str:
    return sha256(json.dumps(list(questions)).encode()).hexdigest()


class RetrievalIndexDataset(AbstractDataset[RetrievalIndex, RetrievalIndex | None]):
    """Loads and saves a ``RetrievalIndex`` as a directory of one or two files.

    ``index.json`` holds the retriever, the questions, the encoder and the versions, which is all
    that BM25 needs; for the other retrievers ``embeddings.safetensors`` holds ``embeddings``, of
    shape (tokens, dimension), and ``lengths``, of shape (questions,). The directory appears whole
    or not at all.

    Examples:
        YAML API:

        ```yaml
        retrieval_index:
          type: ja_instruct.datasets.RetrievalIndexDataset
          filepath: data/04_feature/demo/retrieval_index
        ```

        What an earlier run left at the same place, or None where there is nothing of use:

        ```yaml
        previous_retrieval_index:
          type: ja_instruct.datasets.RetrievalIndexDataset
          filepath: data/04_feature/demo/retrieval_index
          optional: true
        ```

        Python API:

        >>> import torch
        >>> encoded = EncodedQuestions(
        ...     questions=("日本の首都は?",),
        ...     embeddings=torch.ones(3, 2),
        ...     lengths=torch.tensor([3]),
        ...     padded_length=8,
        ... )
        >>> dataset = RetrievalIndexDataset(filepath=tmp_path / "retrieval_index")
        >>> dataset.save(RetrievalIndex("colbert", encoded.questions, encoded, "my-colbert", "5d"))
        >>> dataset.load().encoded.questions
        ('日本の首都は?',)
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        optional: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The index's directory.
            optional: Load None where there is no index, or none that can be read.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._filepath = Path(filepath)
        self._optional = optional
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` when an index that is needed is not there."""
        if not self._optional and not self.exists():
            raise InputError(f"{self._filepath} does not exist")

    def load(self) -> RetrievalIndex | None:
        """Read the index; its embeddings are on the CPU.

        Raises:
            InputError: A file cannot be read, or the two do not belong together.
        """
        if not self._optional:
            return self._read()
        if not self.exists():
            return None
        try:
            return self._read()
        except InputError as error:
            logger.info("The earlier index cannot be reused: %s", error)
            return None

    def _read(self) -> RetrievalIndex:
        try:
            content = json.loads((self._filepath / DESCRIPTION).read_text(encoding="utf-8"))
            retriever, questions = content["retriever"], tuple(content["questions"])
            known = {
                name: content[name]
                for name in ("model_id", "checkpoint_sha256", "max_document_tokens", "versions")
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        if retriever not in get_args(Retriever):
            raise self._unusable(f"'{DESCRIPTION}' is for the unknown retriever '{retriever}'")
        encoded = None if retriever == "bm25" else self._read_encoded(content)
        return RetrievalIndex(retriever, questions, encoded, **known)

    def _read_encoded(self, content: dict[str, Any]) -> EncodedQuestions:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._filepath / TENSORS, framework="pt") as file:
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
            raise self._unreadable(error) from error
        if questions_hash != _hash_questions(encoded.questions):
            raise self._unusable(f"'{TENSORS}' was made of other questions than '{DESCRIPTION}'")
        self._check_shapes(encoded)
        return encoded

    def _check_shapes(self, encoded: EncodedQuestions) -> None:
        embeddings, lengths = encoded.embeddings, encoded.lengths
        if embeddings.ndim != 2 or tuple(lengths.shape) != (len(encoded.questions),):
            raise self._unusable(
                f"'{DESCRIPTION}' names {len(encoded.questions)} questions, but the tensors have "
                f"the shapes {tuple(embeddings.shape)} and {tuple(lengths.shape)}"
            )
        if int(lengths.sum()) != embeddings.shape[0] or lengths.max() > encoded.padded_length:
            raise self._unusable(
                f"'lengths' adds up to {int(lengths.sum())} tokens, at most {int(lengths.max())} a "
                f"question; there are {embeddings.shape[0]} embeddings and the window is "
                f"{encoded.padded_length}"
            )

    def _unreadable(self, error: Exception) -> InputError:
        return self._unusable(f"cannot be read ({type(error).__name__}: {error})")

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"{self._filepath}: {reason}; delete the directory and make the index again with "
            f"'kedro run --pipelines=rag_index'"
        )

    def save(self, data: RetrievalIndex) -> None:
        """Write to a new directory, which then takes the place of the old one."""
        content: dict[str, Any] = {
            "retriever": data.retriever,
            "model_id": data.model_id,
            "checkpoint_sha256": data.checkpoint_sha256,
            "max_document_tokens": data.max_document_tokens,
            "versions": data.versions,
        }
        encoded = data.encoded
        if encoded is not None:
            content |= {
                "dimension": encoded.embeddings.shape[1],
                "tokens": encoded.embeddings.shape[0],
                "padded_length": encoded.padded_length,
                "truncated": list(encoded.truncated),
            }
        content["questions"] = list(data.questions)
        with replacing(self._filepath) as new:
            new.mkdir()
            if encoded is not None:
                self._write_tensors(encoded, new / TENSORS)
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (new / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def _write_tensors(self, encoded: EncodedQuestions, path: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {"embeddings": encoded.embeddings, "lengths": encoded.lengths},
            path,
            metadata={"questions_sha256": _hash_questions(encoded.questions)},
        )

    def preview(self, nrows: int = 5) -> Any:
        """Return what the index was made with and its first questions, for kedro-viz."""
        from kedro_datasets._typing import JSONPreview

        content = json.loads((self._filepath / DESCRIPTION).read_text(encoding="utf-8"))
        content["questions"] = content["questions"][:nrows]
        return JSONPreview(json.dumps(content, ensure_ascii=False))

    def discard_unfinished(self) -> None:
        """Tidy up after a process that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _exists(self) -> bool:
        # whole or not at all, and what holds no tensors is BM25's
        return (self._filepath / DESCRIPTION).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "optional": self._optional}
