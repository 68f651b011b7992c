"""Every runner makes the same outputs again, and leaves the same records."""

import json
import os
from pathlib import Path

import freshness_nodes as nodes
import pytest
import yaml
from fake_devices import FakeDevices
from kedro.pipeline import node
from kedro.runner import SequentialRunner, ThreadRunner

from kedro_cuda_runner import CudaRunner

HERE = Path(__file__).resolve().parent
RATE = {"training": {"rate": 0.5}}


@pytest.fixture(params=["SequentialRunner", "ThreadRunner", "CudaRunner"])
def new_runner(request, tmp_path_factory):
    """Return a function that makes a runner."""
    if request.param == "CudaRunner":
        layer = FakeDevices(tmp_path_factory.mktemp("devices"))
        return lambda is_async: CudaRunner(is_async=is_async, layer=layer)
    kinds = {"SequentialRunner": SequentialRunner, "ThreadRunner": ThreadRunner}
    return lambda is_async: kinds[request.param](is_async=is_async)


@pytest.mark.parametrize("is_async", [False, True])
def test_runners(project, new_runner, is_async):
    runner = new_runner(is_async)
    inputs = ["cleaned", "params:training"]
    train = node(nodes.train, inputs, ["model", "metrics"], name="train", tags="gpu")
    clean, _, report = project.pipelines["__default__"].nodes
    parts = []
    if not is_async:  # Kedro refuses generators with --async
        project.catalog["text"] = {
            "type": "freshness_datasets.InPlaceDataset",
            "filepath": str(project.folder / "data/text"),
            "mode": "a",
        }
        parts = [
            node(nodes.chunks, "cleaned", "text", name="chunks"),
            node(nodes.join, "text", "memory", name="read"),
        ]
    project.set("__default__", clean, train, report, *parts)
    first = project.run(runner=runner)
    assert len(first.nodes) == 3 + len(parts)
    assert set(project.states().values()) == {"fresh"}
    assert project.again(runner=runner).nodes == []
    assert project.again(runner=runner, params=RATE).nodes == ["train", "report"]
    assert project.read("model")["rate"] == 0.5
    assert set(project.states(params=RATE).values()) == {"fresh"}
    project.write("raw", [8, 9])
    assert len(project.again(runner=runner, params=RATE).nodes) >= 3
    assert set(project.states(params=RATE).values()) == {"fresh"}
    assert not list(project.folder.rglob("*.pending.json"))


def test_versions_under_processes(project, tmp_path_factory):
    """A process that loads an output must not get the version of before."""
    for name in ("cleaned", "model"):
        project.catalog[name]["versioned"] = True
    inputs = ["cleaned", "params:training"]
    project.set(
        "__default__",
        node(nodes.clean, ["raw", "params:limit"], "cleaned", name="clean"),
        node(nodes.train, inputs, ["model", "metrics"], name="train", tags="gpu"),
        node(nodes.report, "model", "report", name="report", tags="gpu"),
    )
    runner = CudaRunner(layer=FakeDevices(tmp_path_factory.mktemp("devices")))
    project.run(runner=runner)
    project.write("raw", [7])
    assert project.again(runner=runner).nodes == ["clean", "train", "report"]
    assert "'rows': [7]" in (project.folder / "data/report.txt").read_text()
    project.write("raw", [6])
    project.run(runner=runner)
    assert "'rows': [6]" in (project.folder / "data/report.txt").read_text()
    assert set(project.states().values()) == {"fresh"}


