"""A Kedro project that has nothing but the runner, made of README.md's example."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from package_readme import PYPROJECT, Examples

import kedro_cuda_runner

EXAMPLES = Examples(kedro_cuda_runner)
SITECUSTOMIZE = """
import no_network, hidden_libraries
no_network.block()
hidden_libraries.hide()
"""
SETTINGS = """
from pathlib import Path
from fake_devices import FakeDevices
from kedro_cuda_runner import devices

devices._layer = FakeDevices(Path(__file__).parents[2] / "devices", count={count})
"""


def json_entry(path):
    return {"type": "json.JSONDataset", "filepath": str(path)}


@pytest.fixture
def run(tmp_path, subprocess_environment):
    """Return a function that makes the project and runs README.md's command in it."""
    entries = {name: json_entry(tmp_path / f"{name}.json") for name in ("texts", "model")}
    *_, command = EXAMPLES.one("bash").splitlines()
    assert command.startswith("kedro run --runner=")

    def run(*, device_count):
        files = {
            "pyproject.toml": PYPROJECT,
            "startup/sitecustomize.py": SITECUSTOMIZE,
            "src/my_project/__init__.py": "",
            "src/my_project/settings.py": SETTINGS.format(count=device_count),
            "src/my_project/pipeline_registry.py": EXAMPLES.one("python"),
            "conf/local/.gitkeep": "",
            "conf/base/parameters.yml": "training: {batch_size: 8}",
            "conf/base/catalog.yml": yaml.safe_dump(entries),
            "texts.json": '["b", "a", "b"]',
        }
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        paths = (str(tmp_path / "startup"), subprocess_environment["PYTHONPATH"])
        changes = {"COLUMNS": "120", "KEDRO_DISABLE_TELEMETRY": "true"}
        return subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,
            env={**subprocess_environment, **changes, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def headings_and_names(table):
    """Return the headings of a table and the first two cells of its rows."""
    lines = [re.split(r" {2,}", line.strip()) for line in table.splitlines() if line.strip()]
    start = next(number for number, cells in enumerate(lines) if cells[0] == "node")
    return lines[start], [cells[:2] for cells in lines[start + 2 :]]


def test_run(tmp_path, run):
    done = run(device_count=1)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model.json").read_text()) == {"texts": 2, "batch_size": 8}
    table = headings_and_names(done.stdout)
    assert table == headings_and_names(EXAMPLES.one("text"))
    assert table[1] == [["clean", "CPU"], ["train", "cuda:0"]]
    assert re.search(r"^ *train +cuda:0 +[\d.]+ s +0\.00 GB +20\.0 GB", done.stdout, re.MULTILINE)


def test_run_without_a_device(tmp_path, run):
    done = run(device_count=0)
    assert done.returncode == 1
    assert "the run cannot start:\n  - 'train': there is no CUDA device" in done.stderr
    assert not (tmp_path / "model.json").exists()
