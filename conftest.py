"""Names that the doctests of the sources may use."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any], tmp_path: Path) -> None:
    """Give every doctest a directory of its own."""
    doctest_namespace["tmp_path"] = tmp_path
