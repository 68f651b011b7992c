"""The hook that records what made each output, and has stale outputs made again."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines, settings

from kedro_freshness import messages
from kedro_freshness.errors import FreshnessError
from kedro_freshness.files import discard_unfinished
from kedro_freshness.fingerprints import (
    FOLDER,
    fingerprint_dataset,
    has_own_fingerprint,
    location_of,
)
from kedro_freshness.inspection import Inspection, Settings
from kedro_freshness.recipes import code_of, stored
from kedro_freshness.records import (
    Record,
    begin_record,
    complete_record,
    finish_record,
    is_recorded,
    settle_record,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

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
        # outputs that this process saves, by name, with the inputs that have no fingerprint yet
        self._drafts: dict[
            str,
            tuple[AbstractDataset[Any, Any], Record, dict[str, AbstractDataset[Any, Any]]],
        ] = {}
        # fingerprints of what this process has saved; None while it saves
        self._made: dict[Path, str | None] = {}

    @hook_impl(trylast=True)  # the project's own checks of its configuration have better messages
    def after_context_created(self, context: KedroContext) -> None:
        """Read the environment's name and the parameters.

        Raises:
            FreshnessError: The section ``freshness`` cannot be used.
        """
        self._parameters = context.config_loader["parameters"]
        Settings.from_parameters(self._parameters)
        self._environment = environment_name(context.env)
        package = logging.getLogger(__package__)
        if package.level == logging.NOTSET:  # conf/logging.yml does not name it
            package.setLevel(logging.INFO)

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
        self._drafts.clear()  # of an earlier run in this process
        self._made.clear()
        inspection = Inspection(
            [pipeline, *(pipelines[name] for name in sorted(pipelines))],
            catalog,
            self._environment,
            self._parameters,
            self.libraries,
        )
        _settle(pipeline, inspection)
        nodes, remakes = pipeline.nodes, None
        if run_params["only_missing_outputs"]:
            remakes = inspection.remakes(pipeline)
            nodes = remakes.nodes
        _refuse_rewriting(nodes, inspection)
        if remakes is not None:
            messages.log_remakes(logger, inspection, pipeline, remakes)
            for name in remakes.outputs:
                catalog[name].exists = _is_stale
        messages.log_stale_inputs(logger, inspection, nodes)
        _attach_drafts(nodes, inspection, run_params.get("run_id") or "")
        inspection.release()

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Complete the drafts of the node's records by the inputs that this run has made."""
        for name in node.outputs:
            dataset = catalog[name]
            draft: _Draft | None = getattr(dataset, DRAFT, None)
            if draft is not None:
                record = self._record_of(draft, catalog)
                late = {one: catalog[one] for one, found in record.inputs.items() if found is None}
                self._drafts[name] = (dataset, record, late)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Write a pending record, which says that the output may be half-written."""
        if dataset_name in self._drafts:
            dataset, record, _ = self._drafts[dataset_name]
            path = location_of(dataset, saving=True)
            # a generator's output is saved in chunks, and incomplete until its node has ended
            if path is not None and path not in self._made:
                self._made[path] = None
                begin_record(path, _dated(record), saved=False)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Complete the record by the fingerprint of the saved output."""
        if dataset_name in self._drafts:
            dataset, record, late = self._drafts[dataset_name]
            _restore(dataset)
            path = _saved_to(dataset)
            if path is not None and not inspect.isgeneratorfunction(node.func):
                # a handle may have downloaded its input while the node used it
                found = {name: fingerprint_dataset(one) for name, one in late.items()}
                record = replace(record, inputs={**record.inputs, **found})
                begin_record(path, _dated(record), saved=True)
                self._made[path] = fingerprint_dataset(dataset, path)
                complete_record(path, replace(_dated(record), output=self._made[path]))

    @hook_impl(tryfirst=True)  # other hooks ask whether outputs exist
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let datasets tell again whether they exist, and write the records that are missing.

        These are the records of generators, and of all outputs if Kedro has called no hooks in
        the processes of ``ParallelRunner``, as with the start method ``spawn``.
        """
        saved_here = set(self._made)
        for name in pipeline.all_outputs():
            dataset = catalog.get(name)
            draft: _Draft | None = getattr(dataset, DRAFT, None)
            path = None if dataset is None or draft is None else _saved_to(dataset)
            if dataset is None or draft is None or path is None:
                continue
            fingerprint = partial(fingerprint_dataset, dataset, path)
            finish_record(path, fingerprint)
            if path not in saved_here and not is_recorded(path, draft.record.run):
                record = self._record_of(draft, catalog)
                complete_record(path, replace(_dated(record), output=fingerprint()))
        _detach(pipeline, catalog)

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let datasets tell again whether they exist."""
        _detach(pipeline, catalog)

    def _record_of(self, draft: _Draft, catalog: CatalogProtocol[Any, Any]) -> Record:
        made = {name: self._fingerprint_made(catalog[name]) for name in draft.pending_inputs}
        return replace(draft.record, inputs={**draft.record.inputs, **made})

    def _fingerprint_made(self, dataset: AbstractDataset[Any, Any]) -> str | None:
        """Return the fingerprint of what a node that has ended has made."""
        path = location_of(dataset)
        made = None if path is None or has_own_fingerprint(dataset) else self._made.get(path)
        if made is None:
            made = fingerprint_dataset(dataset)
            if path is not None:
                finish_record(path, lambda: made)
                self._made[path] = made
        return made


def _saved_to(dataset: AbstractDataset[Any, Any]) -> Path | None:
    return location_of(dataset, saving=True) or location_of(dataset)


def _settle(pipeline: Pipeline, inspection: Inspection) -> None:
    """Settle what killed runs left of the records of a pipeline's outputs."""
    folders = set()
    for name in filter(inspection.recipes.is_persisted, pipeline.all_outputs()):
        path = location_of(inspection.catalog[name])
        if path is not None:
            settle_record(path, partial(inspection.fingerprint, name))
            folders.add(path.parent / FOLDER)
    for folder in folders:
        discard_unfinished(folder)


def _attach_drafts(nodes: Sequence[Node], inspection: Inspection, run: str) -> None:
    made = {stored(name) for node in nodes for name in node.outputs}
    for node in nodes:
        outputs = [name for name in node.outputs if inspection.recipes.is_persisted(name)]
        if not outputs:
            continue
        recipe = inspection.recipes.of(node)
        known = {
            name: inspection.fingerprint(name)
            for name in sorted(recipe.inputs)
            if stored(name) not in made
        }
        # an input that is downloaded when it is loaded has no fingerprint yet
        pending = tuple(name for name in sorted(recipe.inputs) if known.get(name) is None)
        for name in outputs:
            record = Record(
                name,
                node.name,
                inspection.environment,
                recipe.parameters,
                known,
                run=run,
                code=code_of(node),
                libraries=inspection.libraries,
            )
            setattr(inspection.catalog[name], DRAFT, _Draft(record, pending))


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


def _dated(record: Record) -> Record:
    return replace(record, made_at=datetime.now().astimezone().isoformat(timespec="seconds"))


def _restore(dataset: AbstractDataset[Any, Any]) -> None:
    if vars(dataset).get("exists") is _is_stale:
        del dataset.exists


def _detach(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
    for name in pipeline.all_outputs():
        dataset = catalog.get(name)
        if dataset is not None:
            _restore(dataset)
            vars(dataset).pop(DRAFT, None)
