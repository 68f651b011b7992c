"""``HubModelDataset``: a base model on the Hugging Face hub."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.base import InputDataset
from ja_instruct.models.directory import (
    ModelDirectory,
    check_json_files,
    refuse_quantized,
    refuse_quantized_config,
    refuse_quantized_types,
)
from ja_instruct.models.file_lists import require_indexed_files, require_listed_files
from ja_instruct.models.hub import (
    ModelListing,
    cached_commit,
    check_repository,
    download_model,
    fetch_file,
    list_model,
    module_names,
    pending_download_bytes,
)
from ja_instruct.models.json_files import INDEX_FILE, read_config
from ja_instruct.models.safetensors import BYTES_OF
from ja_instruct.models.text_model import causal_config, is_multimodal
from ja_instruct.models.vocabulary import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    from pathlib import Path


class HubModelDataset(InputDataset[ModelDirectory]):
    """A model on the hub, downloaded to the hub's cache when it is loaded.

    Examples:
        YAML API:

        ```yaml
        base_model:
          type: ja_instruct.datasets.HubModelDataset
          repo_id: google/gemma-2-27b
          revision: main
        ```

        Python API:

        >>> HubModelDataset(repo_id="google/gemma-2-27b")
        ja_instruct.datasets.hub_model_dataset.HubModelDataset(repo_id='google/gemma-2-27b')
    """

    def __init__(
        self,
        *,
        repo_id: str,
        revision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            repo_id: ``owner/name`` on the hub.
            revision: Branch, tag or commit; None is the default branch.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._repo_id = repo_id
        self._revision = revision
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` if this user cannot download the model, or if it cannot be used.

        A model without safetensors, configuration or tokenizer, and a quantized one are detected
        before weights are downloaded, by the configuration and by what the hub lists.
        """
        check_repository(self._repo_id, self._revision, "model")
        where = f"'{self._repo_id}' on the hub"
        if self._listing is not None:
            self._check_files(self._listing.files, where)
        config = self.peek_config() or {}
        refuse_quantized_config(config, where)
        refuse_quantized_types(self._weights_by_type, where)
        if self._config_path is not None and is_multimodal(config):
            causal_config(self._config_path.parent)

    def _check_files(self, names: tuple[str, ...], where: str) -> None:
        require_listed_files(names, where)
        if INDEX_FILE in names:
            index = fetch_file(self._repo_id, self._revision, INDEX_FILE)
            remedy = "choose another 'revision', or another repository"
            if index is not None:
                require_indexed_files(index.parent, names, remedy)

    def fingerprint(self) -> str | None:
        """Return name and downloaded commit; None before the first download."""
        commit = cached_commit(self._repo_id, self._revision, "model")
        return commit and f"{self._repo_id}@{commit}"

    def parameter_count(self) -> int | None:
        """Return the number of weights that the hub lists, for the check of free memory."""
        return sum(self._weights_by_type.values()) or None

    def module_names(self) -> frozenset[str] | None:
        """Return the names of the modules, norms too; None if the hub cannot be reached."""
        return module_names(self._repo_id, self._revision)

    def weights_bytes(self) -> int:
        """Return the size of the weights of the types that the hub lists; 0 out of its reach."""
        return sum(BYTES_OF[dtype] * count for dtype, count in self._weights_by_type.items())

    def pending_download_bytes(self) -> int:
        """Return the size of the missing files, for the check of free disk space."""
        return pending_download_bytes(self._repo_id, self._revision)

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``, a few kilobytes; None if it is not available for any reason."""
        return self._config

    def peek_tokenizer(self) -> Path | None:
        """Return a directory with the tokenizer, some megabytes; None if it is not available."""
        names = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE)
        path, *_ = [fetch_file(self._repo_id, self._revision, name) for name in names]
        return None if path is None else path.parent

    # They are fetched once, because several checks estimate several nodes from them.

    @cached_property
    def _listing(self) -> ModelListing | None:
        return list_model(self._repo_id, self._revision)

    @property
    def _weights_by_type(self) -> dict[str, int]:
        return {} if self._listing is None else self._listing.weights_by_type

    @cached_property
    def _config_path(self) -> Path | None:
        return fetch_file(self._repo_id, self._revision, "config.json")

    @cached_property
    def _config(self) -> dict[str, Any] | None:
        path = self._config_path
        return None if path is None else read_config(path.parent, self._remedy)

    @property
    def _remedy(self) -> str:
        return f"run 'hf cache rm model/{self._repo_id}', then run again to download it"

    def load(self) -> ModelDirectory:
        """Download the missing files and return a handle on the snapshot."""
        snapshot = download_model(self._repo_id, self._revision)
        check_json_files(snapshot, self._remedy)
        # the cache names the folder of a snapshot after its commit
        model = ModelDirectory(snapshot, self._repo_id, revision=snapshot.name)
        refuse_quantized(model)
        return model
