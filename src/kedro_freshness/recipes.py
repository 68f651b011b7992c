"""What a run would make each output of: the parameters and inputs that count."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kedro.framework import project
from kedro.io.core import DatasetError

from kedro_freshness.declarations import PREFIX, without_effect
from kedro_freshness.fingerprints import without_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence
    from types import ModuleType

    from kedro.io import AbstractDataset, CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

T = TypeVar("T")
PARAMETERS = "parameters"
MISSING = object()


@dataclasses.dataclass
class Recipe:
    """What an output is made of.

    Attributes:
        parameters: Values that count, by full name.
        inputs: Names of persisted inputs, and of data that the catalog itself holds.
        ignored: Names of parameters that are declared to have no effect.
    """

    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: set[str] = dataclasses.field(default_factory=set)
    ignored: set[str] = dataclasses.field(default_factory=set)


class Recipes:
    """The recipes of all outputs of a project.

    Args:
        pipelines: The pipeline of the run first, then the registered ones. Of several nodes that
            make the same output, the run's counts.
        catalog: Tells which datasets are persisted.
        parameters: All parameters as the configuration gives them. (The catalog has them with
            their types only for the nodes of the requested pipelines.)
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        catalog: CatalogProtocol[Any, Any],
        parameters: Mapping[str, Any],
    ) -> None:
        self._catalog = catalog
        self._parameters = parameters
        self._recipes: dict[Node, Recipe] = {}
        self._datasets: dict[str, AbstractDataset[Any, Any] | None] = {}
        self._producers: dict[str, list[Node]] = {}
        self._of_run = {stored(name) for one in pipelines[:1] for name in one.all_outputs()}
        for pipeline in pipelines:
            for node in pipeline.nodes:
                for output in node.outputs:
                    producers = self._producers.setdefault(stored(output), [])
                    if node not in producers:
                        producers.append(node)

    def producers(self, name: str) -> Sequence[Node]:
        """Return the nodes that make a dataset, the run's first; none for an input."""
        return self._producers.get(stored(name), ())

    def producer(self, name: str, recorded: str = "") -> Node | None:
        """Return the node that makes a dataset; None for an input of the project.

        Args:
            name: Name of the dataset.
            recorded: The node that made it, which counts if the run does not make it.
        """
        producers = self.producers(name)
        if recorded and stored(name) not in self._of_run:
            producers = sorted(producers, key=lambda node: node.name != recorded)
        return producers[0] if producers else None

    def persisted(self) -> list[str]:
        """Return the persisted outputs of all nodes, in the order of the pipelines."""
        nodes = dict.fromkeys(node for nodes in self._producers.values() for node in nodes)
        names = dict.fromkeys(name for node in nodes for name in node.outputs)
        return [name for name in names if self.is_persisted(name)]

    def dataset(self, name: str) -> AbstractDataset[Any, Any] | None:
        """Return a dataset of the catalog; None if it has none, or one that cannot be created."""
        if name not in self._datasets:
            try:
                self._datasets[name] = self._catalog.get(name)
            except DatasetError as error:  # the run fails too, if it needs the dataset
                logger.debug("'%s' is left out: %s", name, error)
                self._datasets[name] = None
        return self._datasets[name]

    def is_persisted(self, name: str) -> bool:
        """Return whether the catalog has the dataset and keeps it beyond a run."""
        dataset = self.dataset(name)
        return dataset is not None and not getattr(dataset, "_EPHEMERAL", False)

    def of(self, node: Node) -> Recipe:
        """Return what a node's outputs are made of.

        An input that is only in memory is replaced by what it is made of itself.
        """
        for one in in_order(node, self._makers_in_memory, self._recipes):
            self._recipes[one] = self._compose(one)
        return self._recipes[node]

    def _makers_in_memory(self, node: Node) -> list[Node]:
        makers = (self._maker_in_memory(name) for name in self._inputs_that_count(node))
        return [maker for maker in makers if maker is not None]

    def _maker_in_memory(self, name: str) -> Node | None:
        return None if self.is_persisted(name) else self.producer(name)

    def _inputs_that_count(self, node: Node) -> list[str]:
        declared, prefix = without_effect(node.func), _prefix(node)
        return [
            name
            for name in node.inputs
            if not _is_parameter(name) and not declared.covers(name.removeprefix(prefix))
        ]

    def _compose(self, node: Node) -> Recipe:
        recipe = Recipe()
        declared, prefix = without_effect(node.func), _prefix(node)
        for name in filter(_is_parameter, node.inputs):
            section = "" if name == PARAMETERS else name.removeprefix(PREFIX)
            value = self._value(section)
            if value is MISSING:  # a hook has put it into the catalog
                if not declared.covers(PREFIX + section.removeprefix(prefix)):
                    recipe.inputs.add(name)
                continue
            for key, one in flatten(value, section):
                if declared.covers(PREFIX + key.removeprefix(prefix)):
                    recipe.ignored.add(key)
                else:
                    recipe.parameters[key] = one
        for name in self._inputs_that_count(node):
            maker = self._maker_in_memory(name)
            if maker is None:
                recipe.inputs.add(name)
            elif maker in self._recipes:
                made_of = self._recipes[maker]
                recipe.parameters |= made_of.parameters
                recipe.inputs |= made_of.inputs
                recipe.ignored |= made_of.ignored
        return recipe

    def _value(self, section: str) -> Any:
        values: Any = self._parameters
        for part in section.split(".") if section else ():
            if not isinstance(values, Mapping) or part not in values:
                return MISSING
            values = values[part]
        return values