PROJECT = {
    "pyproject.toml": """
[tool.kedro]
package_name = "bare_project"
project_name = "bare-project"
kedro_init_version = "1.7.0"
source_dir = "src"
""",
    "src/bare_project/__init__.py": "",
    "src/bare_project/settings.py": """
from kedro_freshness import FreshnessHook

HOOKS = (FreshnessHook(libraries=["kedro"]),)
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-telemetry")
""",
    "src/bare_project/pipeline_registry.py": """
import freshness_nodes as nodes
from freshness_project import Project
from kedro.pipeline import node, pipeline


def register_pipelines():
    more = [
        node(nodes.as_list, ["cleaned", "params:limit"], "memory", name="hold"),
        node(nodes.as_list, "memory", "copy", name="copy"),
        node(nodes.chunks, "cleaned", "text", name="chunks"),
    ]
    return {"__default__": Project.default_pipeline(), "more": pipeline(more)}
""",
    "conf/local/.gitkeep": "",
    "conf/base/parameters.yml": "limit: 2\ntraining: {rate: 0.1, lora: {rank: 8}}\n",
}


@pytest.fixture
def run_sessions(tmp_path, run_python, subprocess_environment):
    """Return a function that runs sessions in a process; it returns what they made."""
    catalog = {
        name: {"type": "json.JSONDataset", "filepath": f"data/{name}.json"}
        for name in ("raw", "cleaned", "model", "metrics", "copy")
    }
    catalog["report"] = {"type": "text.TextDataset", "filepath": "data/report.txt"}
    catalog["text"] = {
        "type": "freshness_datasets.InPlaceDataset",
        "filepath": "data/text.txt",
        "mode": "a",
    }
    files = {**PROJECT, "conf/base/catalog.yml": yaml.safe_dump(catalog), "data/raw.json": "[3, 1]"}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(*runs, context="fork"):
        done = run_python(
            HERE / "run_sessions.py",
            json.dumps(runs),
            cwd=tmp_path,
            env={
                "KEDRO_MP_CONTEXT": context,
                "KEDRO_DISABLE_TELEMETRY": "true",
                "COLUMNS": "200",
                "PYTHONPATH": os.pathsep.join(
                    (subprocess_environment["PYTHONPATH"], str(tmp_path / "src"))
                ),
            },
        )
        lines = done.stdout.splitlines()
        made = [json.loads(line[4:]) for line in lines if line.startswith("RUN ")]
        (text,) = [json.loads(line[7:]) for line in lines if line.startswith("STATUS ")]
        return made, text

    return run


def test_parallel_runner(run_sessions):
    parallel = {"runner": "ParallelRunner", "is_async": True}
    again = {**parallel, "only_missing_outputs": True}
    more = {"pipeline_names": ["more"], "is_async": False}  # Kedro refuses generators with --async
    made, text = run_sessions(
        parallel,
        {**parallel, **more},
        {**again, "params": RATE},
        {**again, "params": RATE},
        again,
        {**again, **more},
    )
    changed = ["metrics", "model", "report"]
    assert made == [["cleaned", *changed], ["copy", "text"], changed, [], changed, []]
    assert text.splitlines()[-1] == "6 fresh", text


@pytest.mark.slow
def test_parallel_runner_that_calls_no_hooks(run_sessions):
    """Kedro calls none in processes that it spawns."""
    parallel = {"runner": "ParallelRunner", "only_missing_outputs": True}
    made, text = run_sessions(parallel, {**parallel, "params": RATE}, context="spawn")
    changed = ["metrics", "model", "report"]
    assert made == [["cleaned", *changed], changed]
    assert text.splitlines()[-1] == "1 fresh, 3 stale, 2 missing", text
    assert "stale    model    training.rate was 0.5, is 0.1\n" in text


def test_sessions_in_one_process(run_sessions):
    again = {"only_missing_outputs": True}
    service = {"is_service": True, **again}
    made, text = run_sessions(
        {},
        again,
        {**again, "params": RATE},
        {"is_service": True, "node_names": ["report"], "params": RATE},
        {**service, "params": RATE},
        service,
        {**service, "runner": "ThreadRunner"},
        {**again, "pipeline_names": ["more"]},
    )
    changed = ["metrics", "model", "report"]
    assert made[:3] == [["cleaned", *changed], [], changed]
    assert made[3:] == [["report"], [], changed, [], ["copy", "text"]]
    assert text.splitlines()[-1] == "6 fresh"
