"""Records of what made each output of a Kedro project, and runs that trust them; see README.md."""

from kedro_freshness.declarations import unaffected_by
from kedro_freshness.errors import FreshnessError
from kedro_freshness.fingerprints import fingerprint_path, fingerprint_value
from kedro_freshness.hooks import FreshnessHook
from kedro_freshness.inspection import Settings

__all__ = [
    "FreshnessError",
    "FreshnessHook",
    "Settings",
    "fingerprint_path",
    "fingerprint_value",
    "unaffected_by",
]
