"""The catalog in a node's process."""

from __future__ import annotations

import pickle
from typing import Any

from kedro.io import CatalogProtocol, DataCatalog
from kedro.pipeline.node import Node

from kedro_cuda_runner.channel import Channel
from kedro_cuda_runner.transfer import NotTransferableError, dumps


def pack_work(node: Node, catalog: CatalogProtocol[Any, Any]) -> bytes:
    """Pickle a node with those of its datasets that can work in another process.

    Raises:
        NotTransferableError: The node's function cannot be imported by its name.
    """
    datasets, staying = {}, []
    for name in dict.fromkeys((*node.inputs, *node.outputs, *node.confirms)):
        dataset: Any = catalog.get(name)
        if _can_leave(dataset):
            datasets[name] = dataset
        else:
            staying.append(name)
    specs = getattr(catalog, "validator_specs", {})
    validation = (
        {name: specs[name] for name in datasets if name in specs},
        getattr(catalog, "validation_enabled", True),
    )
    return dumps((node, datasets, validation, tuple(staying)))


def _can_leave(dataset: Any) -> bool:
    if getattr(dataset, "_SINGLE_PROCESS", False) or getattr(dataset, "_EPHEMERAL", False):
        return False
    try:
        dumps(dataset)
    except NotTransferableError:
        return False
    return True


def unpack_work(work: bytes, channel: Channel, *, saves: bool) -> tuple[Node, WorkerCatalog]:
    """Return the node and its catalog; ``saves`` says whether this process saves the outputs."""
    node, datasets, (specs, is_enabled), staying = pickle.loads(work)  # noqa: S301 - own runner
    catalog = WorkerCatalog(datasets=datasets, validation_enabled=is_enabled)
    # the catalog reads them only from its configuration, which is not transferred
    catalog._validator_specs = specs
    catalog._channel = channel
    catalog._saves = saves
    catalog.staying = staying
    return node, catalog


class WorkerCatalog(DataCatalog):  # type: ignore[misc]
    """Loads and saves a node's data, and reports to the runner which output is being saved.

    In-memory datasets, datasets marked as single-process and datasets that cannot be pickled stay
    in the runner's process. The channel transfers their data; the runner's catalog logs and
    validates it.

    Attributes:
        staying: Names of these datasets.
    """

    staying: tuple[str, ...]
    _channel: Channel
    _saves: bool

    def load(self, ds_name: str, version: str | None = None) -> Any:
        """Load a dataset, or a copy of its data if it stays with the runner.

        Raises:
            NotTransferableError: The data cannot leave the runner's process.
        """
        if ds_name not in self.staying:
            return super().load(ds_name, version)
        try:
            return self._channel.request("load", ds_name)
        except NotTransferableError as error:
            raise NotTransferableError(
                f"'{ds_name}' cannot be passed to another process: {error}. Give it a catalog "
                f"entry that saves it, or make it of what can be pickled"
            ) from error

    def save(self, ds_name: str, data: Any) -> None:
        """Save a dataset; if this process dies meanwhile, the runner knows what to remove.

        Raises:
            NotTransferableError: The runner saves the data, and it cannot leave this process.
        """
        if not self._saves:
            return
        self._channel.send("saving", ds_name)
        is_saved_by_runner = ds_name in self.staying
        if is_saved_by_runner:
            self._channel.request("save", ds_name, self._pack(ds_name, data))
        else:
            super().save(ds_name, data)
        self._channel.send("saved", ds_name, is_saved_by_runner)

    def confirm(self, name: str) -> None:
        """Confirm a dataset, in the runner's process if it stays there."""
        if name in self.staying:
            self._channel.request("confirm", name)
        else:
            super().confirm(name)

    @staticmethod
    def _pack(ds_name: str, data: Any) -> bytes:
        try:
            return dumps(data)
        except NotTransferableError as error:
            raise NotTransferableError(
                f"'{ds_name}' cannot be passed to the nodes after it: {error}. Give it a catalog "
                f"entry that saves it, or return something that can be pickled"
            ) from error
