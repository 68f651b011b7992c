"""``HubDataset``: a Hugging Face hub dataset that can be checked before hours of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.models.hub import check_repository

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class HubDataset(AbstractDataset[Any, "Dataset | DatasetDict"]):
    """Loads a dataset of the hub; takes the arguments of ``huggingface.HFDataset``.

    Unlike that one it describes itself without network, can be checked, and leaves transformers and
    torch alone, which the package ``kedro_datasets.huggingface`` imports: 4 s and 350 MB. It only
    loads.

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

        >>> dataset = HubDataset(dataset_name="llm-jp/magpie-sft-v1.0")
        >>> dataset._describe()
        {'dataset_name': 'llm-jp/magpie-sft-v1.0', 'dataset_kwargs': {}}
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
        """Raise ``InputError`` when the hub does not give this dataset to this user."""
        check_repository(
            self.dataset_name, self._dataset_kwargs.get("revision"), repo_type="dataset"
        )

    def load(self) -> Dataset | DatasetDict:
        """Download it, unless the local cache has it."""
        from datasets import load_dataset

        return load_dataset(self.dataset_name, **self._dataset_kwargs)  # type: ignore[no-any-return]

    def save(self, data: Any) -> NoReturn:
        """Refuse: it is an input."""
        raise DatasetError(f"'{self.dataset_name}' is a dataset of the hub and only loaded")

    def _describe(self) -> dict[str, Any]:
        return {"dataset_name": self.dataset_name, "dataset_kwargs": self._dataset_kwargs}