def in_order(start: T, needed: Callable[[T], Iterable[T]], done: Container[T]) -> Iterator[T]:
    """Yield what is not done yet of ``start`` and all that it needs, each after what it needs.

    The caller adds each to ``done``. Of those that need each other, one comes first.
    """
    pending, entered = [start], set[T]()
    while pending:
        top = pending[-1]
        if top not in done and top not in entered:
            entered.add(top)
            pending += [one for one in needed(top) if one not in done and one not in entered]
        else:
            pending.pop()
            if top not in done:
                yield top


def flatten(values: Any, section: str) -> Iterator[tuple[str, Any]]:
    """Yield each value of nested parameters, as JSON gives it, by its dotted name.

    >>> list(flatten({"lora": {"r": 8}, "names": ("q", "v")}, "sft"))
    [('sft.lora.r', 8), ('sft.names', ['q', 'v'])]
    """
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flatten(value, f"{section}.{key}" if section else str(key))
    else:
        yield section, json.loads(json.dumps(values, default=_described))


def code_of(node: Node) -> str:
    """Return version and digest of the top-level package or module of a node's function."""
    function = getattr(node.func, "func", node.func)
    package = (getattr(function, "__module__", None) or "builtins").partition(".")[0]
    return f"{package} {_code_of_module(sys.modules.get(package))}".strip()


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(recorded: Mapping[str, Any], recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return a sentence for each parameter whose value differs, and for each that came or went."""
    current = recipe.parameters
    changed, added = [], []
    for key in sorted({*recorded, *current}):
        if key not in recorded:
            added.append(f"{key} was not there, is {_shown(current[key])}")
        elif key in current:
            if _json(recorded[key]) != _json(current[key]):
                changed.append(f"{key} was {_shown(recorded[key])}, is {_shown(current[key])}")
        elif key not in recipe.ignored:
            added.append(f"{key} was {_shown(recorded[key])}, is not there")
    return changed, added


def stored(name: str) -> str:
    """Return the name without the ``@`` part of a transcoded dataset."""
    return name.partition("@")[0]


def _prefix(node: Node) -> str:
    return f"{node.namespace}." if node.namespace else ""


def _is_parameter(name: str) -> bool:
    return name == PARAMETERS or name.startswith(PREFIX)


def _described(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return without_addresses(str(value))


def _json(value: Any) -> str:
    """Return what tells 1 from true, and finds that NaN equals itself."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _shown(value: Any) -> str:
    text = _json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache  # by module, as a notebook may reload a package
def _code_of_module(module: ModuleType | None) -> str:
    version = str(getattr(module, "__version__", ""))
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    is_library = any("site-packages" in folder.parts for folder in folders)
    if version and is_library and getattr(module, "__name__", "") != project.PACKAGE_NAME:
        return version  # its files may have gigabytes
    files = [(file, file.relative_to(one)) for one in folders for file in one.rglob("*")]
    if not folders and (path := getattr(module, "__file__", None)):
        files = [(Path(path), Path())]
    digest = hashlib.sha256()
    for file, name in sorted(files):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(os.fsencode(name) + b"\0" + file.read_bytes() + b"\0")
    return f"{version} {digest.hexdigest()[:12]}".strip()
