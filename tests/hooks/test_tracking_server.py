"""A real MLflow server, which keeps the artifacts; its folders are not those of the project."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

START_SECONDS = 120
CHANGES = {"freshness": {"rewrite_others": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory, made):
    """The address of a server; its store is made already, which takes seconds."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(made)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (
        f"-m mlflow server --host 127.0.0.1 --port {port} --workers 1 "
        f"--backend-store-uri sqlite:///{folder}/mlflow.db --artifacts-destination {folder}/kept"
    )
    # without it the server starts eight more processes
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command.split()],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(uri, process, folder / "log")
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(uri, process, log):
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urlopen(f"{uri}/health", timeout=10).close()
        except (URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="module")
def copied(finished_project, tmp_path_factory):
    copy = tmp_path_factory.mktemp("tracked") / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    shutil.rmtree(copy / "data/mlflow")
    return copy


@pytest.fixture
def run(server, copied, add_environment, invoke_kedro):
    """A function that runs ``reporting`` with keys of ``tracking.experiment``."""

    def run(**experiment):
        content = {"server": {"mlflow_tracking_uri": server}}
        if experiment:
            content["tracking"] = {"experiment": experiment}
        environment = add_environment(
            "remote", root=copied, globals={"run_name": "test"}, mlflow=content, parameters=CHANGES
        )
        return invoke_kedro(environment, "--pipeline=reporting", cwd=copied)

    return run


@pytest.fixture
def client(server):
    return MlflowClient(server)


def only_run_of(client, name):
    experiment = client.get_experiment_by_name(name)
    (only,) = client.search_runs([experiment.experiment_id])
    return only


def test_only_the_address_is_set(client, run, copied, tmp_path):
    result = run()
    assert result.exit_code == 0, result.output
    experiment = client.get_experiment_by_name("ja-instruct")
    assert experiment.artifact_location == f"mlflow-artifacts:/{experiment.experiment_id}"
    only = only_run_of(client, "ja-instruct")
    assert only.info.status == "FINISHED"
    page = client.download_artifacts(only.info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (copied / "data/08_reporting/test/report.html").read_bytes()
    assert not (copied / "data/mlflow").exists()
    assert not list((copied / "data/08_reporting").rglob("untracked_*"))


def test_experiment_that_exists(client, run):
    location = "mlflow-artifacts:/elsewhere"
    client.create_experiment("existing", artifact_location=location)
    assert run(name="existing").exit_code == 0
    only = only_run_of(client, "existing")
    assert only.info.artifact_uri.startswith(location)
    assert [item.path for item in client.list_artifacts(only.info.run_id)] == ["report.html"]


def test_experiment_that_was_deleted(client, run):
    client.delete_experiment(client.create_experiment("deleted"))
    refused = run(name="deleted", restore_if_deleted=False)
    assert refused.exit_code == 1
    assert (
        "MLflow refuses its experiment: Cannot set a deleted experiment 'deleted'" in refused.output
    )
    assert "another 'name', or 'restore_if_deleted: true'" in refused.output


def test_deleted_experiment_is_restored(client, run):
    client.delete_experiment(client.create_experiment("restored"))
    assert run(name="restored").exit_code == 0
    assert only_run_of(client, "restored").info.status == "FINISHED"
