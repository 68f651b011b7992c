"""A run of one of the product's pipelines by its own catalog and parameters, in this process.

What a benchmark gives takes the place of catalog entries and parameters; what nobody describes
stays in memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro.validation import ParameterValidator

from benchmarks.harness.recording import PROJECT
from ja_instruct.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kedro.io import AbstractDataset
    from kedro.pipeline import Pipeline
    from pluggy import PluginManager


def read_configuration(environment: str) -> Any:
    """Return an environment's configuration: ``catalog`` and ``parameters``."""
    return CONFIG_LOADER_CLASS(str(PROJECT / "conf"), env=environment, **CONFIG_LOADER_ARGS)


def overridden(parameters: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with some changed.

    >>> overridden({"a": {"b": 1, "c": 2}}, {"a.b": 3})
    {'a': {'b': 3, 'c': 2}}
    """
    changed = dict(parameters)
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        changed[first] = overridden(changed.get(first) or {}, {rest: value}) if rest else value
    return changed


def run_pipeline(
    pipeline: Pipeline,
    datasets: Mapping[str, AbstractDataset[Any, Any]],
    *,
    environment: str = "base",
    changes: Mapping[str, Any] | None = None,
    hooks: PluginManager | None = None,
) -> DataCatalog:
    """Run a pipeline under ``SequentialRunner`` and return the catalog with its outputs.

    Args:
        pipeline: What to run.
        datasets: Instead of the catalog's, by name. Of the catalog's own only inputs are used:
            outputs that are not given stay in memory.
        environment: Where catalog and parameters come from.
        changes: Parameters by their dotted names, such as ``sft.training.max_steps``.
        hooks: Called as Kedro calls a session's.
    """
    configuration = read_configuration(environment)
    # paths of the catalog are relative to the project
    os.chdir(PROJECT)
    parameters = ParameterValidator({"__default__": pipeline}).validate_raw_params(
        overridden(configuration["parameters"], changes or {})
    )
    needed = {name for name in pipeline.inputs() if name not in datasets}
    entries = {name: entry for name, entry in configuration["catalog"].items() if name in needed}
    catalog = DataCatalog.from_config(entries)
    for name in needed - set(entries):
        if name == "parameters":
            catalog[name] = MemoryDataset(parameters)
        elif name.startswith("params:"):
            catalog[name] = MemoryDataset(_at(parameters, name.removeprefix("params:")))
    for name in pipeline.all_outputs() - set(datasets):
        # models are too large to be copied
        catalog[name] = MemoryDataset(copy_mode="assign")
    for name, dataset in datasets.items():
        catalog[name] = dataset
    SequentialRunner().run(pipeline, catalog, hook_manager=hooks)
    return catalog


def _at(parameters: Any, path: str) -> Any:
    for key in path.split("."):
        parameters = parameters[key] if isinstance(parameters, dict) else getattr(parameters, key)
    return parameters
