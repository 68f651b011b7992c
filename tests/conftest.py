"""Fixtures of all tests: no network, copies of the project, tiny models."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from filelock import FileLock

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
# pytest imports test files by path; the modules that they share lie beside this file
sys.path.insert(0, str(TESTS))

# The libraries read these when they are imported.
_HUB_CACHE = tempfile.TemporaryDirectory(prefix="ja-instruct-tests-")
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # the user's downloads and credentials must not change a result
        "HF_HOME": _HUB_CACHE.name,
        # threads of tiny models wait for each other: on two busy cores a step of generation took
        # 50 ms with two threads and 1.3 ms with one
        "OMP_NUM_THREADS": "1",
    }
)
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "KEDRO_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
    os.environ.pop(_name, None)

import no_network  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from click.testing import Result
    from hub_server import HubServer

    from ja_instruct.models.directory import ModelDirectory

RECIPE = REPOSITORY.parent / "shared" / "recipe"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
RUN_SECONDS = 300
# fixtures that run the project or copy it
WHOLE_RUNS = {"clean_project", "finished_run", "run_kedro"}
Made = TypeVar("Made")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that this computer cannot run; start files with whole runs first.

    Test processes take files in this order, so no process starts a long one at the end.
    """
    long = {item.path for item in items if WHOLE_RUNS & {*getattr(item, "fixturenames", ())}}
    items.sort(key=lambda item: item.path not in long)
    for marker, find_reason in (("gpu", _why_no_gpu), ("demo", _why_no_demo)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = find_reason() if marked else None
        for item in marked if reason else []:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def _why_no_demo() -> str | None:
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    for requirement in pyproject["project"]["optional-dependencies"]["demo"]:
        name = re.split(r"[^\w-]", requirement)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"the package '{name}' of the extra 'demo' is not installed"
    return None


@pytest.fixture(scope="session")
def benchmark_module() -> Iterator[Callable[[str], Any]]:
    """Return a function that imports a module of ``benchmarks/`` by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY))
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        no_network.block(patch.setattr)
        yield


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the hub's local cache, which does not exist yet."""
    from huggingface_hub import constants

    cache = tmp_path / "hub_cache"
    # before the constant, which this module copies when it is imported
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def hub_server(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """Return a hub on this computer that this process asks; nothing is cached yet."""
    import datasets
    from hub_server import HubServer
    from huggingface_hub import constants

    server = HubServer()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.uri)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.uri)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.uri)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    yield server
    server.close()


@pytest.fixture(scope="session")
def recipe() -> Path:
    """Return the directory of the recipe's tables and texts."""
    if not RECIPE.is_dir():
        pytest.skip(f"the recipe's tables are not at {RECIPE}")
    return RECIPE


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of the public Japanese data sets."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the public data sets are not at {SHARED_DATA}")
    return SHARED_DATA


def copy_project(target: Path) -> Path:
    """Copy the files that a run needs, without outputs; the packages are linked."""
    target.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "conf", target / "conf", ignore=shutil.ignore_patterns("local"))
    (target / "conf" / "local").mkdir()
    shutil.copytree(REPOSITORY / "data/01_raw/demo", target / "data/01_raw/demo")
    shutil.copy(REPOSITORY / "data/01_raw/perplexity_texts.jsonl", target / "data/01_raw")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(REPOSITORY / name, target)
    # Kedro requires a source directory inside the project, so the packages in it are linked
    (target / "src").mkdir()
    for package in ("ja_instruct", "kedro_cuda_runner", "kedro_freshness"):
        (target / "src" / package).symlink_to(REPOSITORY / "src" / package)
    return target


def make_once(name: str, factory: pytest.TempPathFactory, make: Callable[[], Made]) -> Made:
    """Return the result of ``make``, which one test process calls for all."""
    base = factory.getbasetemp()
    # the folder of a pytest-xdist process is in the folder that all processes share
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = shared / f"{name}.pickle"
    with FileLock(shared / f"{name}.lock"):
        if not made.exists():
            made.write_bytes(pickle.dumps(make()))
        result: Made = pickle.loads(made.read_bytes())
    return result


