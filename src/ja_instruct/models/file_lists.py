"""Whether a model has the files that it needs, by their names."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.models.json_files import CONFIG_FILE, INDEX_FILE, read_weight_map
from ja_instruct.models.vocabulary import TOKENIZER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# of fast tokenizers, SentencePiece, BPE and WordPiece
_TOKENIZER_PATTERNS = (TOKENIZER_FILE, "*.model", "vocab.*")
_LISTED = 5


def require_listed_files(names: Iterable[str], where: str) -> None:
    """Raise ``InputError`` without weights, configuration and tokenizer among a model's files.

    ``where`` names the model in the message: ``'google/gemma-2-27b' on the hub``.
    """
    found = [name for name in names if "/" not in name]
    kinds = {
        CONFIG_FILE: (CONFIG_FILE,),
        "*.safetensors": ("*.safetensors",),
        "tokenizer": _TOKENIZER_PATTERNS,
    }
    missing = [
        kind
        for kind, patterns in kinds.items()
        if not any(fnmatch(name, pattern) for name in found for pattern in patterns)
    ]
    if missing:
        raise InputError(
            f"base_model {where} has no {', no '.join(missing)} (it has "
            f"{', '.join(found[:_LISTED]) or 'no files'}{', …' if len(found) > _LISTED else ''}); "
            f"choose another repository, or save its model and tokenizer with 'save_pretrained' of "
            f"transformers and use the directory (ModelDirectoryDataset)"
        )


def require_indexed_files(directory: Path, names: Iterable[str], remedy: str) -> None:
    """Raise ``InputError``, which ends with ``remedy``, if the index lists a file that is missing.

    Args:
        directory: Has the index, if there is one.
        names: The files of the weights that exist.
        remedy: The end of the message.
    """
    indexed = (read_weight_map(directory, remedy) or {}).values()
    missing = sorted(set(indexed) - set(names))
    if missing:
        raise InputError(
            f"{directory / INDEX_FILE} lists {len(missing)} file(s) that do not exist, such as "
            f"{missing[0]}; {remedy}"
        )
