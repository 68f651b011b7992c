"""``CudaRunner``: nodes with the tag ``gpu`` on CUDA devices, all others as Kedro runs them."""

from __future__ import annotations

import logging
from typing import Any

from kedro.framework.hooks.manager import _NullPluginManager
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner
from pluggy import PluginManager

from kedro_cuda_runner import devices
from kedro_cuda_runner.devices import DeviceLayer
from kedro_cuda_runner.hooks import SerialHooks
from kedro_cuda_runner.node_process import RunContext
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.preflight import check, find_devices
from kedro_cuda_runner.report import TableHook
from kedro_cuda_runner.scheduler import Scheduler, kedro_logger
from kedro_cuda_runner.terminal import Terminal
from kedro_cuda_runner.tracking import active_tracking


class CudaRunner(AbstractRunner):
    """Runs each node with the tag ``gpu`` in its own process on CUDA devices.

    Before the first node it checks that devices, their free memory and the disk suffice for the
    resources that the nodes declare (see ``resources.resources_of``). Independent nodes run at the
    same time: one at a time without the tag in this process, as under ``SequentialRunner``, and
    those with the tag as the devices have room. At the end it prints and logs what each has used.

    Examples:
        >>> from kedro.io import DataCatalog, MemoryDataset
        >>> from kedro.pipeline import node, pipeline
        >>> catalog = DataCatalog({"a": MemoryDataset([3, 1, 2])})
        >>> outputs = CudaRunner().run(pipeline([node(sorted, "a", "b")]), catalog)
        >>> outputs["b"].load()
        [1, 2, 3]
    """

    def __init__(self, is_async: bool = False, layer: DeviceLayer | None = None) -> None:
        """Create a runner.

        Args:
            is_async: Load and save the data of each node in threads (``--async``).
            layer: The hardware; by default that of this machine.
        """
        super().__init__(is_async=is_async)
        self._layer = layer

    def __str__(self) -> str:
        """Return the value of ``--runner``, which Kedro passes to hooks and MLflow shows."""
        return "kedro_cuda_runner.CudaRunner"

    @property
    def _logger(self) -> logging.Logger:
        # Kedro's own messages have the same log level as under its runners
        return kedro_logger

    def _get_executor(self, max_workers: int) -> None:
        return None

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],  # type: ignore[override]
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        layer = self._layer or devices.default_layer()
        resources = check(pipeline.nodes, catalog, layer)
        scheduler = Scheduler(
            pipeline=pipeline,
            resources=resources,
            placement=Placement(find_devices(resources, layer), layer),
            shared=RunContext(
                layer=layer,
                catalog=catalog,
                hooks=SerialHooks(hook_manager),
                run_id=run_id,
                is_async=self._is_async,
                tracking=active_tracking() if resources else None,
                terminal=Terminal(),
            ),
            release=self._release_datasets,
            suggest_resume=lambda done: self._suggest_resume_scenario(pipeline, done, catalog),
        )
        table = TableHook(scheduler.records)
        is_shown_by_hooks = _register(table, hook_manager)
        try:
            with devices.hidden_from_this_process():
                scheduler.run()
        except (KeyboardInterrupt, SystemExit):  # for which Kedro calls no hook
            is_shown_by_hooks = False
            raise
        finally:
            if not is_shown_by_hooks:
                table.show()


def _register(table: TableHook, manager: Any) -> bool:
    """Register the hook that prints the table; return whether the run has hooks."""
    if isinstance(manager, _NullPluginManager):
        return False
    # a session may run twice, each time with another table
    for plugin in manager.get_plugins():
        if isinstance(plugin, TableHook):
            manager.unregister(plugin)
    manager.register(table)
    return True
