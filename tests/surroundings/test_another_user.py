"""A run by a user who may not read the model and may not write the outputs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def open_folder():
    """Return a folder that other users may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_run_is_refused_with_every_reason(clean_project, subprocess_environment, open_folder):
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root may start a process of another user")
    project = shutil.copytree(clean_project, open_folder / "project", symlinks=True)
    model = project / "data/06_models/test/tiny_gemma2/model.safetensors"
    model.chmod(0o600)

    def run(*command):
        return subprocess.run(
            [*AS_NOBODY, sys.executable, *command],
            cwd=project,
            env={**subprocess_environment, "HOME": "/nonexistent", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    if run("-c", "import ja_instruct, kedro").returncode:
        pytest.skip("another user may not read the installed packages")
    done = run("-m", "kedro", "run", "--env=test")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    message = " ".join(done.stderr.split())
    assert "Error: the run cannot start: " in message
    assert f"'base_model': {model} cannot be read: the user with the id 65534 has no" in message
    assert f"cannot be written: this user may not write to {project}/data" in message
    assert not (project / "data/03_primary").exists()
