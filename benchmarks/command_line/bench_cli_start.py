"""How long 'kedro registry list' takes here, against a bare Kedro project in the same venv.

    python benchmarks/command_line/bench_cli_start.py

The bare project has no pipelines, hooks or settings; kedro-mlflow and kedro-viz are installed for
both. Runs alternate; the median of each side counts. The last line is JSON.
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

from benchmarks.harness.recording import record

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "kedro", "registry", "list"]


def make_bare_project(directory: Path) -> None:
    """Write the least that Kedro takes for a project."""
    (directory / "pyproject.toml").write_text(
        '[tool.kedro]\npackage_name = "bare"\nproject_name = "bare"\n'
        'kedro_init_version = "1.7.0"\nsource_dir = "src"\n'
    )
    package = directory / "src" / "bare"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "settings.py").touch()
    (package / "pipeline_registry.py").write_text(
        "from kedro.pipeline import Pipeline\n\n\n"
        'def register_pipelines():\n    return {"__default__": Pipeline([])}\n'
    )
    (directory / "conf" / "base").mkdir(parents=True)
    (directory / ".telemetry").write_text("consent: false\n")


def seconds_of(directory: Path) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    subprocess.run(COMMAND, cwd=directory, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Time both sides in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        bare = Path(name)
        make_bare_project(bare)
        sides = {"bare project": bare, "ja-instruct": ROOT}
        for directory in sides.values():  # compiled bytecode, file cache
            seconds_of(directory)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, directory in sides.items():
                times[side].append(seconds_of(directory))
    medians = {side: statistics.median(values) for side, values in times.items()}
    print(f"{'kedro registry list':22} {'median s':>9} {'min s':>7} {'max s':>7}")
    for side, values in times.items():
        print(f"{side:22} {medians[side]:9.2f} {min(values):7.2f} {max(values):7.2f}")
    added = medians["ja-instruct"] - medians["bare project"]
    print(f"added: {added:.2f} s")
    record(
        "cli_start",
        {
            "ratio": round(medians["ja-instruct"] / medians["bare project"], 3),
            "bare_seconds": round(medians["bare project"], 3),
            "ja_instruct_seconds": round(medians["ja-instruct"], 3),
            "added_seconds": round(added, 3),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
