"""Model directories: the handles that nodes load from, and the artifacts that they return."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.checksums import FileRecord, file_checksums
from ja_instruct.models.file_lists import require_indexed_files
from ja_instruct.models.json_files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    PROVENANCE_FILE,
    read_config,
    read_generation_config,
    read_provenance,
    remedy_of,
)
from ja_instruct.models.safetensors import SIXTEEN_BITS_OR_MORE, read_headers
from ja_instruct.models.text_model import (
    HEAD,
    causal_config,
    is_multimodal,
    load_text_model,
    text_name,
)
from ja_instruct.models.vocabulary import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    check_tokenizer,
)
from ja_instruct.tables.json_text import as_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CARD_FILE = "README.md"
# The card may be edited; the provenance cannot contain its own checksum.
_NOT_HASHED = frozenset((PROVENANCE_FILE, CARD_FILE))
_REMEDY_16_BITS = (
    "give the publisher's 16-bit weights, so that the 4-bit model is the product of this project "
    "alone"
)


@dataclass(frozen=True)
class ModelDirectory:
    """A local model directory and the origin of its weights.

    Attributes:
        path: Directory with ``config.json``, safetensors and the tokenizer.
        model_id: The publisher's name of the model.
        revision: Commit, tag or checksum of the source, if known.
        provenance: The content of ``ja_instruct.json``; empty if the directory has none.
    """

    path: Path
    model_id: str
    revision: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """How to replace a file of the directory that cannot be read."""
        return remedy_of(self.provenance.get("stage"))

    def checksums(self, description: str) -> dict[str, FileRecord]:
        """Return the SHA-256 and the size of every file: weights, configuration, tokenizer."""
        names = sorted(path.name for path in self.path.iterdir() if path.is_file())
        return file_checksums(self.path, names, description)

    def load_config(self) -> dict[str, Any]:
        """Return ``config.json``."""
        return read_config(self.path, self.remedy)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer saved with the weights.

        Raises:
            InputError: Its files cannot be read.
        """
        from transformers import AutoTokenizer

        with self._naming(TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path, local_files_only=True
            )
        return tokenizer

    def load_causal_config(self) -> PreTrainedConfig:
        """Return the configuration of the causal language model.

        A stored head is not tied, even if the configuration or its default ties it.

        Raises:
            InputError: It cannot be read, or transformers has no such causal language model.
        """
        with self._naming(CONFIG_FILE):
            config: Any = causal_config(self.path)
        if HEAD in map(text_name, read_headers(self.path)):
            config.tie_word_embeddings = False
        return config  # type: ignore[no-any-return]

    def load_model(self, **kwargs: Any) -> PreTrainedModel:
        """Return the causal language model; ``kwargs`` are passed to ``from_pretrained``.

        From a multimodal checkpoint only the language model is loaded.

        Raises:
            InputError: Its configuration cannot be read.
        """
        from transformers import AutoModelForCausalLM, GenerationConfig

        config = self.load_causal_config()
        if (self.path / GENERATION_FILE).exists():
            # transformers would use its defaults in place of a file that it cannot read
            with self._naming(GENERATION_FILE):
                GenerationConfig.from_pretrained(self.path, local_files_only=True)
        if is_multimodal(self.load_config()):
            return load_text_model(self.path, config, **kwargs)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.path, local_files_only=True, **kwargs
        )
        return model

    def load_adapter(self, model: PreTrainedModel, **kwargs: Any) -> PeftModel:
        """Return ``model`` with this adapter; ``kwargs`` are passed to ``from_pretrained``.

        Raises:
            InputError: The adapter's configuration cannot be read.
        """
        from peft import PeftConfig, PeftModel

        with self._naming(ADAPTER_CONFIG_FILE):
            PeftConfig.from_pretrained(str(self.path))
        return PeftModel.from_pretrained(model, str(self.path), **kwargs)

    @contextmanager
    def _naming(self, *names: str) -> Iterator[None]:
        """Name the files in the error of a library that loads them."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            found = [name for name in names if (self.path / name).exists()] or names
            files = " or ".join(str(self.path / name) for name in found)
            fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise InputError(f"{files} cannot be loaded ({fault}); {self.remedy}") from error


@dataclass(frozen=True)
class ModelArtifact:
    """A model to be saved to a directory.

    Attributes:
        model: A transformers model, a PEFT model whose adapter is saved, or a ``MergedModel``: each
            has ``save_pretrained``.
        tokenizer: Saved with the weights.
        provenance: Saved as ``ja_instruct.json``: source, settings, library versions.
        card: Saved as ``README.md``, replacing a library's own card; empty for none.
    """

    model: Any  # the libraries' signatures of save_pretrained differ
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    card: str = ""


def parameter_count(directory: Path) -> int:
    """Return the number of weights in a model directory, without reading them.

    A quantized directory stores two 4-bit weights in an element; its count is the one that
    quantization recorded.
    """
    recorded = read_provenance(directory).get("parameters")
    if recorded is not None:
        return int(recorded)
    return sum(math.prod(tensor.shape) for tensor in read_headers(directory).values())


def module_names(directory: Path) -> frozenset[str]:
    """Return the names of a directory's matrices, without reading their weights."""
    weights = {
        name.removesuffix(".weight")
        for name, tensor in read_headers(directory).items()
        if name.endswith(".weight") and len(tensor.shape) > 1
    }
    return frozenset(weights)


