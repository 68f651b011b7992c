"""``CudaRunner``: nodes with the tag ``gpu`` on CUDA devices, all others as Kedro runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.framework.hooks.manager import _NullPluginManager
from kedro.runner import AbstractRunner

from kedro_cuda_runner import devices
from kedro_cuda_runner.errors import PreflightError
from kedro_cuda_runner.node_process import RunContext
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.preflight import find_devices, find_problems, read_resources
from kedro_cuda_runner.report import TableHook
from kedro_cuda_runner.scheduler import Scheduler, kedro_logger
from kedro_cuda_runner.serial_hooks import SerialHooks
from kedro_cuda_runner.terminal import Terminal
from kedro_cuda_runner.tracking import active_tracking

if TYPE_CHECKING:
    import logging

    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from pluggy import PluginManager

    from kedro_cuda_runner.devices import DeviceLayer


class CudaRunner(AbstractRunner):
    """Runs the nodes tagged ``gpu`` in processes of their own on CUDA devices.

    Before the first node it checks that devices, their free memory and the disk suffice for what
    the nodes declare (``resources.resources_of`` says how). While it runs, independent nodes run at
    the same time: one without the tag in this process, as under ``SequentialRunner``, and as many
    with it as there is room for on the devices. Afterwards it prints and logs what each has used.

    Examples:
        On the command line::

            kedro run --runner=kedro_cuda_runner.CudaRunner

        In Python:

        >>> from kedro.io import DataCatalog, MemoryDataset
        >>> from kedro.pipeline import node, pipeline
        >>> catalog = DataCatalog({"a": MemoryDataset([3, 1, 2])})
        >>> outputs = CudaRunner().run(pipeline([node(sorted, "a", "b")]), catalog)
        >>> outputs["b"].load()
        [1, 2, 3]
    """

    def __init__(self, is_async: bool = False, layer: DeviceLayer | None = None) -> None:
        """Prepare a runner.

        Args:
            is_async: Load and save the data of each node in threads (``--async``).
            layer: The hardware; by default that of this machine.
        """
        super().__init__(is_async=is_async)
        self._layer = layer

    def __str__(self) -> str:
        """Return what ``--runner`` takes; Kedro hands it to the hooks, and MLflow shows it."""
        return "kedro_cuda_runner.CudaRunner"

    @property
    def _logger(self) -> logging.Logger:
        # what Kedro itself says is shown or not as under its own runners
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
        resources, problems = read_resources(pipeline.nodes, catalog)
        problems += find_problems(resources, catalog, layer)
        if problems:
            raise PreflightError(
                "the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems)
            )
        hooks = hook_manager or _NullPluginManager()
        scheduler = Scheduler(
            pipeline=pipeline,
            resources=resources,
            placement=Placement(find_devices(resources, layer), layer),
            layer=layer,
            shared=RunContext(
                catalog=catalog,
                hooks=SerialHooks(hooks),
                run_id=run_id,
                is_async=self._is_async,
                tracking=active_tracking() if resources else None,
                terminal=Terminal(),
            ),
            release=self._release_datasets,
            suggest_resume=lambda done: self._suggest_resume_scenario(pipeline, done, catalog),
        )
        table = TableHook(scheduler.records)
        has_hooks = not isinstance(hooks, _NullPluginManager)
        if has_hooks:
            # a session may run twice, and each run shows its own
            for plugin in hooks.get_plugins():
                if isinstance(plugin, TableHook):
                    hooks.unregister(plugin)
            hooks.register(table)
        is_shown_by_hooks = has_hooks
        try:
            with devices.hidden_from_this_process():
                scheduler.run()
        except (KeyboardInterrupt, SystemExit):  # of which Kedro tells no hook
            is_shown_by_hooks = False
            raise
        finally:
            if not is_shown_by_hooks:
                table.show()
