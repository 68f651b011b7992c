"""``TokenizerDataset``: a model's tokenizer alone, for counting tokens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.checks import ChecksInput
from ja_instruct.datasets.base import InputDataset
from ja_instruct.datasets.hub_model_dataset import HubModelDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.hub import cached_commit, check_repository, hub_errors, is_cached
from kedro_freshness.fingerprints import fingerprint_dataset, fingerprint_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
_AS_FILEPATH = "give the tokenizer's directory as 'filepath'"


class TokenizerDataset(InputDataset["Tokenizer | None"]):
    """Loads a ``tokenizers.Tokenizer`` without truncation and padding; it does not save.

    The library tokenizers reads ``tokenizer.json``: importing transformers for it takes 4 s.

    Examples:
        YAML API, with a hub repository, from which only ``tokenizer.json`` is downloaded, with a
        directory, and with the catalog entry of a model:

        ```yaml
        tokenizer_of_hub:
          type: ja_instruct.datasets.TokenizerDataset
          repo_id: google/gemma-2-27b
          required: false

        tokenizer_of_directory:
          type: ja_instruct.datasets.TokenizerDataset
          filepath: data/06_models/test/tiny_gemma2

        tokenizer_of_model:
          type: ja_instruct.datasets.TokenizerDataset
          model:
            type: ja_instruct.datasets.ModelDirectoryDataset
            filepath: /models/gemma-2-27b
        ```

        Python API:

        >>> from tokenizers import Tokenizer, models
        >>> characters = models.WordLevel({"日本": 0, "?": 1}, unk_token="?")
        >>> Tokenizer(characters).save(str(tmp_path / "tokenizer.json"))
        >>> tokenizer = TokenizerDataset(filepath=tmp_path).load()
        >>> tokenizer.encode("日本", add_special_tokens=False).ids
        [0]
        >>> TokenizerDataset(filepath=tmp_path / "missing").load()
        Traceback (most recent call last):
            ...
        ja_instruct.errors.InputError: ...missing/tokenizer.json: no such file; ...
    """

    def __init__(
        self,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
        filepath: str | Path | None = None,
        model: dict[str, Any] | None = None,
        required: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset from exactly one of ``repo_id``, ``filepath`` and ``model``.

        Args:
            repo_id: ``owner/name`` on the hub.
            revision: Branch, tag or commit of the repository; None is its default branch.
            filepath: A directory with ``tokenizer.json``, or the file.
            model: The catalog entry of a dataset that loads a ``ModelDirectory``.
            required: If false, ``load`` returns None for a tokenizer that is not available.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.

        Raises:
            InputError: Not exactly one source is given, or ``model`` is not a mapping, or is a
                model that would be downloaded whole.
            DatasetError: Kedro cannot create a dataset from ``model``.
        """
        given = [source for source in (repo_id, filepath, model) if source is not None]
        if len(given) != 1 or (revision is not None and repo_id is None):
            raise InputError(
                "a tokenizer comes from a hub repository ('repo_id', with an optional 'revision'), "
                "a directory ('filepath') or a model ('model'); give exactly one of the three in "
                "the catalog"
            )
        if not isinstance(model, dict | None):
            raise InputError(
                f"a tokenizer's 'model' is {model!r:.60}: write the whole catalog entry of the "
                f"model there, with its 'type'"
            )
        self._repo_id = repo_id or ""
        self._revision = revision
        self._filepath = None if filepath is None else Path(filepath)
        self._model = None if model is None else AbstractDataset.from_config("model", model)
        self._required = required
        self._loaded: list[Tokenizer | None] = []
        self.metadata = metadata
        if isinstance(self._model, HubModelDataset):
            raise InputError(
                "a tokenizer's 'model' would be downloaded whole: give the hub repository as "
                "'repo_id' instead, which downloads only the tokenizer"
            )

    def check(self) -> None:
        """Raise ``InputError`` if a required tokenizer is not available; download nothing."""
        if not self._required:
            return
        if self._filepath is not None:
            _require_file(self._filepath)
        elif self._model is None:
            _check_hub(self._repo_id, self._revision)
        elif isinstance(self._model, ChecksInput):
            self._model.check()

    def fingerprint(self) -> str | None:
        """Return the file's content, or what identifies model or commit; None if not available."""
        if self._filepath is not None:
            file = _locate(self._filepath)
            return fingerprint_path(file) if file.is_file() else None
        if self._model is not None:
            return fingerprint_dataset(self._model)
        commit = cached_commit(self._repo_id, self._revision, "model")
        return commit and f"{self._repo_id}@{commit}"

    def load(self) -> Tokenizer | None:
        """Return the tokenizer; None, with a warning, if it is neither required nor available.

        Truncation and padding, which a tokenizer saved after training may have, are off, so the
        length of what ``encode`` returns is the length of the text; what spells a special token is
        text. The tokenizer is read once: it takes a second, and several nodes load it.

        Raises:
            InputError: The tokenizer is required and not available.
        """
        if not self._loaded:
            try:
                self._loaded.append(_read_tokenizer(self._find_file()))
            except InputError as error:
                if self._required:
                    raise
                logger.warning("No lengths in tokens, because there is no tokenizer: %s", error)
                self._loaded.append(None)
        return self._loaded[0]

    def _find_file(self) -> Path:
        if self._filepath is not None:
            return _require_file(self._filepath)
        if self._model is None:
            return _download(self._repo_id, self._revision)
        try:
            directory = self._model.load()
        except InputError:
            raise
        except DatasetError as error:
            # Kedro turns every other error into this one
            raise InputError(f"the model of the tokenizer cannot be loaded: {error}") from error
        if not isinstance(directory, ModelDirectory):
            raise InputError(
                f"{type(self._model).__name__} loads a {type(directory).__name__}, not a model "
                f"directory: give another 'model' in the tokenizer's catalog entry"
            )
        return _require_file(directory.path)

    def _release(self) -> None:
        self._loaded.clear()

    def _exists(self) -> bool:
        if self._filepath is not None:
            return _locate(self._filepath).is_file()
        if self._model is not None:
            return self._model.exists()
        return is_cached(self._repo_id, self._revision, TOKENIZER_FILE)


