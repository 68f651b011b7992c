"""Runs without a home, without caches and without room for temporary files."""

import re
import shutil
import tempfile
from types import SimpleNamespace

import pytest

from ja_instruct.datasets import HubModelDataset
from ja_instruct.errors import InputError
from ja_instruct.preflight.caches import cache_problems

REMEDY = "cannot be written to; set {} to a folder that can"
ON_GPU = {"train": SimpleNamespace(devices=1)}
ON_CPU = {"train": SimpleNamespace(devices=0)}


@pytest.fixture
def closed(tmp_path, read_only):
    """Return a folder that cannot be written to."""
    folder = tmp_path / "closed"
    read_only(folder)
    return folder


class TestPreflight:
    @pytest.mark.parametrize(
        ("resources", "is_downloading", "expected"),
        [
            (ON_CPU, False, ["TORCHINDUCTOR_CACHE_DIR"]),
            (ON_GPU, False, ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"]),
            (ON_CPU, True, ["TORCHINDUCTOR_CACHE_DIR", "HF_HOME"]),
        ],
    )
    def test_folders_of_variables(self, closed, monkeypatch, resources, is_downloading, expected):
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "MPLCONFIGDIR"):
            monkeypatch.setenv(name, str(closed / name / "below"))
        problems = cache_problems(resources, is_downloading=is_downloading)
        assert [re.findall(r"set (\w+) to", problem)[0] for problem in problems] == expected
        for name, problem in zip(expected, problems, strict=True):
            assert problem.startswith(f"{closed / name / 'below'}, the folder of ")
            assert problem.endswith(REMEDY.format(name))

    def test_home_that_cannot_be_written_to(self, closed, monkeypatch):
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME", "HF_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(closed))
        assert cache_problems(ON_CPU, is_downloading=False) == []
        kernels, downloads = cache_problems(ON_GPU, is_downloading=True)
        assert kernels.startswith(f"{closed}/.triton/cache, the folder of compiled GPU kernels, ")
        assert downloads.startswith(f"{closed}/.cache/huggingface, the folder of downloads, ")

    def test_folders_that_will_be_created(self, tmp_path, monkeypatch):
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME"):
            monkeypatch.setenv(name, str(tmp_path / "new" / name))
        assert cache_problems(ON_GPU, is_downloading=True) == []

    def test_no_folder_for_temporary_files(self, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
        (problem,) = cache_problems(ON_CPU, is_downloading=False)
        assert problem.startswith("there is no folder for temporary files; set TMPDIR to a folder")

    def test_run_is_refused(self, invoke_kedro, closed, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(closed / "inductor"))
        result = invoke_kedro("--env=test", "--pipeline=data_filtering")
        assert result.exit_code == 1
        assert "Error: the run cannot start:\n" in result.output
        assert REMEDY.format("TORCHINDUCTOR_CACHE_DIR") in result.output


def test_download_that_cannot_be_stored(hub_server, closed, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(closed / "hub"))
    monkeypatch.setenv("HF_HOME", str(closed))
    hub_server.add("owner/name", {"config.json": b"{}"})
    with pytest.raises(InputError) as caught:
        HubModelDataset(repo_id="owner/name").load()
    assert str(closed) in str(caught.value)
    assert "cannot be written: the file system is read-only; change that, or set HF_HOME to" in str(
        caught.value
    )


FOLDERS = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR")


@pytest.mark.slow
def test_run_goes_through(clean_project, run_kedro, closed, tmp_path):
    """Caches that are not needed cannot be written to; Python finds another TMPDIR."""
    project = shutil.copytree(clean_project, tmp_path / "project", symlinks=True)
    folders = {name: str(closed / name) for name in FOLDERS}
    done = run_kedro(
        "--env=test",
        "--pipelines=quantization,rag_index",
        cwd=project,
        env={**folders, "TMPDIR": str(closed / "missing")},
    )
    assert done.returncode == 0, done.stderr
    assert "Finished in " in done.stdout
