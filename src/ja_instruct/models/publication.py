"""Publish a model directory on the Hugging Face hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ja_instruct.disk_errors import explain_disk_error
from ja_instruct.errors import InputError
from ja_instruct.models.cards import is_hub_name
from ja_instruct.models.checksums import sha256_of
from ja_instruct.models.directory import CARD_FILE
from ja_instruct.models.hub import hub_errors
from ja_instruct.models.json_files import PROVENANCE_FILE, read_provenance
from ja_instruct.tables.json_objects import read_json_object
from ja_instruct.tables.json_text import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Publication:
    """A model directory to be uploaded.

    ``weights_sha256`` is for the record. ``json_changes`` has, by file, the keys and values that
    the published copy has instead of those that are only valid on this computer.
    """

    directory: Path
    commit_message: str
    weights_sha256: Mapping[str, str]
    json_changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def upload(self, repo_id: str, *, private: bool) -> dict[str, Any]:
        """Upload the model, and delete older weights with other names from the repository.

        The repository is created if it does not exist. Returns its name, the commit, its address
        and the checksums of the weights.

        Raises:
            InputError: The hub refused; the message contains its answer.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        failures: tuple[type[Exception], ...] = (RuntimeError, *hub_errors())
        try:
            api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
            with TemporaryDirectory() as folder:
                self._fill(Path(folder))
                commit = api.upload_folder(
                    repo_id=repo_id,
                    repo_type="model",
                    folder_path=folder,
                    commit_message=self.commit_message,
                    delete_patterns=_WEIGHTS,
                )
        except failures as error:
            if explain_disk_error(error):
                raise
            # the client raises a RuntimeError from the refusal of a file in LFS
            cause = error.__cause__ if isinstance(error, RuntimeError) else None
            raise InputError(
                f"{self.directory} could not be published to '{repo_id}': {cause or error}. Run "
                f"the same command again; it uploads only what the repository does not have yet"
            ) from error
        logger.info("Published %s as %s", self.directory, commit.commit_url)
        return {
            "repo_id": repo_id,
            "commit": commit.oid,
            "url": commit.commit_url,
            "private": private,
            "weights_sha256": dict(self.weights_sha256),
        }

    def _fill(self, folder: Path) -> None:
        """Link the recorded files, card and provenance into ``folder``, and write changed ones.

        A directory without provenance is published without its subfolders, such as checkpoints.
        The checksums of changed files are corrected in the published ``ja_instruct.json``.
        """
        names = {path.name for path in self.directory.iterdir() if path.is_file()}
        provenance = read_provenance(self.directory)
        recorded = provenance.get("files", {})
        if "files" in provenance:
            names = {*recorded, *(names & {CARD_FILE, PROVENANCE_FILE})}
        for name in names:
            source, target = self.directory / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in self.json_changes:
                content = read_json_object(source, "make or download the model again")
                target.write_text(as_json({**content, **self.json_changes[name]}), "utf-8")
            else:
                target.symlink_to(source.resolve())
        changed = self.json_changes.keys() & recorded.keys()
        for name in changed:
            size = (folder / name).stat().st_size
            recorded[name] = {"sha256": sha256_of(folder / name), "bytes": size}
        if changed:
            (folder / PROVENANCE_FILE).unlink()
            (folder / PROVENANCE_FILE).write_text(as_json(provenance), "utf-8")


def check_login(repo_id: str | None) -> None:
    """Raise ``InputError`` unless the user is logged in and may write to ``repo_id``."""
    import httpx
    from huggingface_hub import HfApi, errors

    where = "'repo_id' of this catalog entry (conf/base/catalog_publishing.yml)"
    if repo_id is None:
        raise InputError(f"{where} is not set; name the repository, owner/name")
    if not is_hub_name(repo_id):
        raise InputError(f"{where} is '{repo_id}', which is not a repository name, owner/name")
    try:
        account = HfApi().whoami()
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError) as error:
        raise InputError(
            f"publishing to '{repo_id}' needs a login to the hub: run 'hf auth login' with a token "
            f"that may write, or set HF_TOKEN ({error})"
        ) from error
    except (errors.OfflineModeIsEnabled, httpx.TransportError, OSError) as error:
        raise InputError(
            f"publishing to '{repo_id}': the hub cannot be reached ({type(error).__name__}); "
            f"check the network and HF_HUB_OFFLINE"
        ) from error
    owners = [account["name"], *(one["name"] for one in account.get("orgs", []))]
    if repo_id.partition("/")[0] not in owners:
        raise InputError(
            f"{where} is '{repo_id}', but you are logged in as {', '.join(owners)}; publish under "
            f"one of these, or log in as another with 'hf auth login'"
        )
