"""``--conf-source``: another folder, or the archive of ``kedro package``, from any folder."""

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fake_devices import FakeDevices
from kedro.framework.project import configure_project

from ja_instruct.ask import ask
from ja_instruct.config_loader import CatalogConfigLoader
from ja_instruct.errors import InputError
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.settings import CONFIG_LOADER_ARGS
from kedro_freshness.status import status

KINDS = {"gztar": "tar.gz", "zip": "zip"}


@pytest.fixture(scope="module")
def archives(clean_project, tmp_path_factory):
    """Archives of ``conf`` by the end of their names."""
    folder = tmp_path_factory.mktemp("dist")
    return {
        end: shutil.make_archive(str(folder / "conf-ja_instruct"), kind, clean_project, "conf")
        for kind, end in KINDS.items()
    }


@pytest.fixture(scope="module")
def elsewhere(finished_project, tmp_path_factory):
    """A folder with the data of a finished run, but without configuration and project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(finished_project / "data", folder / "data", symlinks=True)
    return folder


@pytest.fixture
def load(archives):
    return lambda end="zip", env="test": CatalogConfigLoader(
        archives[end], env=env, **CONFIG_LOADER_ARGS
    )


def test_run_is_checked_as_in_the_folder(archives, invoke_kedro, tmp_path, monkeypatch):
    """The message needs the archive's list of environments."""
    monkeypatch.setattr("kedro_cuda_runner.devices._layer", FakeDevices(tmp_path, count=0))
    arguments = ["--env=tuned", "--pipeline=sft", f"--conf-source={archives['tar.gz']}"]
    output = invoke_kedro(*arguments).output
    assert "there is no CUDA device" in output
    assert (
        "in an environment that needs none: '--env=demo' (a small real model), '--env=test'"
        in output
    )
    unknown = invoke_kedro("--env=tune", f"--conf-source={archives['tar.gz']}").output
    assert "environment 'tune' does not exist" in unknown
    assert "did you mean 'tuned'" in unknown


def test_folder_without_a_configuration_is_named(tmp_path):
    loader = CatalogConfigLoader(tmp_path / "conf", env="test", **CONFIG_LOADER_ARGS)
    with pytest.raises(InputError, match=r"/conf has no configuration .* give --conf-source"):
        check_parameters(SimpleNamespace(config_loader=loader, env="test"))


def test_status_in_a_folder_without_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configure_project("ja_instruct")
    output = CliRunner().invoke(status, []).output
    assert "Error: Given configuration path" in output
    assert "None" not in output


def test_module_runs_in_a_folder_without_a_project(
    archives, elsewhere, finished_project, run_python
):
    path = "data/03_primary/test/filtered_pairs.jsonl"
    (elsewhere / path).unlink()
    command = ["--env=test", "--pipeline=data_filtering", f"--conf-source={archives['tar.gz']}"]
    done = run_python("-m", "ja_instruct", *command, cwd=elsewhere)
    assert (elsewhere / path).read_bytes() == (finished_project / path).read_bytes()
    # conf/logging.yml of the archive: Kedro's default has a line per dataset
    assert "Saving data to" not in done.stdout + done.stderr
    assert "data_filtering done in" in done.stdout + done.stderr


def test_nothing_is_stale_with_the_archive(archives, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", "ja_instruct")
    arguments = ["--env=test", f"--conf-source={archives['zip']}"]
    result = CliRunner().invoke(status, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    states = {line.split()[0] for line in result.output.partition("\n\n")[0].splitlines()}
    # models that are published or converted on request are missing
    assert states == {"fresh", "missing"}


def test_question_is_answered_with_the_archive(archives, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    prompts = elsewhere / "data/07_model_output/test/prompts.jsonl"
    question = json.loads(prompts.read_text("utf-8").partition("\n")[0])["input"]
    arguments = ["--env=test", question]
    result = CliRunner().invoke(ask, [*arguments, f"--conf-source={archives['zip']}"])
    assert result.exit_code == 0, result.output
    assert "give --conf-source" in CliRunner().invoke(ask, arguments).output


def test_word_lists_are_those_of_the_configuration(load, clean_project, tmp_path):
    path = "base/word_lists/replacements.yml"
    in_archive = load()["catalog"]["replacements"]["filepath"]
    assert in_archive.endswith(f"/conf/{path}")
    assert Path(in_archive).read_bytes() == (clean_project / "conf" / path).read_bytes()
    folder = CatalogConfigLoader(clean_project / "conf", env="test", base_env="base")
    assert folder["catalog"]["replacements"]["filepath"] == str(clean_project / "conf" / path)
    assert folder["catalog"]["tasks"]["filepath"] == "data/01_raw/demo/tasks.jsonl"


def test_environments_and_parameters(load, read_parameters):
    for end in KINDS.values():
        assert load(end).environments() == ["base", "demo", "local", "test", "tuned"]
        loader = load(end, "tuned")
        assert (
            loader["parameters"]["inference"]["top_k"]
            == read_parameters("tuned")["inference"]["top_k"]
        )


def test_archive_of_the_environments_alone(clean_project, tmp_path):
    path = shutil.make_archive(str(tmp_path / "flat"), "zip", clean_project / "conf")
    loader = CatalogConfigLoader(path, env="test", base_env="base")
    assert loader["globals"] == {"run_name": "test"}


def test_default_environment_that_is_not_in_the_archive(clean_project, tmp_path, read_parameters):
    shutil.copytree(clean_project / "conf", tmp_path / "conf")
    shutil.rmtree(tmp_path / "conf/local")
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "conf")
    loader = CatalogConfigLoader(path, **CONFIG_LOADER_ARGS)
    assert loader["globals"] == {"run_name": "base"}
    assert loader["parameters"] == read_parameters("base")


@pytest.mark.parametrize("name", ["conf.tar.gz", "conf.zip", "conf.txt"])
def test_file_that_is_not_an_archive(tmp_path, name):
    (tmp_path / name).write_text("not an archive")
    with pytest.raises(InputError, match=rf"{name}: cannot be unpacked \(.*'kedro package'"):
        CatalogConfigLoader(tmp_path / name)


def test_archive_with_a_member_outside_its_folder(tmp_path):
    path = tmp_path / "conf.tar.gz"
    (tmp_path / "evil.yml").write_text("run_name: evil")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "evil.yml", "../evil.yml")
    with pytest.raises(InputError, match=r"conf\.tar\.gz: cannot be unpacked .*outside"):
        CatalogConfigLoader(path)
