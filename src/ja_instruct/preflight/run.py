"""Check inputs, outputs and resources of a run before its first node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.framework.project import pipelines
from kedro.runner import SequentialRunner

from ja_instruct.checks import ChecksInput, ChecksOutput, ChecksRecords
from ja_instruct.config_loader import SAME_ENTRY
from ja_instruct.datasets.jsonlines_dataset import JSONLinesDataset
from ja_instruct.datasets.whole_file import WholeFile
from ja_instruct.disk_errors import reading
from ja_instruct.errors import InputError
from ja_instruct.preflight.examples import warn_of_small_pools
from ja_instruct.preflight.folders import filepath_of, folder_problems
from ja_instruct.preflight.resources import gpu_problems, space_problems
from ja_instruct.preflight.templates import template_problems
from ja_instruct.preflight.training import training_problems, warn_of_lengths
from kedro_cuda_runner.preflight import read_resources
from kedro_cuda_runner.resources import is_gpu_node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kedro.io import AbstractDataset, DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

# By dataset and not in the catalog: an environment may replace the whole entry.
REQUIRED_COLUMNS = {
    "raw_conversations": ("conversations",),
    "filtered_pairs": ("instruction", "response"),
    "qa_pairs": ("input", "output"),
    "few_shot_pool": ("input", "output"),
    "tasks": ("task_id", "input"),
    "prompts": ("task_id", "input", "prompt"),
    "answers": ("task_id", "input", "output"),
    "perplexity_texts": ("text",),
}

# what the nodes that read these reports take from them
REQUIRED_KEYS = {
    "filter_report": ("summary", "rejected_by_first_rule"),
    "quantization_report": ("summary", "source"),
    "train_metrics": ("summary",),
    "rag_index_report": ("summary",),
    "inference_report": ("summary",),
    "export_report": ("weights_sha256",),
}

# A large input that is read first. Without GPU nodes, reading it twice only delays its errors.
READ_BEFORE_LONG_RUNS = {"raw_conversations"}


def nodes_to_run(
    pipeline: Pipeline, catalog: DataCatalog, *, only_missing_outputs: bool
) -> list[Node]:
    """Return the nodes that a run will execute, in order.

    Hooks get the whole pipeline: Kedro's runner applies ``--only-missing-outputs`` later. Its own
    method is called here.
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
) -> list[Node]:
    """Check everything that would stop a run later.

    Args:
        pipeline: The pipeline to run.
        catalog: With its inputs.
        only_missing_outputs: Whether nodes are skipped, and not checked, if their outputs exist.
        cpu_environments: Returns the environments to suggest when no GPU is found.
        runner: The name of the runner.

    Returns:
        The nodes that the run will execute, in order.

    Raises:
        InputError: Listing every problem.
    """
    nodes = nodes_to_run(pipeline, catalog, only_missing_outputs=only_missing_outputs)
    produced = {output for node in nodes for output in node.outputs}
    used = {name for node in nodes for name in node.inputs if not name.startswith("params:")}
    inputs = sorted({_configured_entry(name, catalog) for name in used - produced})
    is_long = any(is_gpu_node(node) for node in nodes)
    resources, invalid = read_resources(nodes, catalog)
    warn_of_lengths(nodes, catalog)
    problems = [
        *(text for name in inputs for text in _input_problems(name, catalog, is_long=is_long)),
        *_output_problems(nodes, catalog),
        *folder_problems(nodes, catalog),
        *invalid,
        *gpu_problems(resources, catalog, cpu_environments, runner),
        *training_problems(nodes, catalog),
    ]
    problems = problems or [
        *space_problems(resources, catalog, inputs, produced),
        *template_problems(nodes, catalog),
    ]
    if problems:
        raise InputError(
            "the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    warn_of_small_pools(nodes, catalog)
    return nodes


def _configured_entry(name: str, catalog: DataCatalog) -> str:
    """Return the entry that the user wrote for a dataset that may stand for another one."""
    other = SAME_ENTRY.get(name)
    same = other and other in catalog and repr(catalog.get(other)) == repr(catalog.get(name))
    return other if other and same else name


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
    try:
        with reading(path):
            _check_input(name, dataset, catalog)
    except InputError as error:
        must_be_made = isinstance(dataset, WholeFile) or (path is not None and not path.exists())
        needs_remedy = must_be_made and "--pipeline=" not in str(error)
        return [f"'{name}': {error}{_remedy_to_make(name) if needs_remedy else ''}"]
    return []


def _check_input(name: str, dataset: AbstractDataset[Any, Any], catalog: DataCatalog) -> None:
    columns, path = REQUIRED_COLUMNS.get(name, ()), filepath_of(dataset)
    if isinstance(dataset, ChecksRecords):
        bad_records_max = _parameter(catalog, "data_filtering.bad_records_max", 0)
        dataset.check_records(columns, bad_records_max)
    elif isinstance(dataset, ChecksInput):
        dataset.check()
        _check_keys(name, dataset)
    elif path is not None:
        _check_file(path, dataset, columns)


def _check_keys(name: str, dataset: AbstractDataset[Any, Any]) -> None:
    """Raise ``InputError`` if a report lacks what is read from it."""
    if name not in REQUIRED_KEYS:
        return
    report = dataset.load()
    missing = [
        key for key in REQUIRED_KEYS[name] if not isinstance(report, dict) or key not in report
    ]
    if missing:
        raise InputError(
            f"{filepath_of(dataset)}: lacks {', '.join(map(repr, missing))}, so it is not the "
            f"report that this project writes; remove it, and run its pipeline again"
        )


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
