"""The MLflow run continues in the nodes' processes, and only its owner ends it."""

import json
import os

import gpu_nodes
import pytest
from gpu_runs import gpu, run
from kedro.pipeline import node

from kedro_cuda_runner.errors import GpuNodeError


@pytest.fixture
def tracking_uri(tmp_path):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("tracking_uri")
def test_two_runs_of_pipelines_in_one_mlflow_run(tmp_path, layer):
    import mlflow

    def records():
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/cuda_runner.json")
        return {one["node"]: one for one in json.loads(text)["nodes"]}

    def status(*_):
        return client.get_run(run_id).info.status

    client = mlflow.MlflowClient()
    experiment = mlflow.create_experiment("tracked", (tmp_path / "artifacts").as_uri())
    nodes = [
        gpu(gpu_nodes.log_loss, "params:loss", "run_id"),
        gpu(gpu_nodes.train_with_callback, "params:loss", "trained", "train"),
        node(status, "trained", "status", name="status"),
    ]
    data = {"params:loss": 0.25}
    with mlflow.start_run(experiment_id=experiment) as active:
        run_id = active.info.run_id
        outputs = run(nodes, data, layer)
        metrics, done = client.get_run(run_id).data.metrics, records()
        with pytest.raises(GpuNodeError):
            run([gpu(gpu_nodes.raise_value_error, "params:loss", name="fail")], data, layer)
        assert records()["fail"]["outcome"] == "failed"
        assert mlflow.active_run().info.run_id == run_id

    # the nodes log to the run, and only its owner ends it
    assert outputs["run_id"] == run_id
    assert (metrics["loss"], metrics["trained"]) == (0.25, 0.5)
    assert len(client.search_runs([experiment])) == 1
    assert (outputs["status"], status()) == ("RUNNING", "FINISHED")
    # metrics of nodes with their own processes, records of all
    assert metrics["node.log_loss.seconds"] > 0
    assert metrics["node.train.gpu_percent"] in (50, 51)
    assert not [name for name in metrics if name.startswith("node.status")]
    assert {name: one["outcome"] for name, one in done.items()} == dict.fromkeys(
        ("log_loss", "train", "status"), "done"
    )
    assert done["status"]["place"] == "CPU"


@pytest.mark.usefixtures("tracking_uri")
def test_nodes_build_the_store_as_the_runner_does(tmp_path, layer, monkeypatch):
    import mlflow
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry as registry

    monkeypatch.setitem(registry._registry, "sqlite", gpu_nodes.build_watched_store)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # of other tests
    with mlflow.start_run(experiment_id="0"):
        run([gpu(gpu_nodes.log_loss, "params:loss", "run_id")], {"params:loss": 0.25}, layer)
    here, there = (tmp_path / "mlflow.db.builders").read_text().split()
    assert int(here) == os.getpid() != int(there)


WITHOUT_A_RUN = """
import sys
from pathlib import Path
import gpu_nodes
from fake_devices import FakeDevices
from gpu_runs import gpu, run
outputs = run([gpu(gpu_nodes.imported, "x", "there")], {"x": 1}, FakeDevices(Path(sys.argv[1])))
print("imported:", outputs["there"], gpu_nodes.imported(None))
"""


def test_mlflow_and_torch_are_not_imported_without_a_run(
    tmp_path, run_python, subprocess_environment
):
    done = run_python("-c", WITHOUT_A_RUN, tmp_path, env=subprocess_environment)
    assert "imported: [] []" in done.stdout
