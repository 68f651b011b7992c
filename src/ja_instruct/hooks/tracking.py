"""The hook that tracks runs with MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from pydantic import BaseModel

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

SQLITE = "sqlite:///"


class FlatParametersMlflowHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook for typed parameters and runs started in a subfolder.

    Typed parameters are logged one by one (``sft.lora.lora_r``). A relative SQLite path is
    resolved against the project's folder.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Make the path of the store absolute before kedro-mlflow opens it."""
        config = dict(context.config_loader["mlflow"])
        server = dict(config.get("server", {}))
        uri = str(server.get("mlflow_tracking_uri", ""))
        path = Path(uri.removeprefix(SQLITE))
        if uri.startswith(SQLITE) and not path.is_absolute():
            path = context.project_path / path
            path.parent.mkdir(parents=True, exist_ok=True)
            server["mlflow_tracking_uri"] = f"{SQLITE}{path}"
            context.config_loader["mlflow"] = {**config, "server": server}
        super().after_context_created(context)

    @hook_impl
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Pass typed parameters to kedro-mlflow as dictionaries, which it can flatten."""
        plain = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in inputs.items()
        }
        super().before_node_run(node, catalog, plain, is_async)
