"""The project's pipelines with the CUDA runner on real devices, with tiny random models."""

import json
import shutil

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import MemoryDataset
from kedro.pipeline import pipeline

from ja_instruct.datasets import AdapterDataset
from ja_instruct.pipelines.sft import create_pipeline
from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.devices import default_layer

pytestmark = pytest.mark.gpu

RUNNER = "--runner=kedro_cuda_runner.CudaRunner"
SECTIONS = ("quantization", "sft", "inference")


@pytest.fixture(scope="module")
def device_count():
    return len(default_layer().find())


@pytest.fixture(scope="module")
def on_gpu(clean_project, tmp_path_factory):
    """A copy of the project with an environment ``gpu``."""
    import yaml

    copy = tmp_path_factory.mktemp("gpu") / "project"
    shutil.copytree(clean_project, copy, symlinks=True)
    environment = copy / "conf/gpu"
    shutil.copytree(copy / "conf/test", environment)
    path = environment / "parameters.yml"
    parameters = yaml.safe_load(path.read_text("utf-8"))
    for section in SECTIONS:
        parameters[section]["device"] = "cuda"
    parameters["sft"]["training"]["bf16"] = True
    path.write_text(yaml.safe_dump(parameters), "utf-8")
    return copy


@pytest.fixture(scope="module")
def records(on_gpu, run_kedro):
    """The runner's record of each node of a whole run, by name."""
    process = run_kedro("--env=gpu", RUNNER, cwd=on_gpu)
    assert process.returncode == 0, process.stdout + process.stderr
    (artifact,) = on_gpu.glob("data/mlflow/artifacts/*/artifacts/cuda_runner.json")
    nodes = json.loads(artifact.read_text("utf-8"))["nodes"]
    return {one["node"]: one for one in nodes}


def test_gpu_nodes_are_on_the_device(records):
    names = "quantize measure_quantization train answer_tasks answer_with_base_model"
    for name in names.split():
        assert records[name]["devices"] != [], name
        assert records[name]["peak_bytes"] > 0
        # the batched engine uses all free memory, so only its minimum is known
        assert (records[name]["estimated_bytes"] is None) == name.startswith("answer")


def test_every_task_is_answered(records, on_gpu):
    answers = (on_gpu / "data/07_model_output/test/output.jsonl").read_text("utf-8").splitlines()
    assert len(answers) == 20


def test_filtering_runs_beside_quantization(records):
    quantize, filtering = records["quantize"], records["judge_pairs"]
    start = filtering["started_seconds"]
    assert quantize["started_seconds"] < start
    assert start + filtering["seconds"] < quantize["started_seconds"] + quantize["seconds"]


@pytest.fixture
def context(records, on_gpu, monkeypatch):
    monkeypatch.chdir(on_gpu)
    bootstrap_project(on_gpu)
    with KedroSession.create(on_gpu, env="gpu") as session:
        yield session.load_context()


def test_two_trials_on_two_devices_at_once(context, device_count, shown_records, tmp_path):
    if device_count < 2:
        pytest.skip("PyTorch finds one CUDA device, two are needed")
    catalog = context.catalog
    trials = pipeline([])
    for name, rank in (("small", 2), ("large", 8)):
        sft = catalog.load("params:sft")
        catalog[f"params:{name}.sft"] = MemoryDataset(
            sft.model_copy(
                update={
                    "lora": sft.lora.model_copy(update={"lora_r": rank}),
                    "checkpoint_dir": str(tmp_path / name / "checkpoints"),
                }
            )
        )
        catalog[f"{name}.adapter"] = AdapterDataset(filepath=tmp_path / name / "adapter")
        trials += pipeline(
            create_pipeline(),
            namespace=name,
            inputs={"quantized_model", "filtered_pairs", "qa_pairs"},
            parameters={"params:prompts"},
        )
    CudaRunner().run(trials, catalog)
    one, other = shown_records["small.train"], shown_records["large.train"]
    assert {one.devices, other.devices} == {(0,), (1,)}
    assert abs(one.started_seconds - other.started_seconds) < min(one.seconds, other.seconds)
    ranks = [
        json.loads((tmp_path / name / "adapter/adapter_config.json").read_text("utf-8"))["r"]
        for name in ("small", "large")
    ]
    assert ranks == [2, 8]


def test_training_on_two_devices(on_gpu, records, run_kedro, device_count):
    if device_count < 2:
        pytest.skip("PyTorch finds one CUDA device, two are needed")
    process = run_kedro(
        "--env=gpu", RUNNER, "--pipeline=sft", "--params=sft.gpu.devices=2", cwd=on_gpu
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "cuda:0, cuda:1" in process.stdout
    metrics = json.loads((on_gpu / "data/08_reporting/test/train_metrics.json").read_text("utf-8"))
    assert metrics["summary"]["steps"] == 4
