"""The hook that records what made each output, and has stale outputs made again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines, settings
from kedro.runner import SequentialRunner

from kedro_freshness import messages
from kedro_freshness.errors import FreshnessError
from kedro_freshness.fingerprints import fingerprint_dataset, location_of
from kedro_freshness.inspection import Inspection, Settings
from kedro_freshness.recipes import code_of
from kedro_freshness.records import Record, begin_record, complete_record, settle_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kedro.framework.context import KedroContext
    from kedro.io import AbstractDataset, CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

# Hooks of nodes may run in other processes, which get the catalog: what they need is attached to
# the datasets of the outputs, under this name.
DRAFT = "_freshness_draft"


@dataclass(frozen=True)
class _Draft:
    """The record of an output, without the inputs that do not exist yet when a run starts."""

    record: Record
    pending_inputs: tuple[str, ...]


def _is_stale() -> bool:
    """Stand in for the method ``exists`` of a dataset that is to be made again."""
    return False


class FreshnessHook:
    """Records what made each persisted output, and tells a run which of them to trust.

    With ``--only-missing-outputs`` stale outputs count as missing, so that every runner makes them
    again, with all that depends on them. Outputs that another environment made are not rewritten.

    Args:
        libraries: Distributions whose versions are recorded, such as ``torch``.
    """

    def __init__(self, libraries: Sequence[str] = ()) -> None:
        self.libraries = tuple(libraries)
        self._parameters: Mapping[str, Any] = {}
        self._environment = ""
        self._drafts: dict[str, tuple[AbstractDataset[Any, Any], Record]] = {}

    @hook_impl(trylast=True)  # the project's own checks of its configuration have better messages
    def after_context_created(self, context: KedroContext) -> None:
        """Read the environment's name and the parameters.

        Raises:
            FreshnessError: The section ``freshness`` cannot be used.
        """
        self._parameters = context.config_loader["parameters"]
        Settings.from_parameters(self._parameters)
        self._environment = environment_name(context.env)

    @hook_impl(tryfirst=True)  # checks of the run ask which nodes it will run
    def before_pipeline_run(
        self,
        run_params: dict[str, Any],
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
    ) -> None:
        """Log the state of the outputs, have stale ones made again, and prepare the records.

        Raises:
            FreshnessError: The run would rewrite what another environment made.
        """
        self._drafts = {}  # of an earlier run in this process
        inspection = Inspection(
            [pipeline, *(pipelines[name] for name in sorted(pipelines))],
            catalog,
            self._environment,
            self._parameters,
            self.libraries,
        )
        own = [
            name for name in sorted(pipeline.all_outputs()) if inspection.recipes.is_persisted(name)
        ]
        for name in own:
            path = location_of(catalog[name])
            if path is not None:
                settle_record(path)
        nodes = pipeline.nodes
        remakes = None
        if run_params["only_missing_outputs"]:
            remakes = inspection.remakes(pipeline)
            for name in remakes.outputs:
                catalog[name].exists = _is_stale
            nodes = SequentialRunner()._filter_pipeline_for_missing_outputs(pipeline, catalog).nodes
        _refuse_rewriting(nodes, inspection)
        if remakes is not None:
            messages.log_remakes(logger, inspection, pipeline, remakes)
        messages.log_stale_inputs(logger, inspection, nodes)
        self._attach_drafts(nodes, inspection)

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Complete the drafts of the node's records by the inputs that this run has made."""
        for name in node.outputs:
            dataset = catalog[name]
            draft: _Draft | None = getattr(dataset, DRAFT, None)
            if draft is None:
                continue
            made = {one: fingerprint_dataset(catalog[one]) for one in draft.pending_inputs}
            record = replace(draft.record, inputs={**draft.record.inputs, **made})
            self._drafts[name] = (dataset, record)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Write a pending record, which holds if the process is killed while it saves."""
        if dataset_name in self._drafts:
            dataset, record = self._drafts[dataset_name]
            path = location_of(dataset, saving=True)
            if path is not None:
                begin_record(path, record)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Complete the record by the fingerprint of the saved output."""
        if dataset_name in self._drafts:
            dataset, record = self._drafts[dataset_name]
            _restore(dataset)
            path = location_of(dataset, saving=True)
            if path is not None and path.exists():
                made_at = datetime.now().astimezone().isoformat(timespec="seconds")
                output = fingerprint_dataset(dataset)
                complete_record(path, replace(record, output=output, made_at=made_at))

    @hook_impl(tryfirst=True)  # other hooks ask whether outputs exist
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let datasets tell again whether they exist."""
        _restore_all(pipeline, catalog)

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let datasets tell again whether they exist."""
        _restore_all(pipeline, catalog)

    def _attach_drafts(self, nodes: Sequence[Node], inspection: Inspection) -> None:
        made = {name for node in nodes for name in node.outputs}
        for node in nodes:
            recipe = inspection.recipes.of(node)
            # an input that is downloaded when it is loaded has no fingerprint yet
            pending = [
                name
                for name in recipe.inputs
                if name in made or inspection.fingerprint(name) is None
            ]
            known = {
                name: inspection.fingerprint(name) for name in recipe.inputs if name not in pending
            }
            for name in node.outputs:
                if inspection.recipes.is_persisted(name):
                    record = Record(
                        name,
                        node.name,
                        self._environment,
                        recipe.parameters,
                        known,
                        code=code_of(node),
                        libraries=inspection.libraries,
                    )
                    dataset = inspection.catalog[name]
                    setattr(dataset, DRAFT, _Draft(record, tuple(pending)))


def environment_name(env: str | None) -> str:
    """Return the name of an environment; without ``--env`` it is Kedro's default one."""
    return env or str(settings.CONFIG_LOADER_ARGS.get("default_run_env", "local"))


def _refuse_rewriting(nodes: Sequence[Node], inspection: Inspection) -> None:
    problems = []
    for node in nodes:
        for name in node.outputs:
            record = inspection.owner(name)
            if record is not None:
                path = location_of(inspection.catalog[name])
                problems.append(
                    f"'{name}' ({messages.shortened(path)}), by node '{node.name}'; environment "
                    f"'{record.environment}' made it at {record.made_at}"
                )
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise FreshnessError(
            f"the run would rewrite what another environment made:\n{listed}\n"
            f"Give these a filepath of their own in the catalog of environment "
            f"'{inspection.environment}'. To use them as they are, run with "
            f"--only-missing-outputs, and point the node's other outputs at the other "
            f"environment's too. --params=freshness.rewrite_others=true allows it."
        )


def _restore(dataset: AbstractDataset[Any, Any]) -> None:
    vars(dataset).pop("exists", None)


def _restore_all(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    for name in pipeline.all_outputs():
        dataset = catalog.get(name)
        if dataset is not None and vars(dataset).get("exists") is _is_stale:
            _restore(dataset)
