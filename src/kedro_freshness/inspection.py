"""Which outputs are fresh, and which nodes a run with ``--only-missing-outputs`` must run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from kedro_freshness.errors import FreshnessError
from kedro_freshness.fingerprints import fingerprint_dataset, location_of, unwrapped
from kedro_freshness.recipes import (
    Recipes,
    code_of,
    differences,
    in_order,
    library_versions,
    stored,
)
from kedro_freshness.records import Record, read_record

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

Kind = Literal["fresh", "stale", "missing", "unknown"]
SECTION = "freshness"


@dataclass(frozen=True)
class Settings:
    """The parameter section ``freshness``, which a project need not have.

    Attributes:
        count_code: Whether changed code or library versions make an output stale.
        rewrite_others: Whether outputs that another environment made may be rewritten.
    """

    count_code: bool = False
    rewrite_others: bool = False

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Read the section.

        Raises:
            FreshnessError: A key is unknown, or a value is not true or false.
        """
        section = parameters.get(SECTION) or {}
        if not isinstance(section, Mapping):
            raise FreshnessError(f"'{SECTION}' = {section!r}: give a section with keys")
        known = {one.name for one in fields(cls)}
        for key, value in section.items():
            if key not in known:
                raise FreshnessError(
                    f"'{SECTION}.{key}' is unknown; the keys are {', '.join(sorted(known))}"
                )
            if not isinstance(value, bool):
                raise FreshnessError(f"'{SECTION}.{key}' = {value!r}: give true or false")
        return cls(**section)


@dataclass(frozen=True)
class State:
    """The state of an output.

    Attributes:
        name: Name in the catalog.
        kind: ``unknown``: it exists, but no record says what made it.
        differences: Between its record and what a run would use now.
        stale_inputs: Outputs it depends on that are stale.
        missing_inputs: Outputs it depends on that are missing, although it is not stale itself.
        notes: Changes of code and libraries, which do not make it stale.
        record: What made it.
    """

    name: str
    kind: Kind
    differences: tuple[str, ...] = ()
    stale_inputs: tuple[str, ...] = ()
    missing_inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    record: Record | None = None


@dataclass
class Remakes:
    """What a run with ``--only-missing-outputs`` makes again.

    Attributes:
        stale: Reasons by output.
        dependent: Outputs that depend on others that are made again.
        missing: Missing outputs by node.
        replaced: Outputs that exist and are made again with others of the node, by node.
        nodes: The nodes that run, in order.
    """

    stale: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dependent: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    @property
    def outputs(self) -> set[str]:
        """All outputs that are made or made again."""
        missing = (name for names in self.missing.values() for name in names)
        replaced = (name for names in self.replaced.values() for name in names)
        return {*self.stale, *self.dependent, *missing, *replaced}