def require_model_files(directory: Path, remedy: str) -> None:
    """Raise ``InputError``, which ends with ``remedy``, without configuration or safetensors."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory; {remedy}")
    if not (directory / CONFIG_FILE).exists():
        raise InputError(f"{directory}: no {CONFIG_FILE}, so not a model directory; {remedy}")
    if not any(directory.glob("*.safetensors")):
        raise InputError(f"{directory}: no *.safetensors weights; {remedy}")


def check_json_files(directory: Path, remedy: str) -> None:
    """Raise ``InputError``, which ends with ``remedy``, for a JSON file that cannot be used.

    The ids of the tokenizer must have rows in the model's embedding, a multimodal checkpoint must
    contain a causal language model, and the files of the index must exist.
    """
    config = read_config(directory, remedy)
    if is_multimodal(config):
        causal_config(directory)
    read_generation_config(directory, remedy)
    names = [path.name for path in directory.glob("*.safetensors")]
    require_indexed_files(directory, names, remedy)
    check_tokenizer(directory, config, remedy)


def refuse_quantized_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ``InputError`` if a ``config.json`` describes a quantized model.

    The language model's part of a multimodal model is checked too. ``where`` names the model in
    the message: ``'google/gemma-2-27b' at /models/gemma``.
    """
    text = config.get("text_config", {})
    found = config.get("quantization_config") or text.get("quantization_config")
    if found:
        method = found.get("quant_method", "unknown")
        raise InputError(f"base_model {where} is quantized already ({method}); {_REMEDY_16_BITS}")


def refuse_quantized_types(dtypes: Iterable[str], where: str) -> None:
    """Raise ``InputError`` if weights, whose types are like ``BF16``, have fewer than 16 bits."""
    found = sorted(set(dtypes) - SIXTEEN_BITS_OR_MORE)
    if found:
        raise InputError(
            f"base_model {where} has weights of type {', '.join(found)}, not only "
            f"{', '.join(sorted(SIXTEEN_BITS_OR_MORE))}: it is quantized already; {_REMEDY_16_BITS}"
        )


def refuse_quantized(model: ModelDirectory) -> None:
    """Raise ``InputError`` if ``model`` is quantized, by its configuration or its weights' types.

    Weights of fewer than 16 bits are detected even if the configuration does not mention them.
    """
    refuse_quantized_config(model.load_config(), f"'{model.model_id}' at {model.path}")
    for name, tensor in read_headers(model.path).items():
        refuse_quantized_types([tensor.dtype], f"'{model.model_id}': '{name}' in {tensor.path}")


def write_provenance(directory: Path, provenance: dict[str, Any]) -> None:
    """Write ``ja_instruct.json`` with the checksums of all files already in ``directory``.

    ``files`` lists every file except the card and ``ja_instruct.json`` itself; ``weights_sha256``
    lists the weights, which identify the base of an adapter.
    """
    names = [
        path.relative_to(directory).as_posix()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in _NOT_HASHED
    ]
    files = file_checksums(directory, names, "hashing the saved files")
    weights = {
        name: record["sha256"] for name, record in files.items() if name.endswith(".safetensors")
    }
    content = {**provenance, "weights_sha256": weights, "files": files}
    (directory / PROVENANCE_FILE).write_text(as_json(content), "utf-8")