def _locate(path: Path) -> Path:
    return path if path.suffix == ".json" else path / TOKENIZER_FILE


def _require_file(path: Path) -> Path:
    file = _locate(path)
    if not file.is_file():
        raise InputError(
            f"{file}: no such file; correct the tokenizer's catalog entry, or write the file with "
            f"'save_pretrained' of the model's tokenizer in transformers"
        )
    return file


def _read_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{file}: not a tokenizer that the library tokenizers can read ({error}); write or "
            f"download the file again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_hub(repo_id: str, revision: str | None) -> None:
    """Raise ``InputError`` unless the hub or its local cache has the repository's tokenizer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        if is_cached(repo_id, revision, TOKENIZER_FILE):
            return
        check_repository(repo_id, revision, "model")
        has_file = HfApi().file_exists(repo_id, TOKENIZER_FILE, revision=revision)
    except HFValidationError as error:
        raise InputError(
            f"model '{repo_id}': not a repository name ({error}); write 'repo_id' as owner/name"
        ) from error
    except hub_errors() as error:
        raise InputError(
            f"model '{repo_id}': its {TOKENIZER_FILE} is not in the local cache, and the hub "
            f"cannot be reached ({type(error).__name__}): check the network and HF_HUB_OFFLINE, or "
            f"{_AS_FILEPATH}"
        ) from error
    if not has_file:
        raise InputError(
            f"model '{repo_id}' has no {TOKENIZER_FILE} on the hub: write one with "
            f"'save_pretrained' of its tokenizer in transformers, and {_AS_FILEPATH}"
        )


def _download(repo_id: str, revision: str | None) -> Path:
    """Return the downloaded file; ``Tokenizer.from_pretrained`` would not name it in errors."""
    from huggingface_hub import hf_hub_download

    # checked first, because hf_hub_download retries for half a minute if the hub is unreachable
    _check_hub(repo_id, revision)
    try:
        return Path(hf_hub_download(repo_id, TOKENIZER_FILE, revision=revision))
    except hub_errors() as error:
        raise InputError(
            f"model '{repo_id}': its {TOKENIZER_FILE} could not be downloaded ({error}): check the "
            f"network and the free disk, or {_AS_FILEPATH}"
        ) from error
