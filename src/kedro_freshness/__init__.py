"""Records of what made each output of a Kedro project, and runs that trust them; see README.md."""

from typing import TYPE_CHECKING, Any

from kedro_freshness.declarations import unaffected_by
from kedro_freshness.errors import FreshnessError

if TYPE_CHECKING:
    from kedro_freshness.hooks import FreshnessHook

__all__ = ["FreshnessError", "FreshnessHook", "unaffected_by"]


def __getattr__(name: str) -> Any:
    """Import ``FreshnessHook`` on first use: Kedro sets up logging when nodes import this."""
    if name != "FreshnessHook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kedro_freshness.hooks import FreshnessHook

    return FreshnessHook
