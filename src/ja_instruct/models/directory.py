"""Models as the catalog hands them to nodes: directories to load from, objects to save."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.checksums import file_checksums
from ja_instruct.models.safetensors import SIXTEEN_BITS_OR_MORE, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE_FILE = "ja_instruct.json"
CARD_FILE = "README.md"
# people edit the card; the other cannot hold its own checksum
_NOT_HASHED = frozenset((PROVENANCE_FILE, CARD_FILE))
_BY_THIS_PROJECT = (
    "give the publisher's 16-bit weights, so that the 4-bit model is the product of this project "
    "alone"
)


@dataclass(frozen=True)
class ModelDirectory:
    """A local model directory and where its weights come from.

    Attributes:
        path: Directory with ``config.json``, safetensors and the tokenizer.
        model_id: The name of the model, as its publisher gives it.
        revision: Commit, tag or checksum of the source, where known.
        provenance: What ``ja_instruct.json`` in the directory says; empty for foreign directories.
    """

    path: Path
    model_id: str
    revision: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def checksums(self, description: str) -> dict[str, dict[str, Any]]:
        """Return SHA-256 and bytes of every file: weights, configuration, tokenizer.

        Args:
            description: Shown beside the progress.
        """
        names = sorted(path.name for path in self.path.iterdir() if path.is_file())
        return file_checksums(self.path, names, description)

    def load_config(self) -> dict[str, Any]:
        """Return ``config.json``."""
        config: dict[str, Any] = json.loads((self.path / "config.json").read_text("utf-8"))
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer saved beside the weights."""
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.path, local_files_only=True
        )
        return tokenizer

    def load_model(self, **kwargs: Any) -> PreTrainedModel:
        """Return the causal language model; ``kwargs`` go to ``from_pretrained``."""
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.path, local_files_only=True, **kwargs
        )
        return model


@dataclass(frozen=True)
class ModelArtifact:
    """A model in memory on its way to a directory.

    Attributes:
        model: A transformers model, or a PEFT model whose adapter is to be saved.
        tokenizer: Saved beside the weights.
        provenance: Written to ``ja_instruct.json``: source, settings, library versions.
        card: Written as ``README.md``, in the place of what a library puts there; empty for none.
    """

    model: Any
    tokenizer: Any
    provenance: dict[str, Any]
    card: str = ""


def parameter_count(directory: Path) -> int:
    """Return the number of weights in a directory's safetensors files, from their headers.

    For a quantized directory the count that quantization noted is returned: 4-bit weights are
    stored two to an element.
    """
    noted = read_provenance(directory).get("parameters")
    if noted is not None:
        return int(noted)
    return sum(math.prod(tensor.shape) for tensor in read_headers(directory).values())


def require_model_files(directory: Path, remedy: str) -> None:
    """Raise ``InputError`` unless ``directory`` holds a configuration and safetensors weights.

    Args:
        directory: A model directory.
        remedy: What to do about it, appended to the message.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory; {remedy}")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json, so this is no model directory; {remedy}")
    if not any(directory.glob("*.safetensors")):
        raise InputError(f"{directory}: no *.safetensors weights; {remedy}")


def refuse_quantized_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` when a ``config.json`` says that somebody has quantized the model.

    Args:
        config: The file's content; of a multimodal checkpoint the language model's part counts
            too.
        where: The model, for the message: ``'google/gemma-2-27b' at /models/gemma``.
    """
    found = config.get("quantization_config") or config.get("text_config", {}).get(
        "quantization_config"
    )
    if found:
        method = found.get("quant_method", "unknown")
        raise InputError(f"base_model {where} is quantized already ({method}); {_BY_THIS_PROJECT}")


def refuse_quantized_types(dtypes: Iterable[str], where: str) -> None:
    """Raise ``InputError`` when weights are of fewer than 16 bits.

    Args:
        dtypes: As safetensors names them: ``BF16``.
        where: The model or the tensor, for the message.
    """
    found = sorted(set(dtypes) - SIXTEEN_BITS_OR_MORE)
    if found:
        raise InputError(
            f"base_model {where} has weights of type {', '.join(found)}, not of "
            f"{', '.join(sorted(SIXTEEN_BITS_OR_MORE))} alone: it is quantized already; "
            f"{_BY_THIS_PROJECT}"
        )


def refuse_quantized(model: ModelDirectory) -> None:
    """Raise ``InputError`` when somebody has quantized ``model`` already.

    Not only its configuration is asked: weights of fewer than 16 bits give themselves away by
    their type, whatever the configuration claims.
    """
    refuse_quantized_config(model.load_config(), f"'{model.model_id}' at {model.path}")
    for name, tensor in read_headers(model.path).items():
        refuse_quantized_types([tensor.dtype], f"'{model.model_id}': '{name}' in {tensor.path}")


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return ``ja_instruct.json`` of a directory, or an empty dictionary where it has none."""
    path = directory / PROVENANCE_FILE
    if not path.is_file():
        return {}
    provenance: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return provenance


def write_provenance(directory: Path, provenance: dict[str, Any]) -> None:
    """Write ``ja_instruct.json`` with the checksums of the files already in ``directory``.

    ``files`` has every file but the card and itself, ``weights_sha256`` the weights alone, by
    which an adapter knows its base.
    """
    names = [
        path.relative_to(directory).as_posix()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in _NOT_HASHED
    ]
    files = file_checksums(directory, names, "hashing what was saved")
    weights = {
        name: noted["sha256"] for name, noted in files.items() if name.endswith(".safetensors")
    }
    content = {**provenance, "weights_sha256": weights, "files": files}
    (directory / PROVENANCE_FILE).write_text(
        json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
