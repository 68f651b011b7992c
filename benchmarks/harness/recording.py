"""Tables for people, a file for the repository, and one JSON line last: a benchmark's figures."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).resolve().parents[2]


def describe_hardware() -> str:
    """Return the processor's name and the number of its cores."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def device_name() -> str:
    """Return the GPU's name, or CPU."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def read_commit() -> str | None:
    """Return the commit that is checked out, if any."""
    command = ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def print_table(
    rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str], title: str = ""
) -> None:
    """Print one line per row; a missing figure is a dash.

    ``columns`` are keys by column title; dots lead into nested figures, and a format may follow a
    colon: ``{"GB": "memory.torch_gb:.1f"}``. ``title`` stands above the row names.
    """
    lines = [[title, *columns]]
    for name, row in rows.items():
        cells = []
        for key in columns.values():
            path, _, form = key.partition(":")
            value: Any = functools.reduce(
                lambda found, part: found and found.get(part), path.split("."), row
            )
            cells.append("-" if value is None else format(value, form))
        lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    sys.stdout.flush()


def record(name: str, result: dict[str, Any], *, keep: bool = True) -> None:
    """Add command, hardware and commit to a result, and print it as one line.

    It is also written to ``results/<name>.json``, unless ``keep`` is false for a small trial.
    """
    script = os.path.relpath(sys.argv[0], PROJECT)
    complete = {
        **result,
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "hardware": describe_hardware(),
        "commit": read_commit(),
    }
    if keep:
        path = PROJECT / "benchmarks" / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(complete, indent=2) + "\n", "utf-8")
    print(json.dumps(complete))
