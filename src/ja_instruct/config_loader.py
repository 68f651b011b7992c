"""The project's configuration loader: an entry of the catalog may stand for another one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from kedro.config import OmegaConfigLoader

# A name, and the entry that it has unless the environment gives it one. OmegaConf's interpolation
# cannot say this: it would copy the entry of conf/base before the environment replaces it.
SAME_ENTRY = {"few_shot_pool": "qa_pairs"}


class CatalogConfigLoader(OmegaConfigLoader):  # type: ignore[misc]
    """Kedro's loader, whose catalog has every name of ``SAME_ENTRY``."""

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return the configuration of a kind, such as ``catalog`` or ``parameters``."""
        config: dict[str, Any] = super().__getitem__(key)
        if key == "catalog":
            for name, other in SAME_ENTRY.items():
                if name not in config and other in config:
                    config[name] = deepcopy(config[other])
        return config
