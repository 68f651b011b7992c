"""The catalog in a node's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.io import DataCatalog

from kedro_cuda_runner.transfer import NotTransferableError, dumps

if TYPE_CHECKING:
    from kedro.io import AbstractDataset

    from kedro_cuda_runner.channel import Channel


class WorkerCatalog(DataCatalog):  # type: ignore[misc]
    """Loads and saves what a node needs, and tells the runner what is being saved.

    Some datasets stay in the runner's process: those in memory, those that say they belong to one
    process, and those that cannot be pickled. Their data comes and goes by the channel, and the
    runner's own catalog logs and validates it.

    Attributes:
        staying: Their names.
    """

    staying: tuple[str, ...]
    _channel: Channel
    _saves: bool

    @classmethod
    def of(
        cls,
        channel: Channel,
        datasets: dict[str, AbstractDataset[Any, Any]],
        validation: tuple[dict[str, Any], bool],
        staying: tuple[str, ...],
        *,
        saves: bool,
    ) -> WorkerCatalog:
        """Return the catalog of one node.

        Args:
            channel: To the runner.
            datasets: Those that came along, by name.
            validation: Their validators, and whether this run validates.
            staying: The names of those that stayed; the runner validates their data.
            saves: Whether this process saves, or another one does for it.
        """
        specs, is_enabled = validation
        catalog = cls(datasets=datasets, validation_enabled=is_enabled)
        # the catalog reads them from its configuration only, which stayed behind
        catalog._validator_specs = specs
        catalog._channel = channel
        catalog._saves = saves
        catalog.staying = staying
        return catalog

    def load(self, ds_name: str, version: str | None = None) -> Any:
        """Load; of what stayed with the runner, a copy of its data.

        Raises:
            NotTransferableError: The data cannot leave the runner's process.
        """
        if ds_name not in self.staying:
            return super().load(ds_name, version)
        try:
            return self._channel.ask("load", ds_name)
        except NotTransferableError as error:
            raise NotTransferableError(
                f"'{ds_name}' cannot be handed to a process of its own: {error}. Give it a "
                f"catalog entry that saves it, or make it of what can be pickled"
            ) from error

    def save(self, ds_name: str, data: Any) -> None:
        """Save; whoever dies here leaves the runner knowing which output to remove.

        Raises:
            NotTransferableError: The data is for the runner to save, and cannot leave this process.
        """
        if not self._saves:
            return
        self._channel.tell("saving", ds_name)
        if ds_name in self.staying:
            self._channel.ask("save", ds_name, self._pack(ds_name, data))
        else:
            super().save(ds_name, data)
        self._channel.tell("saved", ds_name, ds_name in self.staying)

    def confirm(self, name: str) -> None:
        """Confirm a dataset where it is at home."""
        if name in self.staying:
            self._channel.ask("confirm", name)
        else:
            super().confirm(name)

    @staticmethod
    def _pack(ds_name: str, data: Any) -> bytes:
        try:
            return dumps(data)
        except NotTransferableError as error:
            raise NotTransferableError(
                f"'{ds_name}' cannot be handed to the nodes after it: {error}. Give it a catalog "
                f"entry that saves it, or return something that can be pickled"
            ) from error
