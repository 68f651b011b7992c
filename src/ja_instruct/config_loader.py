"""The project's configuration loader: archives, paths in the configuration, entries for others."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kedro.config import OmegaConfigLoader

from ja_instruct.errors import InputError

# A name, and the entry that it has unless the environment gives it one. OmegaConf's interpolation
# cannot express this: it would copy the entry of conf/base before the environment replaces it.
SAME_ENTRY = {"few_shot_pool": "qa_pairs"}
# A filepath of the catalog that begins with it is in the configuration, such as a word list.
PREFIX = "conf/"
LOGGING_FILE = "logging.yml"
# archives that a run has unpacked, removed when the process ends
_unpacked: list[tempfile.TemporaryDirectory[str]] = []


class CatalogConfigLoader(OmegaConfigLoader):  # type: ignore[misc]
    """Kedro's loader, whose catalog has every name of ``SAME_ENTRY`` and its paths in ``conf/``.

    An archive of ``kedro package`` is unpacked: Kedro reads YAML files out of it, but the word
    lists, and the list of environments in messages, need files and folders.
    """

    def __init__(self, conf_source: str | Path, env: str | None = None, **kwargs: Any) -> None:
        """Unpack an archive; see ``OmegaConfigLoader`` for the arguments.

        Without ``env``, a default environment that is not there (an archive may lack the folder of
        credentials, ``local``) is left out.

        Raises:
            InputError: The archive cannot be read.
        """
        if Path(conf_source).is_file():
            conf_source = _unpack(Path(conf_source).resolve())
        default = Path(conf_source, kwargs.get("default_run_env", ""))
        if env is None and Path(conf_source).is_dir() and not default.is_dir():
            kwargs["default_run_env"] = kwargs.get("base_env")
        super().__init__(str(conf_source), env, **kwargs)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return the configuration of a kind, such as ``catalog`` or ``parameters``."""
        config: dict[str, Any] = super().__getitem__(key)
        if key != "catalog":
            return config
        for name, other in SAME_ENTRY.items():
            if name not in config and other in config:
                config[name] = deepcopy(config[other])
        return {name: self._locate(entry) for name, entry in config.items()}

    def environments(self) -> list[str]:
        """Return the names of the environments; none of a configuration that is not on a disk."""
        return sorted(path.name for path in Path(self.conf_source).glob("*/"))

    def logging(self) -> dict[str, Any] | None:
        """Return the configuration of Python's logging, if there is one."""
        path = Path(self.conf_source, LOGGING_FILE)
        if not path.is_file():
            return None
        content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        return content

    def _locate(self, entry: Any) -> Any:
        filepath = entry.get("filepath") if isinstance(entry, dict) else None
        is_remote = "://" in str(self.conf_source)
        if is_remote or not isinstance(filepath, str) or not filepath.startswith(PREFIX):
            return entry
        return {**entry, "filepath": str(Path(self.conf_source, filepath.removeprefix(PREFIX)))}


@cache
def _unpack(archive: Path) -> Path:
    """Unpack an archive, once in a process, and return the folder with the environments."""
    folder = tempfile.TemporaryDirectory(prefix="ja-instruct-conf-")
    # refuses members outside the folder; shutil itself skips those of a zip file
    checks: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
    try:
        is_tar = tarfile.is_tarfile(archive)
        shutil.unpack_archive(archive, folder.name, **(checks if is_tar else {}))
    except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(
            f"--conf-source {archive}: cannot be unpacked ({error}); give a folder, or an archive "
            f"that 'kedro package' has made (.tar.gz, .zip)"
        ) from error
    _unpacked.append(folder)
    inside = [path for path in Path(folder.name).iterdir() if path.is_dir()]
    if len(inside) == 1 and inside[0].name != "base":
        return inside[0]
    return Path(folder.name)
