"""Requests to the Hugging Face hub, with errors that name the remedy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from ja_instruct.disk_errors import writing
from ja_instruct.errors import InputError

logger = logging.getLogger(__name__)

_DOWNLOADED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "artifact.metadata"]
_OFFLINE_REMEDY = (
    "check the network and HF_HUB_OFFLINE, point the catalog entry at a local directory, or try "
    "the embedded example with '--env=demo', which needs no network"
)


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the hub's client: refused, out of reach, not in the local cache."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, OSError


def check_repository(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> None:
    """Raise ``InputError`` unless the hub has the repository, or offline the local cache."""
    from huggingface_hub import HfApi, errors

    where = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    try:
        api = HfApi()
        if repo_type == "model":
            api.auth_check(repo_id)
        api.repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=20)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo_type} '{repo_id}' is gated: accept its terms at {where}, log in with "
            f"'hf auth login' (or set HF_TOKEN), then run again. '--env=demo' runs without it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo_type} '{repo_id}' has no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{repo_type} '{repo_id}' is not on the hub, or it is private and you are not logged "
            f"in ('hf auth login'); check the name in the catalog"
        ) from error
    except hub_errors() as error:
        _require_cached(repo_id, repo_type, error)


def _require_cached(repo_id: str, repo_type: str, error: Exception) -> None:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = {repo.repo_id for repo in scan_cache_dir().repos}
    except CacheNotFound:
        cached = set()
    if repo_id not in cached:
        state = "offline mode is on" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise InputError(
            f"{repo_type} '{repo_id}' cannot be reached ({state}): {_OFFLINE_REMEDY}"
        ) from error
    logger.info("%s '%s': the hub is out of reach, using the local cache", repo_type, repo_id)


def download_model(repo_id: str, revision: str | None) -> Path:
    """Download a model's safetensors, configuration and tokenizer; return the local snapshot.

    Raises:
        InputError: The repository is not accessible, or the cache cannot be written to; the message
            names the remedy.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        with writing(Path(constants.HF_HUB_CACHE)):
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_DOWNLOADED))
    except hub_errors() as error:
        check_repository(repo_id, revision, "model")
        raise InputError(
            f"model '{repo_id}' could not be downloaded ({error}): {_OFFLINE_REMEDY}"
        ) from error


def fetch_file(repo_id: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a model, downloaded or from the cache; None if neither has it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except hub_errors():
        return None


def is_cached(repo_id: str, revision: str | None, name: str) -> bool:
    """Return whether the local cache has a file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str)


def cached_commit(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> str | None:
    """Return the commit that a revision was downloaded at, without asking the hub; None if not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type)
    name = revision or constants.DEFAULT_REVISION
    if (folder / "snapshots" / name).is_dir():
        return name
    try:
        return (folder / "refs" / name).read_text("utf-8").strip()
    except OSError:
        return None


def weights_by_type(repo_id: str, revision: str | None) -> dict[str, int]:
    """Return the number of a model's weights of each type (``BF16``), as the hub lists them.

    Empty if the hub cannot be reached, or lists no safetensors in the repository.
    """
    from huggingface_hub import HfApi

    try:
        listed = HfApi().model_info(repo_id, revision=revision).safetensors
    except hub_errors():
        return {}
    return {} if listed is None else dict(listed.parameters)


def pending_download_bytes(repo_id: str, revision: str | None) -> int:
    """Return how much ``download_model`` would fetch; 0 if the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(
            repo_id, revision=revision, allow_patterns=_DOWNLOADED, dry_run=True
        )
    except hub_errors():
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)
