"""A model directory whose answers end at ``max_new_tokens`` alone, and are read as token numbers.

What random weights say is no language: whether and when they end is chance, and most of their
tokens are in no tokenizer. So both sides of a comparison do the same work, and differ by a token
where their texts do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.models.directory import ModelDirectory, read_provenance

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EndlessModel(ModelDirectory):
    """A ``ModelDirectory`` as the product's engines take it."""

    @classmethod
    def at(cls, directory: Path) -> EndlessModel:
        """Return a directory that ``quantization`` has written, or one made like it.

        What the catalog's dataset would do beyond that is to hash all files.
        """
        provenance = read_provenance(directory)
        return cls(directory.resolve(), provenance["source"]["model_id"], provenance=provenance)

    def load_model(self, **kwargs: Any) -> PreTrainedModel:
        """Return the model, which stops at no token."""
        model = super().load_model(**kwargs)
        model.generation_config.eos_token_id = None
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer, which decodes to numbers."""
        tokenizer: Any = super().load_tokenizer()
        tokenizer.decode = lambda ids, **_: " ".join(str(int(token)) for token in ids)
        return tokenizer  # type: ignore[no-any-return]


def adapter_at(directory: Path) -> ModelDirectory:
    """Return an adapter's directory, unhashed too."""
    path = directory.resolve()
    return ModelDirectory(path, path.name, provenance=read_provenance(path))
