"""A Kedro project that has nothing but the hook, made of README.md's example."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from package_readme import PYPROJECT, Examples

import kedro_freshness
from kedro_freshness.inspection import Settings

EXAMPLES = Examples(kedro_freshness)
# what the hook does not need is not there
SITECUSTOMIZE = """
import sys
import no_network, hidden_libraries
no_network.block()
hidden_libraries.hide()
sys.modules["kedro_cuda_runner"] = None
"""


@pytest.fixture
def run(tmp_path, subprocess_environment):
    """Return a function that runs a command in the project."""
    names = ("texts", "clean_texts", "model")
    entries = {
        name: {"type": "json.JSONDataset", "filepath": f"data/{name}.json"} for name in names
    }
    files = {
        "pyproject.toml": PYPROJECT,
        "startup/sitecustomize.py": SITECUSTOMIZE,
        "src/my_project/__init__.py": "",
        "src/my_project/settings.py": EXAMPLES.one("python", containing="HOOKS"),
        "src/my_project/pipeline_registry.py": EXAMPLES.one(
            "python", containing="register_pipelines"
        ),
        "conf/local/.gitkeep": "",
        "conf/trial/.gitkeep": "",
        "conf/base/parameters.yml": "training: {epochs: 2, device: cpu}",
        "conf/base/catalog.yml": yaml.safe_dump(entries),
        "data/texts.json": '["b", "a", "b"]',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    paths = (str(tmp_path / "startup"), subprocess_environment["PYTHONPATH"])
    changes = {"COLUMNS": "160", "KEDRO_DISABLE_TELEMETRY": "true"}

    def run(command, **variables):
        module, *arguments = command.removeprefix("python -m ").split()
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env={
                **subprocess_environment,
                **changes,
                **variables,
                "PYTHONPATH": os.pathsep.join(paths),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def messages(done):
    """Return what a run logged, without times, levels and places."""
    lines = (
        re.sub(r"^\[?[\d/: ]*\]?\s*(INFO|WARNING)?\s+", "", line)
        for line in done.stdout.splitlines()
    )
    return [re.sub(r"\s+\S+\.py:\d+\s*$", "", line).strip() for line in lines]


def test_example(run):
    first, second = EXAMPLES.all("bash")
    kedro_run, status = first.splitlines()
    done = run(kedro_run)
    assert done.returncode == 0, done.stderr
    done = run(status)
    assert done.returncode == 0, done.stderr
    # Kedro names its logging configuration first
    assert done.stdout.endswith("\n" + EXAMPLES.one("text", containing="stale    model"))
    done = run(second)
    assert done.returncode == 0, done.stderr
    shown = messages(done)
    for line in EXAMPLES.one("text", containing="Made again").splitlines():
        assert line in shown
    done = run(status)
    assert done.stdout.splitlines()[-1] == "2 fresh"

    refused = run("kedro run --env=trial --nodes=train")
    assert refused.returncode == 1
    time = r"\d{4}-\d\d-\d\dT[\d:+-]+"
    expected = EXAMPLES.one("text", containing="would rewrite")
    assert re.sub(time, "", refused.stderr[-len(expected) :]) == re.sub(time, "", expected)
    # an environment reads what another one made, and says so
    done = run("kedro_freshness", KEDRO_ENV="trial")
    assert (
        "stale    model        training.epochs was 3, is 2 (made by environment 'local')"
        in done.stdout.splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pipeline=none", "Error: no pipeline 'none'; there are __default__"),
        ("--params=freshness.count=true", "Error: 'freshness.count' is unknown; the keys are "),
    ],
)
def test_errors_of_status(run, arguments, message):
    done = run(f"kedro_freshness {arguments}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_status_outside_a_project(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from kedro_freshness.status import status

    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(status, [])
    assert result.exit_code == 1
    assert "no Kedro project here: run the command in a project's folder" in result.output


def test_settings_in_the_readme():
    section = yaml.safe_load(EXAMPLES.one("yaml"))
    assert Settings.from_parameters(section) == Settings(count_code=True, rewrite_others=True)


def test_declaration_in_the_readme():
    code = EXAMPLES.one("python", containing="but=")
    space = {"unaffected_by": kedro_freshness.unaffected_by}
    exec(code, space)
    declared = space["train"].unaffected_by
    assert declared.covers("cache")
    assert declared.covers("params:training.device")
    assert not declared.covers("params:training.epochs")
