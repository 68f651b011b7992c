"""What must hold before a run starts: parameters, inputs, devices, memory, disk."""

from __future__ import annotations

import difflib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from kedro.config import MissingConfigException
from kedro.framework.project import pipelines, settings
from kedro.runner import SequentialRunner
from kedro.validation.type_extractor import TypeExtractor
from pydantic import BaseModel, ValidationError

from ja_instruct.checks import ChecksInput, ChecksOutput, ChecksRecords, DescribesModel
from ja_instruct.config import RENAMED_PARAMETERS
from ja_instruct.datasets.jsonlines_dataset import JSONLinesDataset
from ja_instruct.errors import InputError
from ja_instruct.memory.estimates import cpu_memory_bytes
from ja_instruct.memory.resources import parameter_count_of
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.sft.parameters import SftParameters
from kedro_cuda_runner.devices import default_layer
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.preflight import (
    device_problems,
    disk_problems,
    free_disk_problems,
    read_resources,
)
from kedro_cuda_runner.resources import is_gpu_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kedro.framework.context import KedroContext
    from kedro.io import AbstractDataset, DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from kedro_cuda_runner.resources import Resources

REQUIRED_COLUMNS = {
    "raw_conversations": ("conversations",),
    "filtered_pairs": ("instruction", "response"),
    "qa_pairs": ("input", "output"),
    "tasks": ("task_id", "input"),
    "prompts": ("task_id", "input", "prompt"),
    "answers": ("task_id", "input", "output"),
    "perplexity_texts": ("text",),
}

# Large, and the first input to be read: a run without hours of GPU work reports its errors as soon
# without reading it twice.
READ_BEFORE_LONG_RUNS = {"raw_conversations"}

CPU_ENVIRONMENTS = {
    "demo": " (a small real model)",
    "test": " (tiny random models, after 'make tiny-models')",
}


def check_parameters(context: KedroContext) -> None:
    """Raise ``InputError`` naming every parameter that is unknown, missing or out of range."""
    try:
        raw = context.config_loader["parameters"]
    except MissingConfigException as error:
        conf = context.project_path / "conf"
        known = sorted(path.name for path in conf.iterdir() if path.is_dir())
        raise InputError(
            f"environment '{context.env}' does not exist: no folder conf/{context.env}"
            f"{_suggest(str(context.env), known)}; there are {', '.join(known)}"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"a parameter file is no valid YAML: {error}") from error
    requirements = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
    problems = []
    for section in raw:
        if section not in requirements:
            problems.append(f"'{section}' is no parameter section{_suggest(section, requirements)}")
    for section, model in requirements.items():
        if section not in raw:
            problems.append(f"section '{section}' is missing; conf/base/ should hold it")
        elif issubclass(model, BaseModel):
            problems += _problems_of(section, raw[section], model)
    if problems:
        raise InputError(
            "parameters cannot be used:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\nThey come from conf/base, conf/{context.env or 'local'} and --params."
        )


def _problems_of(section: str, values: Any, model: type[BaseModel]) -> list[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            key = ".".join([section, *map(str, detail["loc"])])
            if detail["type"] == "extra_forbidden":
                known = _fields_at(model, detail["loc"][:-1])
                problems.append(_unknown_key_problem(key, known))
            elif not detail["loc"]:  # of the section as a whole, which need not be shown
                problems.append(f"'{section}': {detail['msg'].removeprefix('Value error, ')}")
            elif detail["type"] == "missing":
                problems.append(f"'{key}' is missing")
            else:
                problems.append(f"'{key}' = {detail['input']!r}: {detail['msg']}")
        return problems
    return []


def _unknown_key_problem(key: str, known: Iterable[str]) -> str:
    if key in RENAMED_PARAMETERS:
        return f"'{key}' is now '{RENAMED_PARAMETERS[key]}'"
    return f"'{key}' is unknown{_suggest(key.rpartition('.')[2], known)}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def nodes_to_run(
    pipeline: Pipeline, catalog: DataCatalog, *, only_missing_outputs: bool
) -> list[Node]:
    """Return the nodes that a run will execute, in order.

    Kedro decides about ``--only-missing-outputs`` inside its runner, after the hooks have been
    told of the whole pipeline, so its own decision is asked for here.
    """
    if only_missing_outputs:
        pipeline = SequentialRunner()._filter_pipeline_for_missing_outputs(pipeline, catalog)
    return pipeline.nodes


