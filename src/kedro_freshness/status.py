"""The command that lists the outputs of an environment and their states."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.config import MissingConfigException
from kedro.framework import project as framework_project
from kedro.framework.cli.utils import _split_params, validate_conf_source
from kedro.framework.hooks.manager import _NullPluginManager
from kedro.framework.project import pipelines, settings
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project

from kedro_freshness import messages
from kedro_freshness.errors import FreshnessError
from kedro_freshness.fingerprints import location_of
from kedro_freshness.hooks import FreshnessHook, environment_name
from kedro_freshness.inspection import Inspection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro_freshness.inspection import State


@click.command()
@click.option("--env", "-e", default=None, help="Configuration environment.")
@click.option("--pipeline", "-p", "name", default=None, help="Only the outputs of a pipeline.")
@click.option(
    "--params",
    default="",
    callback=_split_params,
    help="Parameters as for 'kedro run': what a run with them would make again.",
)
@click.option(
    "--conf-source",
    default=None,
    callback=validate_conf_source,
    help="Folder or archive of the configuration.",
)
def status(
    env: str | None, name: str | None, params: dict[str, Any], conf_source: str | None
) -> None:
    """List every output: fresh, stale and why, missing, or of unknown origin."""
    project = find_kedro_project(Path.cwd())
    logging.getLogger("kedro").setLevel(logging.WARNING)
    if project is not None:
        bootstrap_project(project)
    elif framework_project.PACKAGE_NAME is not None:  # installed, with a configuration elsewhere
        project = Path.cwd()
    else:
        raise FreshnessError("no Kedro project here: run the command in a project's folder")
    os.chdir(project)
    session: Any = KedroSession.create(
        project, env=env, runtime_params=params, conf_source=conf_source
    )
    session._hook_manager = _NullPluginManager()  # the project's hooks may start a tracking store
    try:
        context = session.load_context()
        parameters, catalog = context.config_loader["parameters"], context.catalog
    except MissingConfigException as error:
        prefix = f"environment '{env}': " if env else ""
        raise FreshnessError(f"{prefix}{error}") from error
    if name is not None and name not in pipelines:
        raise FreshnessError(f"no pipeline '{name}'; there are {', '.join(sorted(pipelines))}")
    first = [name or "__default__"]
    inspection = Inspection(
        [pipelines[one] for one in (*first, *sorted(set(pipelines) - set(first)))],
        catalog,
        environment_name(context.env),
        parameters,
        _libraries(),
    )
    listed = inspection.recipes.persisted()
    if name is not None:
        listed = [output for output in listed if output in pipelines[name].all_outputs()]
    click.echo(_report(inspection, [inspection.state(output) for output in listed]))


def _libraries() -> Sequence[str]:
    """Return those that the project's hook records."""
    hooks = [hook for hook in settings.HOOKS if isinstance(hook, FreshnessHook)]
    if not hooks:
        raise FreshnessError("FreshnessHook is not among HOOKS in the project's settings.py")
    return hooks[0].libraries


def _report(inspection: Inspection, states: Sequence[State]) -> str:
    width = max((len(state.name) for state in states), default=0)
    lines = [
        f"{state.kind:8} {state.name:{width}}  {_details(state, inspection)}".rstrip()
        for state in states
    ]
    notes = list(dict.fromkeys(note for state in states for note in state.notes))
    if notes:
        lines += [
            "",
            "Some were made with other code or libraries, which does not make them stale:",
        ]
        lines += [f"  {note}" for note in notes]
    return "\n".join([*lines, "", messages.summary(states)])


def _details(state: State, inspection: Inspection) -> str:
    path = messages.shortened(location_of(inspection.catalog[state.name]))
    owner = inspection.owner(state.name)
    by = f" (made by environment '{owner.environment}')" if owner else ""
    if state.kind == "stale":
        return messages.reasons(state) + by
    if state.kind == "fresh" and state.missing_inputs:
        return f"{path}{by}; its input {', '.join(state.missing_inputs)} is missing"
    return path + by if state.kind != "missing" else ""
