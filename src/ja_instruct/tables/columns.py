"""Inputs of pipelines: converted to one Hugging Face ``Dataset``, their columns checked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError, prefix_errors
from ja_instruct.tables.json_lines import TURNS
from ja_instruct.tables.json_records import replace_surrogates
from ja_instruct.tables.json_types import infer_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)


def as_dataset(data: Dataset | DatasetDict | list[dict[str, Any]], name: str) -> Dataset:
    """Return ``data`` as one ``Dataset``, whichever type its catalog entry loads.

    Args:
        data: A ``Dataset``, a ``DatasetDict`` with a single split (``datasets`` makes one of a
            file), or a list of records, which are read like lines of a file
            (``ja_instruct.tables.json_lines.read_tables``) if they do not fit a ``Dataset``.
        name: The catalog name, for the error.

    Raises:
        InputError: There are several splits, or a turn of a listed conversation is not text.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    if isinstance(data, DatasetDict):
        if len(data) != 1:
            splits = ", ".join(data)
            raise InputError(
                f"'{name}' has {len(data)} splits ({splits}); choose one in its catalog entry "
                f"with 'split: <name>' under load_args or dataset_kwargs"
            )
        return next(iter(data.values()))
    if isinstance(data, list):
        try:
            return Dataset.from_list(data)
        except UnicodeEncodeError:
            logger.warning("'%s' contains a lone surrogate; U+FDD0 replaces it", name)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # values of several types
            pass
        records = [replace_surrogates(record) for record in data]
        with prefix_errors(f"'{name}'"):
            return Dataset(infer_columns(records, {}, TURNS))
    return data


def require_columns(data: Dataset, columns: Iterable[str], name: str) -> None:
    """Raise ``InputError`` if ``data`` lacks one of ``columns``."""
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise InputError(
            f"'{name}' lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(data.column_names) or 'none'}. Rename them in the source, or point the "
            f"catalog entry '{name}' at another one"
        )
