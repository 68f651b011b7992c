"""``JSONDataset``: a report, saved atomically as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from kedro_datasets import json

from ja_instruct.datasets.whole_file import WholeFile
from ja_instruct.tables.json_text import portable


class JSONDataset(WholeFile, json.JSONDataset):  # type: ignore[misc]
    """Kedro's ``json.JSONDataset`` that saves atomically: UTF-8, not escaped, indented.

    NaN and the infinities, which JSON does not have, are saved as null.

    Examples:
        YAML API:

        ```yaml
        train_metrics:
          type: ja_instruct.datasets.JSONDataset
          filepath: data/08_reporting/demo/train_metrics.json
        ```

        Python API:

        >>> dataset = JSONDataset(filepath=tmp_path / "metrics.json")
        >>> dataset.save({"質問": 3})
        >>> dataset.load()
        {'質問': 3}
    """

    DEFAULT_SAVE_ARGS: ClassVar[dict[str, Any]] = {"indent": 2, "ensure_ascii": False}
    DEFAULT_FS_ARGS: ClassVar[dict[str, Any]] = {
        "open_args_save": {"mode": "w", "encoding": "utf-8"}
    }

    def save(self, data: Any) -> None:
        """Write the content, and replace the file."""
        super().save(portable(data))  # type: ignore[safe-super]  # Kedro-datasets has the body
