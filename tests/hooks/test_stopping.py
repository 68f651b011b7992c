"""A run that a signal ends is KILLED in MLflow, and its last line is the command that goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import RunTag

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {
    "pyproject.toml": """
[tool.kedro]
package_name = "bare"
project_name = "bare"
kedro_init_version = "1.7.0"
source_dir = "src"
""",
    "src/bare/__init__.py": "",
    "src/bare/settings.py": """
from ja_instruct.hooks import stopping
from ja_instruct.hooks.stopping import StoppedRunHook
from ja_instruct.hooks.tracking import FlatParametersMlflowHook

stopping.GRACE_SECONDS, stopping.NOTICE_SECONDS = 2.0, 0.5
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-telemetry")
HOOKS = (FlatParametersMlflowHook(), StoppedRunHook())
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*"]},
}
""",
    "src/bare/pipeline_registry.py": """
import os
import signal
import time
from pathlib import Path

from kedro.pipeline import node, pipeline


def hang(text):
    Path("begun").touch()
    time.sleep(60)
    return text


def fail(text):
    raise ValueError(text)


def interrupt(text):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


def register_pipelines():
    functions = {"hang": hang, "interrupt": interrupt, "short": len, "fail": fail}
    return {
        name: pipeline([node(function, "params:text", name, name=name)])
        for name, function in functions.items()
    }
""",
    "conf/base/parameters.yml": "text: words",
    "conf/base/globals.yml": "run_name: bare",
    "conf/base/catalog.yml": "text: {type: MemoryDataset}",
    "conf/local/.gitkeep": "",
    "session.py": """
from pathlib import Path

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path.cwd())
for name in ("interrupt", "short"):
    try:
        with KedroSession.create() as session:
            session.run(pipeline_names=[name])
    except KeyboardInterrupt:
        print("interrupted")
""",
}


@pytest.fixture
def bare(tmp_path, made):
    """A project with the hooks, whose store is made."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    shutil.copy(REPOSITORY / "conf/base/mlflow.yml", tmp_path / "conf/base")
    (tmp_path / "data/mlflow").mkdir(parents=True)
    (tmp_path / "data/mlflow/mlflow.db").write_bytes(made)
    return tmp_path


def heed_signals():
    """Undo that background jobs of a shell ignore Ctrl-C, and jobs under nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def begin(bare, subprocess_environment):
    """Return a function that begins a command in the project."""
    begun = []

    def begin(*command):
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=bare,
            env={**subprocess_environment, "KEDRO_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_signals,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture
def begin_to_hang(begin, bare):
    """Return a function that begins a run and waits until its node hangs."""

    def begin_to_hang(*args):
        process = begin("-m", "kedro", "run", "--pipeline=hang", *args)
        while not (bare / "begun").exists() and process.poll() is None:
            time.sleep(0.05)
        return process

    return begin_to_hang


def runs_of(folder):
    """Return the status of each run of the project, the oldest first."""
    client = MlflowClient(f"sqlite:///{folder}/data/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("ja-instruct").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    return [(run.info.run_name, run.info.status) for run in runs]


CUDA = "kedro_cuda_runner.CudaRunner"


@pytest.mark.parametrize(
    ("runner", "signals", "code"),
    [
        ("SequentialRunner", [signal.SIGINT], 1),
        ("SequentialRunner", [signal.SIGTERM], 128 + signal.SIGTERM),
        ("SequentialRunner", [signal.SIGHUP], 128 + signal.SIGHUP),
        ("ThreadRunner", [signal.SIGINT], 128 + signal.SIGINT),
        ("ThreadRunner", [signal.SIGTERM, signal.SIGTERM], 128 + signal.SIGTERM),
        (CUDA, [signal.SIGINT], 1),
        (CUDA, [signal.SIGTERM], 128 + signal.SIGTERM),
    ],
)
def test_stopped_run(begin_to_hang, bare, runner, signals, code):
    process = begin_to_hang(f"--runner={runner}")
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert "Traceback" not in output
    command = f"kedro run --pipeline=hang --runner={runner} --only-missing-outputs"
    assert output.splitlines()[-1] == f"Stopped. To go on: {command}"
    waits = runner == "ThreadRunner" and len(signals) == 1
    assert ("Waiting for nodes up to 2 s; Ctrl-C ends them" in output) is waits
    assert runs_of(bare) == [("hang", "KILLED")]


def test_a_run_that_fails_or_ends_is_not_stopped(begin, bare):
    for name in ("fail", "short"):
        output, _ = begin("-m", "kedro", "run", f"--pipeline={name}").communicate(timeout=60)
        assert "Stopped" not in output
    assert runs_of(bare) == [("fail", "FAILED"), ("short", "FINISHED")]


def test_a_session_that_goes_on_after_ctrl_c(begin, bare):
    """As in a notebook: the next run is another one, and the process lives on."""
    process = begin("session.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "interrupted" in output.splitlines()
    assert "Stopped" not in output
    assert runs_of(bare) == [("interrupt", "KILLED"), ("short", "FINISHED")]


def test_a_later_run_ends_those_of_ended_processes(begin_to_hang, begin, bare):
    process = begin_to_hang()
    process.kill()
    process.wait()
    assert runs_of(bare) == [("hang", "RUNNING")]
    client = MlflowClient(f"sqlite:///{bare}/data/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("ja-instruct").experiment_id
    here = f"{socket.gethostname()} {os.getpid()}"
    tags = {
        "elsewhere": "another-host 1 1",
        "living": f"{here} {psutil.Process().create_time():.0f}",
        "unknown": None,
        "of an earlier process with the same id": f"{here} 1",
        "that could not store its end": f"{here} 1",
    }
    for name, tag in tags.items():
        run_id = client.create_run(experiment, run_name=name).info.run_id
        if tag is not None:
            client.log_batch(run_id, tags=[RunTag("ja_instruct.process", tag)])
    untracked = bare / "data/08_reporting/earlier/untracked_0101_000000.jsonl"
    untracked.parent.mkdir(parents=True)
    other, last = ({"run_id": one, "status": "FINISHED"} for one in ("1f" * 16, run_id))
    untracked.write_text(f"{json.dumps(other)}\n{json.dumps(last)}\n")
    begin("-m", "kedro", "run", "--pipeline=short").communicate(timeout=60)
    assert runs_of(bare) == [
        ("hang", "KILLED"),
        *((name, "RUNNING") for name in ("elsewhere", "living", "unknown")),
        ("of an earlier process with the same id", "KILLED"),
        ("that could not store its end", "FINISHED"),
        ("short", "FINISHED"),
    ]


def test_a_run_without_a_usable_store(begin, bare):
    store = bare / "data/mlflow/mlflow.db"
    store.write_text("not a database")
    process = begin("-m", "kedro", "run", "--pipeline=short")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    (file,) = (bare / "data/08_reporting/bare").glob("untracked_*.jsonl")
    text = " ".join(output.split())
    assert text.count("MLflow failed, the run goes on. data/mlflow/mlflow.db: file is not") == 1
    assert f"is written to data/08_reporting/bare/{file.name}" in text
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {"param": "text", "value": "words"} in records
    assert records[-1]["status"] == "FINISHED"
    assert store.read_text() == "not a database"
