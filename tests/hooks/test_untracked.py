"""Runs go on without MLflow, which is logged once; a file holds what was not tracked."""

import json
import shutil
import socket
import time
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.tracking._tracking_service import utils
from tracking_server import TrackingServer

from ja_instruct.hooks import untracked as untracked_module
from ja_instruct.hooks.forgiving_store import forgive, path_of_untracked
from ja_instruct.hooks.untracked import Untracked, without_password


@pytest.fixture
def untracked(tmp_path):
    return Untracked("the store", tmp_path / "reporting" / "untracked.jsonl")


@pytest.fixture
def start(untracked, tmp_path, monkeypatch):
    """Return a function that starts a run in the store of a URI."""
    registries = [utils._tracking_store_registry._registry, _artifact_repository_registry._registry]
    before = [dict(registry) for registry in registries]
    uri_before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def start(uri):
        forgive(untracked)
        mlflow.set_tracking_uri(uri)
        experiment = mlflow.create_experiment("a test", (tmp_path / "artifacts").as_uri())
        return mlflow.start_run(experiment_id=experiment).info.run_id

    yield start
    while mlflow.active_run():
        mlflow.end_run()
    for registry, content in zip(registries, before, strict=True):
        registry.update(content)
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    mlflow.set_tracking_uri(uri_before)


@pytest.fixture
def server(tmp_path):
    server = TrackingServer((tmp_path / "server_artifacts").as_uri())
    yield server
    server.answers.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def log_all(tmp_path):
    """Return a function that logs something of each kind and ends the run."""
    report = tmp_path / "report.html"
    report.write_text("a page")

    def log_all():
        mlflow.log_param("rank", 4)
        mlflow.log_metrics({"loss": 0.5}, step=3)
        mlflow.log_metrics({"later": 0.25}, step=4, synchronous=False)
        mlflow.set_tag("kind", "a test")
        mlflow.log_artifact(str(report))
        mlflow.log_dict({"nodes": []}, "tables/nodes.json")
        mlflow.end_run("KILLED")

    return log_all


LOGGED = [
    {"artifact": "report.html"},
    {"artifact": "tables/nodes.json"},
    {"metric": "later", "value": 0.25, "step": 4},
    {"metric": "loss", "value": 0.5, "step": 3},
    {"param": "rank", "value": "4"},
    {"tag": "kind", "value": "a test"},
]


def read(untracked):
    """Return the first record of the file and the others, sorted and without times."""
    header, *records = map(json.loads, untracked.path.read_text("utf-8").splitlines())
    for record in records:
        if "timestamp" in record:
            assert abs(record.pop("timestamp") / 1000 - time.time()) < 60
    return header, sorted(records, key=lambda one: sorted(map(str, one.items())))


def warnings_of(caplog):
    return [one.getMessage() for one in caplog.records if one.name.startswith("ja_instruct")]


def require_all_is_kept(untracked, caplog, run_id, reason, *, logged=LOGGED):
    header, records = read(untracked)
    assert header == {"run_id": run_id, "store": "the store", "reason": reason}
    ended = {"run_id": run_id, "status": "KILLED"}
    tags = [one for one in records if str(one.get("tag", "")).startswith("mlflow.")]
    kept = [one for one in records if one not in tags]
    assert [one for one in kept if one != ended] == logged
    assert kept.count(ended) == 1
    assert (untracked.artifacts / "report.html").read_text() == "a page"
    assert json.loads((untracked.artifacts / "tables/nodes.json").read_text()) == {"nodes": []}
    assert warnings_of(caplog) == [
        f"MLflow failed, the run goes on. the store: {reason}. "
        f"What is not tracked is written to {untracked.path}"
    ]
    assert path_of_untracked() == untracked.path


def test_nothing_is_written_while_mlflow_works(start, made_store, untracked, log_all, caplog):
    run_id = start(f"sqlite:///{made_store}")
    log_all()
    run = mlflow.get_run(run_id)
    assert run.info.status == "KILLED"
    assert (run.data.params, run.data.metrics) == ({"rank": "4"}, {"loss": 0.5, "later": 0.25})
    assert warnings_of(caplog) == []
    assert path_of_untracked() is None
    assert not untracked.path.parent.exists()


def test_a_store_that_was_never_there(start, tmp_path, untracked, log_all, caplog):
    untracked.give_up("file is not a database")
    run_id = start(f"sqlite:///{tmp_path}/mlflow.db")
    log_all()
    require_all_is_kept(untracked, caplog, run_id, "file is not a database")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_loss_that_is_not_finite(untracked):
    untracked.write([{"metric": "loss", "value": float("nan"), "step": 3}])
    _, line = untracked.path.read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record == {"metric": "loss", "value": None, "step": 3}


def test_a_store_that_is_removed_during_the_run(start, made_store, untracked, log_all, caplog):
    untracked.file = made_store
    run_id = start(f"sqlite:///{made_store}")
    shutil.rmtree(made_store.parent)
    log_all()
    require_all_is_kept(untracked, caplog, run_id, "the file is gone")


