"""Check what the node ``train`` would find out when the model is loaded and the data encoded."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ja_instruct.checks import NamesModules
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import parameters_of
from ja_instruct.pipelines.sft.nodes import train
from ja_instruct.pipelines.sft.target_modules import unknown_targets
from ja_instruct.pipelines.sft.trainer_names import missing_packages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.sft.parameters import SftParameters


def training_problems(nodes: Sequence[Node], catalog: DataCatalog) -> list[str]:
    """Return the packages and modules that the trainings of a run lack."""
    problems = []
    for node in (node for node in nodes if node.func is train):
        section, parameters = parameters_of(node, catalog, "sft")
        problems += _missing_packages(section, parameters)
        modules = _find_modules(node, nodes, catalog)
        if modules:
            problems += [
                f"'{section}.lora.target_modules': {problem}"
                for problem in unknown_targets(parameters.lora.target_modules, modules)
            ]
    return problems


def _missing_packages(section: str, parameters: SftParameters) -> list[str]:
    training = parameters.training
    names = {training.optim: "optim", **dict.fromkeys(training.report_to, "report_to")}
    return [
        f"'{section}.training.{names[name]}' = '{name}' needs a package that is not installed: "
        f"pip install {shlex.quote(package)}"
        for name, package in missing_packages(names).items()
    ]


def _find_modules(node: Node, nodes: Sequence[Node], catalog: DataCatalog) -> frozenset[str] | None:
    """Return the names of the modules of the model that a node trains, or None if not known.

    They are the base model's, if the run quantizes it first.
    """
    produced_from = {output: one.inputs for one in nodes for output in one.outputs}
    model = node.inputs[0]
    for name in (*produced_from.get(model, ()), model):
        dataset = catalog.get(name) if name in catalog else None
        if isinstance(dataset, NamesModules):
            try:
                return dataset.module_names()
            except InputError:  # which the dataset's own check reports
                return None
    return None
