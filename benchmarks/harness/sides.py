"""The sides of a benchmark, each in a process of its own, so that one may fail without the others.

What a side measured is kept as ``<side>.json`` in a folder, so that several calls can share the
work: a call prints what all of them have measured.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

LOG_CHARACTERS = 1500


def apply_settings(
    sides: dict[str, dict[str, Any]], settings: list[str], fresh: dict[str, Any]
) -> None:
    """Change sides in place, as ``SIDE:NAME=VALUE`` says.

    Args:
        sides: By name; what is no entry of a side changes a parameter, in its ``changes``.
        settings: Of the command line.
        fresh: What a side of an unknown name begins as.
    """
    for setting in settings:
        side, _, rest = setting.partition(":")
        name, equals, value = rest.partition("=")
        if not equals:
            sys.exit(f"--set {setting}: give SIDE:NAME=VALUE")
        changed = sides.setdefault(side, copy.deepcopy(fresh))
        if name in fresh and name != "changes":
            changed[name] = yaml.safe_load(value)
        else:
            changed["changes"] = {**changed["changes"], name: yaml.safe_load(value)}


def run_side(
    program: Path, job: dict[str, Any], folder: Path, side: str, seconds_max: float
) -> dict[str, Any]:
    """Run ``program JOB RESULT`` for a side and return its result, which also stays in a file.

    A program writes its result whenever it knows more, so what one measured that was stopped or
    failed is not lost; ``status`` says which, and ``log`` what it printed last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{side}.{kind}" for kind in ("job.json", "json", "log")}
    paths["job.json"].write_text(json.dumps(job, ensure_ascii=False, indent=2), "utf-8")
    paths["json"].unlink(missing_ok=True)
    print(f"{side}: started, at most {seconds_max:.0f} s", flush=True)
    started = time.perf_counter()
    with paths["log"].open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(program), str(paths["job.json"]), str(paths["json"])],
            stdout=log,
            stderr=subprocess.STDOUT,
            # a group of its own, which can be ended with all that it started
            start_new_session=True,
        )
        status = _wait(process, seconds_max)
    result = read_side(folder, side) or {}
    result |= {"status": status, "process_seconds": round(time.perf_counter() - started, 1)}
    if status != "done":
        result["log"] = paths["log"].read_text("utf-8", errors="replace")[-LOG_CHARACTERS:]
    paths["json"].write_text(json.dumps(result, indent=2), "utf-8")
    print(f"{side}: {status} after {result['process_seconds']} s", flush=True)
    if "log" in result:
        print(result["log"], flush=True)
    return result


def _wait(process: subprocess.Popen[bytes], seconds_max: float) -> str:
    try:
        code = process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds_max:.0f} s"
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return "done" if code == 0 else f"failed with code {code}"


def read_side(folder: Path, side: str) -> dict[str, Any] | None:
    """Return what a side has measured, in this call or an earlier one; None if it never ran."""
    path = folder / f"{side}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a side's result, whole at any moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result), "utf-8")
    new.replace(path)
