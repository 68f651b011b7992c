"""What every benchmark does with its result: keep it as a file and print it as the last line."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def describe_hardware() -> str:
    """Return the processor's name and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def read_commit() -> str | None:
    """Return the commit that is checked out, if any."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def record(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with command, hardware and commit, and print it on one line.

    Args:
        name: The benchmark, without ``bench_``.
        result: What was measured, with the key ``ratio``: ours over theirs.
    """
    complete = {
        **result,
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], PROJECT), *sys.argv[1:]]),
        "hardware": describe_hardware(),
        "commit": read_commit(),
    }
    path = PROJECT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(complete, indent=2) + "\n", "utf-8")
    sys.stdout.write(json.dumps(complete) + "\n")
