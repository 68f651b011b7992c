"""``HubDataset``: a Hugging Face hub dataset that can be checked before hours of work."""

from __future__ import annotations

from typing import Any

from kedro_datasets.huggingface import HFDataset

from ja_instruct.hub import check_repository


class HubDataset(HFDataset):
    """``huggingface.HFDataset`` that describes itself without network and can be checked.

    The stock class asks the hub for the dataset's tags whenever it is printed, which fails
    offline.

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

    def check(self) -> None:
        """Raise ``InputError`` when the hub does not give this dataset to this user."""
        check_repository(
            self.dataset_name, self._dataset_kwargs.get("revision"), repo_type="dataset"
        )

    def _describe(self) -> dict[str, Any]:
        return {"dataset_name": self.dataset_name, "dataset_kwargs": self._dataset_kwargs}
