"""Asking the Hugging Face hub for a repository, with errors a person can act on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from ja_instruct.errors import InputError

logger = logging.getLogger(__name__)

WEIGHTS_AND_TOKENIZER = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "artifact.metadata",
)


def _offline_remedy() -> str:
    return (
        "check the network and HF_HUB_OFFLINE, point the catalog entry at a local directory, or "
        "try the embedded example with '--env=demo', which needs no network"
    )


def check_repository(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> None:
    """Raise ``InputError`` unless the hub (or the local cache, when offline) has the repository.

    Args:
        repo_id: ``owner/name`` on the hub.
        revision: Branch, tag or commit; None is the default branch.
        repo_type: What to look for.
    """
    import httpx
    from huggingface_hub import HfApi, constants, scan_cache_dir
    from huggingface_hub.errors import (
        CacheNotFound,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    try:
        api = HfApi()
        if repo_type == "model":
            api.auth_check(repo_id)
        api.repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=20)
    except GatedRepoError as error:
        raise InputError(
            f"{repo_type} '{repo_id}' is gated: accept its terms at {where}, log in with "
            f"'hf auth login' (or set HF_TOKEN), then run again. '--env=demo' runs without it"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repo_type} '{repo_id}' has no revision '{revision}'") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo_type} '{repo_id}' is not on the hub, or it is private and you are not logged "
            f"in ('hf auth login'); check the name in the catalog"
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx.TransportError, OSError) as error:
        try:
            cached = {repo.repo_id for repo in scan_cache_dir().repos}
        except CacheNotFound:
            cached = set()
        if repo_id in cached:
            logger.info("%s '%s': hub not reached, using the local cache", repo_type, repo_id)
            return
        state = "offline mode is on" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise InputError(
            f"{repo_type} '{repo_id}' cannot be reached ({state}): {_offline_remedy()}"
        ) from error


def download_model(repo_id: str, revision: str | None) -> Path:
    """Download a model's safetensors, configuration and tokenizer; return the local snapshot.

    Raises:
        InputError: The repository cannot be had; the message says how to get access.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=list(WEIGHTS_AND_TOKENIZER)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, OSError) as error:
        check_repository(repo_id, revision, "model")
        raise InputError(
            f"model '{repo_id}' could not be downloaded ({error}): {_offline_remedy()}"
        ) from error


def fetch_file(repo_id: str, revision: str | None, name: str) -> Path | None:
    """Return a model's file, downloaded or out of the cache; None where neither has it."""
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, OSError):
        return None


def weights_by_type(repo_id: str, revision: str | None) -> dict[str, int]:
    """Return how many weights a model has of each type (``BF16``), as the hub lists them.

    Empty where the hub cannot be asked, or knows of no safetensors in the repository.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        listed = HfApi().model_info(repo_id, revision=revision).safetensors
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.TransportError):
        return {}
    return {} if listed is None else dict(listed.parameters)


def pending_download_bytes(repo_id: str, revision: str | None) -> int:
    """Return how much ``download_model`` has yet to fetch; 0 where the hub cannot be asked."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = snapshot_download(
            repo_id, revision=revision, allow_patterns=list(WEIGHTS_AND_TOKENIZER), dry_run=True
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, OSError):
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)
