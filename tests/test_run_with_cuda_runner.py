"""``kedro run`` with the CUDA runner has the results of ``SequentialRunner``."""

import re
import shutil

import pytest
from mlflow import MlflowClient

# each of the five GPU nodes starts a process of its own
pytestmark = pytest.mark.slow

RUNNER = "--runner=kedro_cuda_runner.CudaRunner"
GPU_NODES = ("quantize", "measure_quantization", "train", "answer_tasks", "answer_with_base_model")


@pytest.fixture(scope="module")
def isolated(clean_project, run_kedro, tmp_path_factory):
    copy = tmp_path_factory.mktemp("isolated") / "project"
    shutil.copytree(clean_project, copy, symlinks=True)
    process = run_kedro("--env=test", RUNNER, cwd=copy, env={"PYTHONHASHSEED": "16"})
    assert process.returncode == 0, process.stdout + process.stderr
    return copy, process


def test_same_outputs(isolated, finished_project, benchmark_module):
    """Two undisturbed runs agree: sets have another order in each process."""
    outputs = benchmark_module("harness.outputs")
    assert outputs.differences(finished_project, isolated[0]) == {}


def test_same_run_in_mlflow(isolated, finished_project):
    runs = []
    for root in (isolated[0], finished_project):
        client = MlflowClient(f"sqlite:///{root}/data/mlflow/mlflow.db")
        (experiment,) = [one for one in client.search_experiments() if one.name == "ja-instruct"]
        (run,) = client.search_runs([experiment.experiment_id])
        runs.append((client, run))
    (client, made), (other_client, expected) = runs
    assert made.info.status == "FINISHED"
    assert made.data.params == expected.data.params
    own = {name for name in made.data.metrics if name.startswith("node.")}
    assert own == {f"node.{node}.seconds" for node in GPU_NODES}
    assert set(made.data.metrics) - own == set(expected.data.metrics)
    curve, expected_curve = (
        [(one.step, one.value) for one in here.get_metric_history(run.info.run_id, "loss")]
        for here, run in ((client, made), (other_client, expected))
    )
    assert curve == expected_curve != []
    artifacts = {artifact.path for artifact in client.list_artifacts(made.info.run_id)}
    assert {"cuda_runner.json", "nodes.json", "report.html"} <= artifacts
    assert made.data.tags["runner"] == "kedro_cuda_runner.CudaRunner"


def test_a_table_of_the_nodes_comes_last(isolated):
    shown = isolated[1].stdout
    table = shown[shown.rindex(" node ") :]
    for node in GPU_NODES:
        assert re.search(rf"{node} +CPU, own process +[\d.]+ s", table)
    assert re.search(r"extract_pairs +CPU +[\d.]+ s", table)
    assert "Report" not in table
    assert "Traceback" not in shown + isolated[1].stderr


def test_nothing_is_left_behind(isolated):
    # a lock that is removed could be held by another run
    kept = (".gitkeep", ".freshness", ".mlflow.db.lock")
    hidden = [path for path in (isolated[0] / "data").rglob(".*") if path.name not in kept]
    assert hidden == []
