"""Runs of the product's pipelines by their own catalog and parameters, and a clock for their nodes.

The caller's datasets and parameters replace those of the catalog; other outputs stay in memory.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro.validation import ParameterValidator

from benchmarks.harness.recording import PROJECT
from ja_instruct.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kedro.io import AbstractDataset
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node


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
    clock: NodeClock | None = None,
) -> DataCatalog:
    """Run a pipeline under ``SequentialRunner`` and return the catalog with its outputs.

    Args:
        pipeline: What to run.
        datasets: Replace the catalog's entries by name. Only inputs are taken from the catalog:
            outputs that are not given stay in memory.
        environment: Where catalog and parameters come from.
        changes: Parameters by their dotted names, such as ``sft.training.max_steps``.
        clock: Times the nodes.
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
    if clock is not None:
        hooks.register(clock)
    SequentialRunner().run(pipeline, catalog, hook_manager=hooks)
    return catalog


class NodeClock:
    """A Kedro hook that times each phase of each node: load, run, and save of each output.

    Attributes:
        phases: Seconds by phase, such as ``quantize: run``. Between two phases lie Kedro's own
            work and that of other hooks; they count to the later one.
    """

    def __init__(self, on_end: Callable[[str], object] | None = None) -> None:
        """Start the clock; ``on_end`` is called with the name of each phase that has ended."""
        self._on_end = on_end
        self.phases: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Count the time until now to no phase."""
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        if self._on_end is not None:
            self._on_end(phase)
        self.restart()

    @hook_impl(trylast=True)
    def before_dataset_loaded(self, dataset_name: str, node: Node) -> None:
        """End what came before the first node: checks and imports."""
        if not self.phases:
            self.end("before the first node")

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """All inputs are loaded."""
        self.end(f"{node.name}: load")

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """The outputs are computed."""
        self.end(f"{node.name}: run")

    @hook_impl(tryfirst=True)
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """An output is saved, or kept in memory."""
        self.end(f"{node.name}: save {dataset_name}")
