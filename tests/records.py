"""The records of JSON Lines files that runs write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records; lines end at ``\\n`` alone, since texts contain U+2028."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
