"""The tables that kedro-viz shows as previews of datasets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ja_instruct.tables.json_text import portable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro_datasets._typing import TablePreview


def make_preview(records: Sequence[dict[str, Any]]) -> TablePreview:
    """Return the records as a table of numbers and texts; nested values become JSON.

    NaN and the infinities, which JSON does not have, become None.
    """
    from kedro_datasets._typing import TablePreview

    records = portable(records)
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [[_as_cell(record.get(column)) for column in columns] for record in records]
    return TablePreview({"index": list(range(len(cells))), "columns": columns, "data": cells})


def _as_cell(value: Any) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
