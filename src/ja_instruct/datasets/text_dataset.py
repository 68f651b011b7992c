"""``TextDataset``: a text or page, saved atomically."""

from __future__ import annotations

from typing import Any, ClassVar

from kedro_datasets import text

from ja_instruct.datasets.whole_file import WholeFile


class TextDataset(WholeFile, text.TextDataset):  # type: ignore[misc]
    """Kedro's ``text.TextDataset`` that saves atomically, in UTF-8.

    Examples:
        YAML API:

        ```yaml
        run_report:
          type: ja_instruct.datasets.TextDataset
          filepath: data/08_reporting/demo/report.html
        ```

        Python API:

        >>> dataset = TextDataset(filepath=tmp_path / "report.html")
        >>> dataset.save("<p>質問</p>")
        >>> dataset.load()
        '<p>質問</p>'
    """

    DEFAULT_FS_ARGS: ClassVar[dict[str, Any]] = {
        "open_args_save": {"mode": "w", "encoding": "utf-8"},
        "open_args_load": {"mode": "r", "encoding": "utf-8"},
    }