@pytest.fixture(scope="session")
def clean_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the tiny models; tests copy it before they run it."""
    from tiny_models import make_tiny_models

    def make() -> Path:
        copy = copy_project(tmp_path_factory.mktemp("clean") / "project")
        make_tiny_models(copy)
        return copy

    return make_once("clean_project", tmp_path_factory, make)


@pytest.fixture(scope="session")
def project(clean_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project in which all tests of a process run parts."""
    copy = tmp_path_factory.mktemp("shared") / "project"
    return shutil.copytree(clean_project, copy, symlinks=True)


@pytest.fixture(scope="session")
def subprocess_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return environment variables for a process without network."""
    startup = tmp_path_factory.mktemp("startup")
    (startup / "sitecustomize.py").write_text("import no_network\n\nno_network.block()\n")
    # a checkout that is not installed is found by the caller's own PYTHONPATH
    paths = [str(startup), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "400"}


@pytest.fixture(scope="session")
def run_python(
    subprocess_environment: dict[str, str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python with its arguments in a new process.

    The process must end with ``status``; None accepts every status.
    """

    def run(
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        status: int | None = 0,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={**subprocess_environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert status in (None, done.returncode), done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def run_kedro(
    project: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``kedro run`` with its arguments in a new process."""

    def run(
        *args: str, cwd: Path = project, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "kedro", "run", *args, cwd=cwd, env=env, status=None)

    return run


@dataclass(frozen=True)
class FinishedRun:
    """A run of all pipelines in the environment ``test``.

    Attributes:
        project: A copy of the project with the outputs of the run.
        process: The finished process.
        before: Size, time and inode of the project's files before the run, by path.
        after: The same after the run.
    """

    project: Path
    process: subprocess.CompletedProcess[str]
    before: dict[str, tuple[int, int, int]]
    after: dict[str, tuple[int, int, int]]


@pytest.fixture(scope="session")
def list_files() -> Callable[..., dict[str, tuple[int, int, int]]]:
    """Return a function from a directory to size, time and inode of its files, by path.

    Links are not followed; paths below its other arguments are skipped.
    """

    def list_them(directory: Path, *leave_out: str) -> dict[str, tuple[int, int, int]]:
        files = {}
        for folder, _, names in os.walk(directory):
            for path in (Path(folder) / name for name in names):
                relative = path.relative_to(directory)
                if not any(relative.is_relative_to(other) for other in leave_out):
                    stat = path.lstat()
                    files[relative.as_posix()] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        return files

    return list_them


@pytest.fixture(scope="session")
def finished_run(
    clean_project: Path,
    run_kedro: Callable[..., subprocess.CompletedProcess[str]],
    list_files: Callable[..., dict[str, tuple[int, int, int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> FinishedRun:
    """Run all pipelines once for all tests."""

    def make() -> FinishedRun:
        copy = tmp_path_factory.mktemp("finished") / "project"
        shutil.copytree(clean_project, copy, symlinks=True)
        before = list_files(copy)
        process = run_kedro("--env=test", cwd=copy)
        assert process.returncode == 0, process.stderr
        return FinishedRun(copy, process, before, list_files(copy))

    return make_once("finished_run", tmp_path_factory, make)


@pytest.fixture(scope="session")
def finished_project(finished_run: FinishedRun) -> Path:
    """Return the project after ``finished_run``; tests copy it before they change it."""
    return finished_run.project


@pytest.fixture
def invoke_kedro(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Return a function that runs ``kedro run`` in this process, which is faster."""
    import mlflow
    from click.testing import CliRunner
    from kedro.framework.cli.cli import KedroCLI
    from kedro.utils import find_kedro_project

    def invoke(*args: str, cwd: Path = project) -> Result:
        monkeypatch.chdir(cwd)
        return CliRunner().invoke(KedroCLI(find_kedro_project(cwd) or cwd), ["run", *args])

    yield invoke
    while mlflow.active_run() is not None:
        mlflow.end_run()


@pytest.fixture
def shown_records(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the runner's table shows of each node, by its name; nothing is printed."""
    from kedro_cuda_runner.report import TableHook

    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        TableHook, "show", lambda self: shown.update({one.node: one for one in self._records})
    )
    return shown


@pytest.fixture
def add_environment(project: Path) -> Iterator[Callable[..., str]]:
    """Return a function that adds an environment based on ``test`` for one test.

    Its keyword arguments are names of files without ``.yml``, and what they change. The outputs of
    the environment have their own directories.
    """
    import yaml

    made: list[Path] = []

    def add(name: str, *, root: Path = project, **files: dict[str, Any]) -> str:
        directory = root / "conf" / name
        shutil.copytree(root / "conf/test", directory)
        made.append(directory)
        for file, content in {"globals": {"run_name": name}, **files}.items():
            path = directory / f"{file}.yml"
            old = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
            path.write_text(yaml.safe_dump(_merge(old, content), allow_unicode=True), "utf-8")
        return f"--env={name}"

    yield add
    for directory in made:
        shutil.rmtree(directory)
        for outputs in directory.parents[1].glob(f"data/*/{directory.name}"):
            shutil.rmtree(outputs)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        merged[key] = _merge(old[key], value) if both and "type" not in value else value
    return merged


@pytest.fixture(scope="session")
def read_configuration() -> Callable[[str], Mapping[str, Any]]:
    """Return a function from an environment's name to its ``catalog`` and ``parameters``."""
    from ja_instruct.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

    def read(environment: str) -> Mapping[str, Any]:
        return CONFIG_LOADER_CLASS(str(REPOSITORY / "conf"), env=environment, **CONFIG_LOADER_ARGS)

    return read


@pytest.fixture(scope="session")
def read_parameters(
    read_configuration: Callable[[str], Mapping[str, Any]],
) -> Callable[[str], dict[str, Any]]:
    """Return a function from an environment's name to its parameters, by section."""
    return lambda environment: read_configuration(environment)["parameters"]


@pytest.fixture(scope="session")
def tiny_gemma2(clean_project: Path) -> ModelDirectory:
    """Return a tiny random Gemma 2 with its tokenizer."""
    from ja_instruct.models.directory import ModelDirectory

    return ModelDirectory(clean_project / "data/06_models/test/tiny_gemma2", "tiny-random-gemma2")


@pytest.fixture(scope="session")
def tiny_nf4(
    tiny_gemma2: ModelDirectory,
    tmp_path_factory: pytest.TempPathFactory,
    read_parameters: Callable[[str], dict[str, Any]],
) -> ModelDirectory:
    """Return the tiny model as the recipe quantizes it, on the CPU."""
    from ja_instruct.datasets import QuantizedModelDataset
    from ja_instruct.pipelines.quantization.nodes import quantize
    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

    parameters = QuantizationParameters(**read_parameters("test")["quantization"])
    dataset = QuantizedModelDataset(filepath=tmp_path_factory.mktemp("nf4") / "quantized_model")
    dataset.save(quantize(tiny_gemma2, parameters))
    return dataset.load()


@pytest.fixture(scope="session")
def tiny_adapter(
    tiny_nf4: ModelDirectory,
    tmp_path_factory: pytest.TempPathFactory,
    read_parameters: Callable[[str], dict[str, Any]],
) -> ModelDirectory:
    """Return an adapter of the tiny model with random weights; a new one is zero."""
    import torch

    from ja_instruct.datasets import AdapterDataset
    from ja_instruct.models.directory import ModelArtifact
    from ja_instruct.pipelines.sft.backends import adapt_with_peft
    from ja_instruct.pipelines.sft.parameters import SftParameters

    model, tokenizer = adapt_with_peft(tiny_nf4, SftParameters(**read_parameters("test")["sft"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    dataset = AdapterDataset(filepath=tmp_path_factory.mktemp("adapter") / "adapter")
    dataset.save(ModelArtifact(model, tokenizer, {}))
    return dataset.load()
