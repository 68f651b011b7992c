"""Check what a node would find out when the model is loaded and the data encoded."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

from kedro.io import DatasetError

from ja_instruct.checks import NamesModules
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import parameters_of, positions_of
from ja_instruct.pipelines.inference.nodes import answer_tasks
from ja_instruct.pipelines.sft.nodes import build_datasets, train
from ja_instruct.pipelines.sft.step_counts import StepCounts, held_out_count
from ja_instruct.pipelines.sft.target_modules import unknown_targets
from ja_instruct.pipelines.sft.trainer_names import missing_packages
from ja_instruct.tables.columns import as_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.sft.parameters import SftParameters


logger = logging.getLogger(__name__)


def warn_of_lengths(nodes: Sequence[Node], catalog: DataCatalog) -> None:
    """Log where ``max_seq_length`` exceeds the positions that the model was made for.

    A warning, because most models compute beyond them, though worse, and most texts are shorter.
    """
    for node in nodes:
        if node.func not in (train, answer_tasks):
            continue
        positions = positions_of(node, catalog)
        name = "sft" if node.func is train else "inference"
        section, parameters = parameters_of(node, catalog, name)
        if positions and parameters.max_seq_length > positions:
            logger.warning(
                "%s.max_seq_length = %d, but the model has %d positions: it was not made for "
                "longer texts; lower max_seq_length",
                section,
                parameters.max_seq_length,
                positions,
            )


def training_problems(nodes: Sequence[Node], catalog: DataCatalog) -> list[str]:
    """Return what the trainings of a run lack: packages, modules, evaluations; log warnings.

    The number of steps is known if neither the pairs nor the samples are made in this run.
    """
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
        counts = _count_steps(node, nodes, catalog)
        problems += [] if counts is None else _check(counts)
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
    for name in produced_from.get(model, [model]):
        dataset = catalog.get(name) if name in catalog else None
        if isinstance(dataset, NamesModules):
            try:
                return dataset.module_names()
            except InputError:  # which the dataset's own check reports
                return None
    return None


def nodes_with_unknown_steps(nodes: Sequence[Node]) -> list[Node]:
    """Return the trainings whose number of samples depends on what the run makes first."""
    return [node for node in nodes if node.func is train and _sources(node, nodes) is None]


def check_steps(node: Node, catalog: DataCatalog) -> None:
    """Check the number of steps of a node that trains, once its samples are saved.

    Raises:
        InputError: The training would not do what the parameters say.
    """
    problems = _check(_count_samples(node, catalog))
    if problems:
        raise InputError("; ".join(problems))


def _check(counts: StepCounts) -> list[str]:
    for text in counts.warnings():
        logger.warning("%s", text)
    return counts.errors()


def _sources(node: Node, nodes: Sequence[Node]) -> list[str] | None:
    """Return what a training's number of samples follows from; None if the run makes it first."""
    samples = node.inputs[1:3]
    maker = next((one for one in nodes if samples[0] in one.outputs), None)
    names = samples if maker is None else maker.inputs[:2]
    produced = {output for one in nodes for output in one.outputs}
    is_known = maker is None or maker.func is build_datasets
    return names if is_known and not produced & {*names} else None


def _count(name: str, catalog: DataCatalog) -> int:
    return len(as_dataset(catalog.load(name), name))


def _count_samples(node: Node, catalog: DataCatalog) -> StepCounts:
    section, parameters = parameters_of(node, catalog, "sft")
    train_samples, eval_samples = (_count(name, catalog) for name in node.inputs[1:3])
    return StepCounts(train_samples, eval_samples, parameters, section)


def _count_steps(node: Node, nodes: Sequence[Node], catalog: DataCatalog) -> StepCounts | None:
    """Return the figures of a node that trains, or None if they are not known yet."""
    names = _sources(node, nodes)
    if names is None:
        return None
    try:
        if names == node.inputs[1:3]:
            return _count_samples(node, catalog)
        filtered, written = (_count(name, catalog) for name in names)
    except (DatasetError, TypeError):  # which the dataset's own check reports
        return None
    section, parameters = parameters_of(node, catalog, "sft")
    held_out = held_out_count(filtered, parameters.eval_fraction)
    return StepCounts(filtered - held_out + written, held_out, parameters, section)
