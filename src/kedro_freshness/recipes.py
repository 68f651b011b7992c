"""What a run would make each output of: the parameters and inputs that count."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_freshness.declarations import PREFIX, without_effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

PARAMETERS = "parameters"


@dataclasses.dataclass
class Recipe:
    """What an output is made of.

    Attributes:
        node: The node that makes it.
        parameters: Values that count, by full name.
        inputs: Names of persisted inputs, and of data that the catalog itself holds.
        ignored: Names of parameters that are declared to have no effect.
    """

    node: Node
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: list[str] = dataclasses.field(default_factory=list)
    ignored: set[str] = dataclasses.field(default_factory=set)


class Recipes:
    """The recipes of all outputs of a project.

    Args:
        pipelines: The registered pipelines; the first that makes an output counts.
        catalog: Tells which datasets are persisted.
        parameters: All parameters as the configuration gives them. (The catalog has them with
            their types only for the nodes of the requested pipelines.)
    """

    def __init__(
        self,
        pipelines: Iterable[Pipeline],
        catalog: CatalogProtocol[Any, Any],
        parameters: Mapping[str, Any],
    ) -> None:
        self._catalog = catalog
        self._parameters = parameters
        self._recipes: dict[str, Recipe] = {}
        self._producers: dict[str, Node] = {}
        for pipeline in pipelines:
            for node in pipeline.nodes:
                for output in node.outputs:
                    self._producers.setdefault(_stored(output), node)

    def producer(self, name: str) -> Node | None:
        """Return the node that makes a dataset; None for an input of the project."""
        return self._producers.get(_stored(name))

    def persisted(self) -> list[str]:
        """Return the persisted outputs of all nodes, in the order of the pipelines."""
        nodes = dict.fromkeys(self._producers.values())
        return [name for node in nodes for name in node.outputs if self.is_persisted(name)]

    def is_persisted(self, name: str) -> bool:
        """Return whether the catalog has the dataset and keeps it beyond a run."""
        if name not in self._catalog:
            return False
        return not getattr(self._catalog.get(name), "_EPHEMERAL", False)

    def of(self, node: Node) -> Recipe:
        """Return what a node's outputs are made of.

        An input that is only in memory is replaced by what it is made of itself.
        """
        if node.name not in self._recipes:
            recipe = Recipe(node)
            self._collect(node, recipe, set())
            recipe.inputs.sort()
            self._recipes[node.name] = recipe
        return self._recipes[node.name]

    def _collect(self, node: Node, recipe: Recipe, seen: set[str]) -> None:
        declared = without_effect(node.func)
        prefix = f"{node.namespace}." if node.namespace else ""
        for name in node.inputs:
            if name == PARAMETERS or name.startswith(PREFIX):
                for key, value in self._values(name):
                    if declared.covers(PREFIX + key.removeprefix(prefix)):
                        recipe.ignored.add(key)
                    else:
                        recipe.parameters[key] = value
            elif declared.covers(name.removeprefix(prefix)) or name in seen:
                continue
            elif not self.is_persisted(name) and (producer := self.producer(name)) is not None:
                seen.add(name)
                self._collect(producer, recipe, seen)
            else:
                seen.add(name)
                recipe.inputs.append(name)

    def _values(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield the parameters of a node's input, by their full names."""
        section = "" if name == PARAMETERS else name.removeprefix(PREFIX)
        values: Any = self._parameters
        for part in section.split(".") if section else ():
            values = values.get(part) if isinstance(values, Mapping) else None
        return flatten(values, section)


def flatten(values: Any, section: str) -> Iterator[tuple[str, Any]]:
    """Yield each value of nested parameters, as JSON gives it, by its dotted name.

    >>> list(flatten({"lora": {"r": 8}, "names": ("q", "v")}, "sft"))
    [('sft.lora.r', 8), ('sft.names', ['q', 'v'])]
    """
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flatten(value, f"{section}.{key}" if section else str(key))
    else:
        yield section, json.loads(json.dumps(values, default=str))


def code_of(node: Node) -> str:
    """Return version and digest of the top-level package or module of a node's function."""
    function = getattr(node.func, "func", node.func)
    return _code_of_package(function.__module__.partition(".")[0])


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
            if recorded[key] != current[key]:
                changed.append(f"{key} was {_shown(recorded[key])}, is {_shown(current[key])}")
        elif key not in recipe.ignored:
            added.append(f"{key} was {_shown(recorded[key])}, is not there")
    return changed, added


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stored(name: str) -> str:
    """Return the name without the ``@`` part of a transcoded dataset."""
    return name.partition("@")[0]


@cache
def _code_of_package(package: str) -> str:
    module = sys.modules[package]
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    if not folders and getattr(module, "__file__", None):
        files = [Path(str(module.__file__))]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.suffix != ".pyc":
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    name = " ".join(filter(None, (package, getattr(module, "__version__", ""))))
    return f"{name} {digest.hexdigest()[:12]}"