class Inspection:
    """Compares the outputs of a project with what a run would make now.

    Args:
        pipelines: The pipeline of the run first, then those of the project.
        catalog: The catalog of the run.
        environment: Name of the configuration environment.
        parameters: All parameters, among them the section ``freshness``.
        libraries: Distributions whose versions are recorded.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        catalog: CatalogProtocol[Any, Any],
        environment: str,
        parameters: Mapping[str, Any],
        libraries: Sequence[str] = (),
    ) -> None:
        self.catalog = catalog
        counted = {key: value for key, value in parameters.items() if key != SECTION}
        self.recipes = Recipes(pipelines, catalog, counted)
        self.environment = environment
        self._settings = Settings.from_parameters(parameters)
        self.libraries = library_versions(libraries)
        self._states: dict[str, State] = {}
        self._records: dict[str, Record | None] = {}
        self._fingerprints: dict[str, str | None] = {}

    def state(self, name: str) -> State:
        """Return the state of a persisted output."""
        for one in in_order(name, self._upstream, self._states):
            self._states[one] = self._state(one)
        return self._states[name]

    def record(self, name: str) -> Record | None:
        """Return what made a dataset as it is now; None if it is missing or of unknown origin."""
        if name not in self._records:
            dataset = self.recipes.dataset(name)
            path = None if dataset is None else location_of(dataset)
            found = path is not None and path.exists()
            self._records[name] = (
                read_record(path, partial(self.fingerprint, name)) if path and found else None
            )
        return self._records[name]

    def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint of a dataset at the start of the run; None if it holds nothing."""
        if name not in self._fingerprints:
            dataset = self.recipes.dataset(name)
            self._fingerprints[name] = None if dataset is None else fingerprint_dataset(dataset)
        return self._fingerprints[name]

    def owner(self, name: str) -> Record | None:
        """Return the record of an output that another environment made and that exists."""
        if self._settings.rewrite_others or not self.recipes.is_persisted(name):
            return None
        record = self.record(name)
        return None if record is None or record.environment == self.environment else record

    def release(self) -> None:
        """Have datasets forget which versions and partitions they have found."""
        for name in self._states:
            self.catalog[name].release()

    def remakes(self, pipeline: Pipeline) -> Remakes:
        """Return what ``--only-missing-outputs`` must make again in a pipeline, and why.

        Outputs of unknown origin and those of another environment are taken as they are.
        """
        found = Remakes()
        again: set[str] = set()
        replaced: set[str] = set()
        while True:
            for node in pipeline.nodes:
                self._add_remakes(node, found, again, replaced)
            found.nodes = self._nodes_to_run(pipeline, again)
            # made once more because others need what the node makes in memory
            rewritten = {
                name
                for node in found.nodes
                for name in node.outputs
                if stored(name) not in again and self._has_unknown_content(name)
            }
            if not rewritten:
                return found
            replaced |= rewritten

    def _add_remakes(self, node: Node, found: Remakes, again: set[str], replaced: set[str]) -> None:
        outputs = [name for name in node.outputs if self.recipes.is_persisted(name)]
        if not outputs or stored(outputs[0]) in again:
            return
        states = [self.state(name) for name in outputs]
        known = [
            state
            for state in states
            if state.kind in ("fresh", "stale") and self.owner(state.name) is None
        ]
        stale = {one.name: one.differences for one in known if one.differences}
        missing = [state.name for state in states if state.kind == "missing"]
        has_new_input = not again.isdisjoint(map(stored, self.recipes.of(node).inputs))
        dependent = [one.name for one in known if one.name not in stale] if has_new_input else []
        if stale or missing or dependent or not replaced.isdisjoint(outputs):
            found.stale |= stale
            found.dependent += dependent
            found.missing[node.name] = missing
            found.replaced[node.name] = sorted({*outputs} - {*stale, *missing, *dependent})
            again.update(map(stored, outputs))

    def _nodes_to_run(self, pipeline: Pipeline, again: Collection[str]) -> list[Node]:
        """Return the nodes that Kedro's runners choose, in order."""
        needed: set[str] = set()
        nodes = []
        for node in reversed(pipeline.nodes):
            if not node.outputs or any(
                stored(name) in again or (name in needed and not self.recipes.is_persisted(name))
                for name in node.outputs
            ):
                nodes.append(node)
                needed.update(node.inputs)
        return nodes[::-1]

    def _has_unknown_content(self, name: str) -> bool:
        return self.recipes.is_persisted(name) and self.state(name).kind == "unknown"

    def _state(self, name: str) -> State:
        if not unwrapped(self.catalog[name]).exists():
            return State(name, "missing")
        record = self.record(name)
        if record is None:
            return State(name, "unknown")
        differing, notes = self._compare(name, record)
        upstream = [self._states[one] for one in self._upstream(name) if one in self._states]
        stale = [one.name for one in upstream if one.kind == "stale" and not self.owner(one.name)]
        missing = [one.name for one in upstream if one.kind == "missing"]
        missing += [name for one in upstream for name in one.missing_inputs]
        return State(
            name,
            "stale" if differing or stale else "fresh",
            differences=tuple(differing),
            stale_inputs=tuple(stale),
            missing_inputs=tuple(dict.fromkeys(missing)),
            notes=tuple(notes),
            record=record,
        )

    def _upstream(self, name: str) -> list[str]:
        """Return the persisted outputs that an output of this environment is made of."""
        record = self.record(name)
        # another environment's catalog may have other paths for the inputs
        if record is None or record.environment != self.environment:
            return []
        return [
            one
            for one in sorted(self.recipes.of(self._producer(name)).inputs)
            if self.recipes.producer(one) is not None and self.recipes.is_persisted(one)
        ]

    def _producer(self, name: str) -> Node:
        record = self.record(name)
        node = self.recipes.producer(name, record.node if record else "")
        if node is None:
            raise ValueError(f"'{name}' is an input of the project, not an output")
        return node

    def _compare(self, name: str, record: Record) -> tuple[list[str], list[str]]:
        """Return what differs from the record, and what differs without making it stale."""
        if not record.saved:
            return ["its save did not finish"], []
        node = self._producer(name)
        recipe = self.recipes.of(node)
        changed, added = differences(record.parameters, recipe)
        if any(record.node == one.name != node.name for one in self.recipes.producers(name)):
            changed.append(f"it was made by node '{record.node}', not by '{node.name}'")
        changed += self._changed_inputs(sorted(recipe.inputs), record)
        code = code_of(node)
        notes = []
        if record.code != code:
            # a parameter that came or went together with the code was not set by the user
            notes += [f"code was {record.code}, is {code}", *added]
            added = []
        for library, version in self.libraries.items():
            if record.libraries.get(library, version) != version:
                notes.append(f"{library} was {record.libraries[library]}, is {version}")
        if self._settings.count_code:
            return [*changed, *added, *notes], []
        return [*changed, *added], notes

    def _changed_inputs(self, inputs: Sequence[str], record: Record) -> list[str]:
        texts = []
        for name in inputs:
            if name not in record.inputs:  # it came with new code
                continue
            current = self.fingerprint(name)
            if current is None:  # removed since, and cannot be compared
                continue
            if record.inputs[name] is None:
                texts.append(f"{name} was not there, is there now")
            elif record.inputs[name] != current:
                texts.append(f"{name} has changed")
        return texts
