"""A model directory on its way to the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.cards import is_hub_name
from ja_instruct.models.directory import CARD_FILE, PROVENANCE_FILE, read_provenance

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What is to be published.

    Attributes:
        directory: A model directory with its ``ja_instruct.json``.
        commit_message: Of the commit on the hub.
        weights_sha256: Checksums of its weights, for the record.
        json_changes: File name to keys and values that the published copy has instead: what
            is true on this computer alone.
    """

    directory: Path
    commit_message: str
    weights_sha256: Mapping[str, str]
    json_changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def check_login(repo_id: str | None) -> None:
    """Raise ``InputError`` unless the user is logged in and may write to ``repo_id``'s owner.

    Args:
        repo_id: ``owner/name``, as the catalog has it; None where it has none.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    where = "'repo_id' of this catalog entry (conf/base/catalog_publishing.yml)"
    if repo_id is None:
        raise InputError(f"{where} is not set; name the repository, owner/name")
    if not is_hub_name(repo_id):
        raise InputError(f"{where} is '{repo_id}', which is no name of a repository, owner/name")
    try:
        account = HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise InputError(
            f"publishing to '{repo_id}' needs a login to the hub: run 'hf auth login' with a token "
            f"that may write, or set HF_TOKEN ({error})"
        ) from error
    except (OfflineModeIsEnabled, httpx.TransportError, OSError) as error:
        raise InputError(
            f"publishing to '{repo_id}': the hub cannot be reached ({type(error).__name__}); "
            f"check the network and HF_HUB_OFFLINE"
        ) from error
    owners = [account["name"], *(one["name"] for one in account.get("orgs", []))]
    if repo_id.partition("/")[0] not in owners:
        raise InputError(
            f"{where} is '{repo_id}', but the hub knows you as {', '.join(owners)}; publish under "
            f"one of these, or log in as another with 'hf auth login'"
        )


def upload(publication: Publication, repo_id: str, *, private: bool) -> dict[str, Any]:
    """Create the repository where it is missing, and upload everything in one commit.

    Weights that the repository holds from before, under other names, are removed with it.

    Returns:
        The record: repository, commit, address, checksums of the weights.

    Raises:
        InputError: The hub refused; the message says what it said.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            _operations(publication, api, repo_id),
            commit_message=publication.commit_message,
            repo_type="model",
        )
    except (HfHubHTTPError, httpx.TransportError) as error:
        raise InputError(
            f"{publication.directory} could not be published to '{repo_id}': {error}. The "
            f"repository holds what it held before; run the same command again"
        ) from error
    logger.info("Published %s as %s", publication.directory, commit.commit_url)
    return {
        "repo_id": repo_id,
        "commit": commit.oid,
        "url": commit.commit_url,
        "private": private,
        "weights_sha256": dict(publication.weights_sha256),
    }


def _operations(publication: Publication, api: HfApi, repo_id: str) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {name: publication.directory / name for name in published_names(publication)}
    contents: dict[str, Path | bytes] = {**files, **changed_files(publication)}
    operations: list[Any] = [
        CommitOperationAdd(name, content) for name, content in sorted(contents.items())
    ]
    for old in api.list_repo_files(repo_id, repo_type="model"):
        if old.endswith((".safetensors", ".safetensors.index.json")) and old not in files:
            operations.append(CommitOperationDelete(old))
    return operations


def published_names(publication: Publication) -> list[str]:
    """Return the files to upload: those that were noted, with card and notes.

    Of a directory without notes all are, but for what lies in folders, such as checkpoints.
    """
    directory = publication.directory
    present = {path.name for path in directory.iterdir() if path.is_file()}
    noted = read_provenance(directory).get("files")
    return sorted(present if noted is None else {*noted, *(present & {CARD_FILE, PROVENANCE_FILE})})


def changed_files(publication: Publication) -> dict[str, bytes]:
    """Return the files that the published copy has otherwise, with their checksums in its notes."""
    changed = {}
    for name, changes in publication.json_changes.items():
        content = json.loads((publication.directory / name).read_text("utf-8"))
        changed[name] = _as_json({**content, **changes})
    provenance = read_provenance(publication.directory)
    noted = provenance.get("files", {})
    for name in changed.keys() & noted.keys():
        content = changed[name]
        noted[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return {**changed, PROVENANCE_FILE: _as_json(provenance)} if changed and noted else changed


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
