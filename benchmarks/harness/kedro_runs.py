"""Runs of the product's pipelines by their own catalog and parameters, with some replaced."""

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
    hook: object = None,
) -> DataCatalog:
    """Run a pipeline under ``SequentialRunner`` and return the catalog with its outputs.

    Args:
        pipeline: What to run.
        datasets: Replace the catalog's entries. Other inputs come from there; other outputs stay in
            memory.
        environment: Where catalog and parameters come from.
        changes: Parameters by their dotted names, such as ``sft.training.max_steps``.
        hook: A Kedro hook to call.
    """
    from kedro.framework.hooks.manager import _create_hook_manager

    configuration = read_configuration(environment)
    # paths of the catalog are relative to the project
    os.chdir(PROJECT)
    parameters = ParameterValidator({"__default__": pipeline}).validate_raw_params(
        overridden(configuration["parameters"], changes or {})
    )
    needed = pipeline.inputs() - set(datasets)
    entries = {name: entry for name, entry in configuration["catalog"].items() if name in needed}
    catalog = DataCatalog.from_config(entries)
    for name in needed - set(entries):
        value = parameters
        for key in name.split(".") if name != "parameters" else ():
            key = key.removeprefix("params:")
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        catalog[name] = MemoryDataset(value)
    for name in pipeline.all_outputs() - set(datasets):
        # models are too large to be copied
        catalog[name] = MemoryDataset(copy_mode="assign")
    for name, dataset in datasets.items():
        catalog[name] = dataset
    hooks = _create_hook_manager()
    if hook is not None:
        hooks.register(hook)
    SequentialRunner().run(pipeline, catalog, hook_manager=hooks)
    return catalog
