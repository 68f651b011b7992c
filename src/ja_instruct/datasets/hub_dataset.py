"""``HubDataset``: a data set of the Hugging Face hub that can be checked before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.base import InputDataset
from ja_instruct.models.hub import cached_commit, check_hub_dataset, load_hub_dataset

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class HubDataset(InputDataset["Dataset | DatasetDict"]):
    """Loads a data set of the hub, with the arguments of ``huggingface.HFDataset``; does not save.

    Unlike ``HFDataset`` it can be checked, needs no network for its description, and does not
    import transformers and torch (4 s and 350 MB) as ``kedro_datasets.huggingface`` does.

    Examples:
        YAML API:

        ```yaml
        raw_conversations:
          type: ja_instruct.datasets.HubDataset
          dataset_name: llm-jp/magpie-sft-v1.0
          dataset_kwargs:
            split: train
        ```

        Python API:

        >>> HubDataset(dataset_name="llm-jp/magpie-sft-v1.0")
        ja_instruct.datasets.hub_dataset.HubDataset(dataset_name='llm-jp/magpie-sft-v1.0')
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        dataset_kwargs: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            dataset_name: ``owner/name`` on the hub.
            dataset_kwargs: Further arguments of ``datasets.load_dataset``, such as ``split``.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self.dataset_name = dataset_name
        self._dataset_kwargs = dataset_kwargs or {}
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless this user can load the data set, its split and files."""
        check_hub_dataset(self.dataset_name, **self._dataset_kwargs)

    def fingerprint(self) -> str | None:
        """Return name, arguments and downloaded commit; None before the first download."""
        commit = cached_commit(self.dataset_name, self._dataset_kwargs.get("revision"), "dataset")
        return commit and f"{self.dataset_name}@{commit} {self._dataset_kwargs}"

    def load(self) -> Dataset | DatasetDict:
        """Return the data set, downloaded unless it is in the local cache.

        Raises:
            InputError: The hub refuses it, or it has no such split, file or configuration.
        """
        return load_hub_dataset(self.dataset_name, **self._dataset_kwargs)
