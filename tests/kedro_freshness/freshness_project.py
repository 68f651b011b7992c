"""A Kedro project without a package: its runs go through the same hooks as a session's."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass
from types import SimpleNamespace

import freshness_nodes as nodes
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner

from kedro_freshness.hooks import FreshnessHook, environment_name
from kedro_freshness.inspection import Inspection

PARAMETERS = {"limit": 2, "training": {"rate": 0.1, "lora": {"rank": 8}}}


@dataclass
class Run:
    """What a run did.

    Attributes:
        nodes: Names of the nodes that ran, in order.
        messages: What was logged, without what Kedro logs.
    """

    nodes: list[str]
    messages: list[str]

    @property
    def text(self):
        return "\n".join(self.messages)


class _Recorder(logging.Handler):
    """Collects the names of nodes, as a hook, and log records, as a handler."""

    def __init__(self, run):
        super().__init__(logging.INFO)
        self._run = run

    @hook_impl
    def before_node_run(self, node):
        self._run.nodes.append(node.name)

    def emit(self, record):
        self._run.messages.append(record.getMessage())


class Project:
    """Pipelines, catalog and parameters, which a test changes between runs."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.libraries = ()
        self.data = {}
        self.parameters = copy.deepcopy(PARAMETERS)
        self.pipelines = {"__default__": self.default_pipeline()}
        names = ("raw", "cleaned", "model", "metrics")
        self.catalog = {name: self.json_entry(name) for name in names}
        self.catalog["report"] = {
            "type": "text.TextDataset",
            "filepath": str(folder / "data/report.txt"),
        }
        self.write("raw", [3, 1, 2])
        self.version = 0
        monkeypatch.setattr("kedro_freshness.hooks.pipelines", self.pipelines)

    @staticmethod
    def default_pipeline():
        return pipeline(
            [
                node(nodes.clean, ["raw", "params:limit"], "cleaned", name="clean"),
                node(
                    nodes.train, ["cleaned", "params:training"], ["model", "metrics"], name="train"
                ),
                node(nodes.report, "model", "report", name="report"),
            ]
        )

    def json_entry(self, name, **entry):
        return {"type": "json.JSONDataset", "filepath": str(self.path(name)), **entry}

    def path(self, name):
        return self.folder / "data" / f"{name}.json"

    def write(self, name, value):
        self.path(name).parent.mkdir(exist_ok=True)
        self.path(name).write_text(json.dumps(value))

    def read(self, name):
        return json.loads(self.path(name).read_text())

    def record(self, name):
        """Return the record of an output as JSON."""
        return json.loads(self.record_path(name).read_text())

    def record_path(self, name):
        return self.folder / "data/.freshness" / f"{self.path(name).name}.json"

    def set(self, name, *nodes):
        """Replace a registered pipeline."""
        self.pipelines[name] = pipeline(nodes)

    def new_catalog(self, parameters, *, load_versions=None, catalog_class=DataCatalog):
        self.version += 1
        catalog = catalog_class.from_config(
            copy.deepcopy(self.catalog),
            load_versions=load_versions,
            save_version=f"2026-01-01T00.00.{self.version:02}.000Z",
        )
        for name, value in {"parameters": parameters, **dict(_feed("params:", parameters))}.items():
            catalog[name] = value
        for name, value in self.data.items():
            catalog[name] = value
        return catalog

    def run(
        self,
        name="__default__",
        *,
        only_missing=False,
        runner=None,
        env=None,
        params=None,
        load_versions=None,
        catalog_class=DataCatalog,
        hook=None,
        **filters,
    ):
        """Run a pipeline as KedroSession does; return what ran and what was logged."""
        parameters = _merged(self.parameters, params or {})
        hook = hook or FreshnessHook(self.libraries)
        run = Run([], [])
        recorder = _Recorder(run)
        manager = _create_hook_manager()
        manager.register(hook)
        manager.register(recorder)
        logger = logging.getLogger("kedro_freshness")
        logger.addHandler(recorder)
        level, logger.level = logger.level, logging.INFO
        try:
            context = SimpleNamespace(config_loader={"parameters": parameters}, env=env)
            manager.hook.after_context_created(context=context)
            catalog = self.new_catalog(
                parameters, load_versions=load_versions, catalog_class=catalog_class
            )
            self._run(manager, name, catalog, runner or SequentialRunner(), only_missing, filters)
        finally:
            logger.removeHandler(recorder)
            logger.setLevel(level)
        return run

    def _run(self, manager, name, catalog, runner, only_missing, filters):
        arguments = {"pipeline": self.pipelines[name].filter(**filters), "catalog": catalog}
        params = {"only_missing_outputs": only_missing, "run_id": f"run {self.version}"}
        manager.hook.before_pipeline_run(run_params=params, **arguments)
        try:
            result = runner.run(
                hook_manager=manager, only_missing_outputs=only_missing, **arguments
            )
        except Exception as error:
            manager.hook.on_pipeline_error(error=error, run_params=params, **arguments)
            raise
        manager.hook.after_pipeline_run(run_params=params, run_result=result, **arguments)

    def again(self, **arguments):
        """Run with ``--only-missing-outputs``."""
        return self.run(only_missing=True, **arguments)

    def inspection(self, *, env=None, params=None, name="__default__"):
        parameters = _merged(self.parameters, params or {})
        others = [one for key, one in self.pipelines.items() if key != name]
        return Inspection(
            [self.pipelines[name], *others],
            self.new_catalog(parameters),
            environment_name(env),
            parameters,
            self.libraries,
        )

    def states(self, **arguments):
        """Return the kind of each persisted output."""
        inspection = self.inspection(**arguments)
        return {name: inspection.state(name).kind for name in inspection.recipes.persisted()}

    def reasons(self, name, **arguments):
        """Return why an output is stale."""
        state = self.inspection(**arguments).state(name)
        return [*state.differences, *(f"{one} is stale" for one in state.stale_inputs)]


def _feed(prefix, values):
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _feed(f"{prefix}{key}.", value)


def _merged(values, changes):
    merged = {**values}
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            value = _merged(values[key], value)
        merged[key] = value
    return merged
