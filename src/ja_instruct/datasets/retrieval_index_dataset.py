"""``RetrievalIndexDataset``: an encoded pool of questions as safetensors and JSON."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

from ja_instruct.atomic import discard_unfinished, replacing
from ja_instruct.colbert import EncodedQuestions
from ja_instruct.errors import InputError
from ja_instruct.retrieval import RetrievalIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

TENSORS = "embeddings.safetensors"
DESCRIPTION = "index.json"


def _hash_questions(questions: Sequence[str]) -> str:
    return sha256(json.dumps(list(questions)).encode()).hexdigest()


class RetrievalIndexDataset(AbstractDataset[RetrievalIndex, RetrievalIndex]):
    """Loads and saves a ``RetrievalIndex`` as a directory of two files.

    ``embeddings.safetensors`` holds ``embeddings``, of shape (tokens, dimension), and ``lengths``,
    of shape (questions,); ``index.json`` the questions, the encoder and the versions. The directory
    appears whole or not at all.

    Examples:
        YAML API:

        ```yaml
        retrieval_index:
          type: ja_instruct.datasets.RetrievalIndexDataset
          filepath: data/04_feature/demo/retrieval_index
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
        >>> dataset.save(RetrievalIndex(encoded, "my-colbert", "5d41…"))
        >>> dataset.load().encoded.questions
        ('日本の首都は?',)
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The index's directory.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> RetrievalIndex:
        """Read the index; its embeddings are on the CPU.

        Raises:
            InputError: A file cannot be read, or the two do not belong together.
        """
        from safetensors import SafetensorError, safe_open

        try:
            content = json.loads((self._filepath / DESCRIPTION).read_text(encoding="utf-8"))
            with safe_open(self._filepath / TENSORS, framework="pt") as file:
                embeddings, lengths = file.get_tensor("embeddings"), file.get_tensor("lengths")
                questions_hash = (file.metadata() or {}).get("questions_sha256")
            index = RetrievalIndex(
                encoded=EncodedQuestions(
                    questions=tuple(content["questions"]),
                    embeddings=embeddings,
                    lengths=lengths,
                    padded_length=content["padded_length"],
                    truncated=tuple(content["truncated"]),
                ),
                model_id=content["model_id"],
                checkpoint_sha256=content["checkpoint_sha256"],
                versions=content["versions"],
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise self._unusable(f"cannot be read ({type(error).__name__}: {error})") from error
        if questions_hash != _hash_questions(index.encoded.questions):
            raise self._unusable(f"'{TENSORS}' was made of other questions than '{DESCRIPTION}'")
        self._check_shapes(index.encoded)
        return index

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

    def _unusable(self, reason: str) -> InputError:
        return InputError(
            f"{self._filepath}: {reason}; delete the directory and make the index again with "
            f"'kedro run --pipelines=rag_index'"
        )

    def save(self, data: RetrievalIndex) -> None:
        """Write both files to a new directory, which then takes the place of the old one."""
        from safetensors.torch import save_file

        encoded = data.encoded
        content = {
            "model_id": data.model_id,
            "checkpoint_sha256": data.checkpoint_sha256,
            "versions": data.versions,
            "dimension": encoded.embeddings.shape[1],
            "tokens": encoded.embeddings.shape[0],
            "padded_length": encoded.padded_length,
            "truncated": list(encoded.truncated),
            "questions": list(encoded.questions),
        }
        with replacing(self._filepath) as new:
            new.mkdir()
            save_file(
                {"embeddings": encoded.embeddings, "lengths": encoded.lengths},
                new / TENSORS,
                metadata={"questions_sha256": _hash_questions(encoded.questions)},
            )
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (new / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

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
        return all((self._filepath / name).is_file() for name in (TENSORS, DESCRIPTION))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
