"""Models as the catalog hands them to nodes: directories to load from, objects to save."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROVENANCE_FILE = "ja_instruct.json"


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
    """

    model: Any
    tokenizer: Any
    provenance: dict[str, Any]


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_checksums(directory: Path) -> dict[str, str]:
    """Return file name to SHA-256 for every safetensors file of a model directory."""
    return {path.name: sha256_of(path) for path in sorted(directory.glob("*.safetensors"))}


def parameter_count(directory: Path) -> int:
    """Return the number of weights in a directory's safetensors files, from their headers.

    For a quantized directory the count that quantization noted is returned: 4-bit weights are
    stored two to an element.
    """
    noted = read_provenance(directory).get("parameters")
    if noted is not None:
        return int(noted)
    from safetensors import safe_open

    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return total


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


def refuse_quantized(model: ModelDirectory) -> None:
    """Raise ``InputError`` when somebody has quantized ``model`` already."""
    config = model.load_config()
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise InputError(
            f"base_model '{model.model_id}' at {model.path} is quantized already ({method}); give "
            f"the publisher's 16-bit weights, so that the 4-bit model is the product of this "
            f"project alone"
        )


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return ``ja_instruct.json`` of a directory, or an empty dictionary where it has none."""
    path = directory / PROVENANCE_FILE
    if not path.is_file():
        return {}
    provenance: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return provenance


def write_provenance(directory: Path, provenance: dict[str, Any]) -> None:
    """Write ``ja_instruct.json`` with the checksums of the weights already in ``directory``."""
    content = {**provenance, "weights_sha256": weight_checksums(directory)}
    (directory / PROVENANCE_FILE).write_text(
        json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