def test_a_store_that_becomes_unreadable(start, made_store, untracked, log_all, caplog):
    run_id = start(f"sqlite:///{made_store}")
    made_store.write_bytes(b"not a database" * 10_000)
    log_all()
    require_all_is_kept(untracked, caplog, run_id, "file is not a database")


def test_a_server_that_is_absent(start, untracked, log_all, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    run_id = start(uri)
    log_all()
    require_all_is_kept(untracked, caplog, run_id, "Connection refused")


def test_a_server_that_refuses(start, server, untracked, log_all, caplog):
    server.status = 403
    run_id = start(server.uri)
    log_all()
    reason = "PERMISSION_DENIED: no user of that name"
    require_all_is_kept(untracked, caplog, run_id, reason)


def test_credentials_of_the_environment(start, server, untracked, log_all, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    start(server.uri)
    log_all()
    assert server.credentials == {"Basic bWU6c2VjcmV0"}
    assert not untracked.path.exists()


def test_a_server_that_stops_answering(start, server, untracked, log_all, caplog):
    run_id = start(server.uri)
    mlflow.log_metrics({"loss": 0.75}, step=1)
    (sent,) = [body for path, body in server.received if path == "runs/log-batch"]
    assert [(one["key"], one["step"]) for one in sent["metrics"]] == [("loss", 1)]
    server.answers.clear()
    started = time.monotonic()
    log_all()
    # the first call fails after a second, the last one is tried all the same
    assert time.monotonic() - started < 5
    require_all_is_kept(untracked, caplog, run_id, "timed out")


def test_a_server_that_answers_again(start, server, untracked, monkeypatch):
    monkeypatch.setattr(untracked_module, "RETRY_SECONDS", 0.0)
    start(server.uri)
    server.answers.clear()
    mlflow.log_metrics({"loss": 0.5}, step=1)
    server.answers.set()
    mlflow.log_metrics({"loss": 0.25}, step=2)
    mlflow.end_run()
    assert read(untracked)[1] == [{"metric": "loss", "value": 0.5, "step": 1}]
    sent = [body for path, body in server.received if path == "runs/log-batch"]
    assert [one["step"] for body in sent for one in body["metrics"]][-1] == 2
    (*_, ended) = [body for path, body in server.received if path == "runs/update"]
    assert ended["status"] == "FINISHED"


def test_what_mlflow_refuses_stops_nothing_else(start, made_store, untracked, caplog):
    run_id = start(f"sqlite:///{made_store}")
    mlflow.log_param("rank", 4)
    mlflow.log_param("rank", 8)
    mlflow.log_metric("loss", 0.5)
    assert read(untracked)[1] == [{"param": "rank", "value": "8"}]
    (warning,) = warnings_of(caplog)
    assert "Changing param values is not allowed" in warning
    assert mlflow.get_run(run_id).data.metrics == {"loss": 0.5}


def test_artifacts_that_cannot_be_stored(start, made_store, tmp_path, untracked, log_all, caplog):
    run_id = start(f"sqlite:///{made_store}")
    (tmp_path / "artifacts").write_text("a file in the place of the folder")
    log_all()
    assert read(untracked)[1] == [{"artifact": "report.html"}, {"artifact": "tables/nodes.json"}]
    assert (untracked.artifacts / "report.html").read_text() == "a page"
    assert len(warnings_of(caplog)) == 1
    run = mlflow.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 0.5, "later": 0.25}


def test_a_file_that_cannot_be_written_either(start, tmp_path, untracked, log_all, caplog):
    untracked.path.parent.write_text("a file in the place of the folder")
    untracked.give_up("database or disk is full")
    start(f"sqlite:///{tmp_path}/mlflow.db")
    log_all()
    (warning,) = warnings_of(caplog)
    assert warning.startswith(
        "MLflow failed, the run goes on. the store: database or disk is full. "
        "What is not tracked is lost: "
    )


def test_callback_of_transformers(start, made_store, untracked):
    from transformers import TrainerState
    from transformers.integrations import MLflowCallback

    run_id = start(f"sqlite:///{made_store}")
    callback = MLflowCallback()
    state = TrainerState(global_step=1)
    arguments = SimpleNamespace(run_name=None, to_dict=dict)
    callback.on_train_begin(arguments, state, None)
    made_store.unlink()
    for state.global_step in (1, 2):
        callback.on_log(arguments, state, None, logs={"loss": 0.5})
    callback.on_train_end(arguments, state, None)
    mlflow.end_run()
    *metrics, ended = read(untracked)[1]
    assert metrics == [{"metric": "loss", "value": 0.5, "step": step} for step in (1, 2)]
    assert ended == {"run_id": run_id, "status": "FINISHED"}


def test_experiments_that_two_processes_create_at_once(start, made_store, untracked, caplog):
    start(f"sqlite:///{made_store}")
    client = mlflow.MlflowClient()
    assert client.create_experiment("ja-instruct") == client.create_experiment("ja-instruct")
    assert warnings_of(caplog) == []


def test_passwords_are_not_shown():
    assert without_password("https://me:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert without_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