def check_run(
    pipeline: Pipeline,
    catalog: DataCatalog,
    *,
    only_missing_outputs: bool,
    cpu_environments: Callable[[], Sequence[str]] = tuple,
    runner: str = "",
) -> None:
    """Raise ``InputError`` listing everything that would stop the run later.

    Args:
        pipeline: What is to run.
        catalog: With its inputs.
        only_missing_outputs: Nodes whose outputs exist will be skipped, so they need nothing.
        cpu_environments: Returns the environments that need no GPU, for who has none.
        runner: The name of the runner.
    """
    nodes = nodes_to_run(pipeline, catalog, only_missing_outputs=only_missing_outputs)
    produced = {output for node in nodes for output in node.outputs}
    inputs = {name for node in nodes for name in node.inputs} - produced
    is_long = any(is_gpu_node(node) for node in nodes)
    problems = [
        problem
        for name in sorted(inputs)
        if not name.startswith("params:")
        for problem in _input_problems(name, catalog, is_long=is_long)
    ]
    problems += _output_problems(nodes, catalog)
    resources, invalid = read_resources(nodes, catalog)
    problems += invalid
    problems += _device_problems(resources, cpu_environments, runner)
    problems += _library_problems(resources, catalog)
    if not problems:
        problems += _memory_problems(resources, catalog)
        problems += disk_problems(resources, catalog)
        problems += _download_problems(inputs, catalog)
    if problems:
        raise InputError(
            "the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def filepath_of(dataset: Any) -> Path | None:
    """Return a dataset's file or directory, which Kedro's datasets keep in ``_filepath``."""
    filepath = getattr(dataset, "_filepath", None)
    return None if filepath is None else Path(str(filepath))


def _input_problems(name: str, catalog: DataCatalog, *, is_long: bool) -> list[str]:
    dataset = catalog.get(name)
    if dataset is None:
        return [f"'{name}' is not in the catalog{_remedy_to_make(name)}"]
    path = filepath_of(dataset)
    if not is_long and name in READ_BEFORE_LONG_RUNS and path is not None and dataset.exists():
        return []
    retriever = _parameter(catalog, "rag_index.retriever", "colbert")
    if name == "retriever_checkpoint" and retriever == "bm25":  # BM25 uses no checkpoint
        return []
    columns = REQUIRED_COLUMNS.get(name, ())
    try:
        if isinstance(dataset, ChecksRecords):
            bad_records_max = _parameter(catalog, "data_filtering.bad_records_max", 0)
            dataset.check_records(columns, bad_records_max)
        elif isinstance(dataset, ChecksInput):
            dataset.check()
        elif path is not None:
            _check_file(path, dataset, columns)
    except InputError as error:
        needs_remedy = path is not None and not path.exists() and "--pipeline=" not in str(error)
        return [f"'{name}': {error}{_remedy_to_make(name) if needs_remedy else ''}"]
    return []


def _check_file(path: Path, dataset: AbstractDataset[Any, Any], columns: Sequence[str]) -> None:
    """Raise ``InputError`` if the file of another library's dataset cannot be used."""
    if "*" in str(path):  # a pattern of several files, which only its dataset can read
        return
    if path.suffix == ".jsonl" and path.is_file():
        JSONLinesDataset(filepath=path).check_records(columns)
    elif not dataset.exists():
        raise InputError(f"{path} does not exist")


def _output_problems(nodes: list[Node], catalog: DataCatalog) -> list[str]:
    problems = []
    for name in sorted({output for node in nodes for output in node.outputs}):
        dataset = catalog.get(name)
        try:
            if isinstance(dataset, ChecksOutput):
                dataset.check_output()
        except InputError as error:
            problems.append(f"'{name}': {error}")
    return problems


def _parameter(catalog: DataCatalog, name: str, default: Any) -> Any:
    return catalog.load(f"params:{name}") if f"params:{name}" in catalog else default


def _remedy_to_make(name: str) -> str:
    for pipeline_name, pipeline in pipelines.items():
        if pipeline_name != "__default__" and name in pipeline.all_outputs():
            return f"; 'kedro run --pipeline={pipeline_name}' (with the same --env) makes it"
    return f"; put the file there, or point the catalog entry '{name}' at another place"


def _device_problems(
    resources: Mapping[Node, Resources],
    cpu_environments: Callable[[], Sequence[str]],
    runner: str,
) -> list[str]:
    problems = device_problems(
        resources, default_layer(), lambda: _no_gpu_remedy(cpu_environments())
    )
    return problems + [
        f"node '{node.name}' requests {required.devices} devices, which only the CUDA runner "
        f"provides; add --runner=kedro_cuda_runner.CudaRunner"
        for node, required in resources.items()
        if required.devices > 1 and "CudaRunner" not in runner
    ]


def _library_problems(nodes: Iterable[Node], catalog: DataCatalog) -> list[str]:
    if find_spec("unsloth") is not None:
        return []
    sections = dict.fromkeys(name for node in nodes for name in node.inputs)
    backends = [
        f"{name.removeprefix('params:')}.backend"
        for name in sections
        if name.startswith("params:")
        and isinstance(values := catalog.load(name), SftParameters | InferenceParameters)
        and values.backend == "unsloth"
    ]
    if not backends:
        return []
    return [
        f"{', '.join(backends)}: 'unsloth' is not installed; "
        f"pip install -e '.[gpu]' -c requirements.txt"
    ]


def _no_gpu_remedy(cpu_environments: Sequence[str]) -> str:
    listed = ", ".join(
        f"'--env={name}'{CPU_ENVIRONMENTS.get(name, '')}" for name in cpu_environments
    )
    without = f", or in an environment that needs none: {listed}" if listed else ""
    return f"run on a machine with an NVIDIA GPU{without}"


def environments_without_gpu(context: KedroContext) -> list[str]:
    """Return the environments of ``conf/`` in which no section's device is ``cuda``."""
    loader: Any = context.config_loader
    names = sorted(path.name for path in Path(loader.conf_source).iterdir() if path.is_dir())
    found = []
    for name in names:
        if name in (loader.base_env, loader.default_run_env):
            continue
        other = type(loader)(loader.conf_source, env=name, **settings.CONFIG_LOADER_ARGS)
        sections = other["parameters"].values()
        if not any(isinstance(one, dict) and one.get("device") == "cuda" for one in sections):
            found.append(name)
    return found


def _memory_problems(resources: Mapping[Node, Resources], catalog: DataCatalog) -> list[str]:
    """Compare free host memory with what the largest model on the CPU takes."""
    on_cpu = [node for node, required in resources.items() if not required.devices]
    count = max((parameter_count_of(node, catalog) or 0 for node in on_cpu), default=0)
    required_bytes = cpu_memory_bytes(count)
    free = psutil.virtual_memory().available
    if not count or free >= required_bytes:
        return []
    return [
        f"about {gigabytes(required_bytes)} of memory are needed for a model of "
        f"{count / 1e9:.2f} billion parameters on the CPU, {gigabytes(free)} are free; close other "
        f"programs, or choose a smaller base_model"
    ]


def _download_problems(inputs: Iterable[str], catalog: DataCatalog) -> list[str]:
    from huggingface_hub import constants

    sizes: dict[str, int] = {}
    for name in inputs:
        dataset = catalog.get(name)
        if isinstance(dataset, DescribesModel):
            sizes[f"the download of {name}"] = dataset.pending_download_bytes()
    remedy = "set HF_HOME to a folder on a larger disk"
    return free_disk_problems(sizes, Path(constants.HF_HUB_CACHE), remedy)
