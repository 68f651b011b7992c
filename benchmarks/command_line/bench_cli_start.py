"""How long 'kedro registry list' takes here, against a bare Kedro project in the same venv.

    python benchmarks/command_line/bench_cli_start.py

The bare project has no pipelines, hooks or settings; kedro-mlflow and kedro-viz are installed for
both. Runs alternate; each side's median counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import PROJECT, print_table, record

BARE_PROJECT = {
    "pyproject.toml": (
        '[tool.kedro]\npackage_name = "bare"\nproject_name = "bare"\n'
        'kedro_init_version = "1.7.0"\nsource_dir = "src"\n'
    ),
    "src/bare/__init__.py": "",
    "src/bare/settings.py": "",
    "src/bare/pipeline_registry.py": (
        "from kedro.pipeline import Pipeline\n\n\n"
        'def register_pipelines():\n    return {"__default__": Pipeline([])}\n'
    ),
    "conf/base/catalog.yml": "",
    ".telemetry": "consent: false\n",
}


def seconds_of(directory: Path) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "kedro", "registry", "list"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Time both sides in turn, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        bare = Path(name)
        for path, content in BARE_PROJECT.items():
            (bare / path).parent.mkdir(parents=True, exist_ok=True)
            (bare / path).write_text(content)
        sides = {"bare project": bare, "ja-instruct": PROJECT}
        for directory in sides.values():  # compiled bytecode, file cache
            seconds_of(directory)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, directory in sides.items():
                times[side].append(seconds_of(directory))
    rows = {
        side: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for side, values in times.items()
    }
    print_table(rows, {f"{key} s": f"{key}:.2f" for key in ("median", "min", "max")})
    theirs, ours = (row["median"] for row in rows.values())
    record("cli_start", {"ratio": round(ours / theirs, 3), "seconds": rows, "runs": runs})


if __name__ == "__main__":
    main()
