"""The MLflow run continues in the nodes' processes, and only its owner ends it."""

import json
import subprocess
import sys

import gpu_nodes
import pytest
from gpu_runs import gpu, run
from kedro.pipeline import node

from kedro_cuda_runner.errors import GpuNodeError


class Tracked:
    """An MLflow run with two runs of pipelines in it, of which the second fails."""

    def __init__(self, folder, layer):
        import mlflow

        self.client = mlflow.MlflowClient()
        self.experiment = mlflow.create_experiment("tracked", (folder / "artifacts").as_uri())
        nodes = [
            gpu(gpu_nodes.log_loss, "params:loss", "run_id"),
            gpu(gpu_nodes.train_with_callback, "params:loss", "trained", "train"),
            node(lambda *_: self.status(), "trained", "status", name="status"),
        ]
        data = {"params:loss": 0.25}
        with mlflow.start_run(experiment_id=self.experiment) as active:
            self.run_id = active.info.run_id
            self.outputs = run(nodes, data, layer)
            self.metrics = self.client.get_run(self.run_id).data.metrics
            self.records = self.artifact()
            with pytest.raises(GpuNodeError):
                run([gpu(gpu_nodes.raise_value_error, "params:loss", name="fail")], data, layer)
            self.records_of_failure = self.artifact()
            self.is_active_after_failure = mlflow.active_run().info.run_id == self.run_id

    def status(self):
        return self.client.get_run(self.run_id).info.status

    def artifact(self):
        import mlflow

        uri = f"runs:/{self.run_id}/cuda_runner.json"
        return {one["node"]: one for one in json.loads(mlflow.artifacts.load_text(uri))["nodes"]}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, layer):
    import mlflow

    folder = tmp_path_factory.mktemp("tracked")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    yield Tracked(folder, layer)
    mlflow.set_tracking_uri(before)


class TestTracked:
    def test_node_logs_to_the_run(self, tracked):
        assert tracked.outputs["run_id"] == tracked.run_id
        assert tracked.metrics["loss"] == 0.25

    def test_transformers_callback_logs_there_and_leaves_it_running(self, tracked):
        assert tracked.metrics["trained"] == 0.5
        assert tracked.outputs["status"] == "RUNNING"
        assert len(tracked.client.search_runs([tracked.experiment])) == 1

    def test_its_owner_ends_it(self, tracked):
        assert tracked.is_active_after_failure
        assert tracked.status() == "FINISHED"

    def test_measurements_of_nodes_with_processes_are_metrics(self, tracked):
        assert tracked.metrics["node.log_loss.seconds"] > 0
        assert tracked.metrics["node.train.gpu_percent"] in (50, 51)
        assert not [name for name in tracked.metrics if name.startswith("node.status")]

    def test_all_records_are_an_artifact(self, tracked):
        assert set(tracked.records) == {"log_loss", "train", "status"}
        assert {one["outcome"] for one in tracked.records.values()} == {"done"}
        assert tracked.records["status"]["place"] == "CPU"

    def test_records_of_a_failed_run(self, tracked):
        assert tracked.records_of_failure["fail"]["outcome"] == "failed"


WITHOUT_A_RUN = """
import sys
from pathlib import Path
import gpu_nodes
from fake_devices import FakeDevices
from gpu_runs import gpu, run
outputs = run([gpu(gpu_nodes.imported, "x", "there")], {"x": 1}, FakeDevices(Path(sys.argv[1])))
print("imported:", outputs["there"], gpu_nodes.imported(None))
"""


def test_mlflow_and_torch_are_not_imported_without_a_run(tmp_path, subprocess_environment):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_RUN, str(tmp_path)],
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "imported: [] []" in done.stdout, done.stderr
