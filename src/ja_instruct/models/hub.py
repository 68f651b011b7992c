"""Requests to the Hugging Face hub, with errors that name the remedy."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ja_instruct.disk_errors import explain_disk_error, writing
from ja_instruct.errors import InputError
from ja_instruct.models.json_files import INDEX_FILE, read_weight_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

_DOWNLOADED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "artifact.metadata"]
_OFFLINE_REMEDY = (
    "check the network and HF_HUB_OFFLINE, point the catalog entry at a local directory, or try "
    "the embedded example with '--env=demo', which needs no network"
)
# arguments of datasets.load_dataset that load_dataset_builder does not have
_ONLY_FOR_LOADING = frozenset(
    ("split", "verification_mode", "keep_in_memory", "save_infos", "streaming", "num_proc")
)
_LOGIN = "log in with 'hf auth login' (or set HF_TOKEN)"


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the hub's client: refused, out of reach, not in the local cache."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return HfHubHTTPError, LocalEntryNotFoundError, httpx.TransportError, OSError


def check_repository(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> bool:
    """Return whether the hub has the repository; False if only the local cache has it.

    Raises:
        InputError: The name is not a repository's; the hub does not have the repository or the
            revision, or refuses this user; the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
        api = HfApi()
        api.auth_check(repo_id, repo_type=repo_type)
        api.repo_info(repo_id, revision=revision, repo_type=repo_type, timeout=20)
    except HFValidationError as error:
        raise InputError(
            f"{repo_type} '{repo_id}': not a name of a repository; write owner/name in the catalog"
        ) from error
    except hub_errors() as error:
        refusal = _explain_refusal(error, repo_id, revision, repo_type)
        if refusal:
            raise InputError(f"{repo_type} '{repo_id}' {refusal}") from error
        _require_cached(repo_id, repo_type, error)
        return False
    return True


def _explain_refusal(error: Exception, repo_id: str, revision: str | None, repo_type: str) -> str:
    """Return why the hub refuses a repository, with the remedy; empty if it has not answered."""
    from huggingface_hub import constants, errors

    address = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"is gated: accept its terms at {address}, {_LOGIN}, then run again. '--env=demo' "
            f"runs without it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"has no revision '{revision}': give a branch, tag or commit that {address}/commits "
            f"lists, or none for the default branch"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or _status_of(error) == 401:
        if "Invalid credentials" in str(error):
            return f"cannot be read, because the hub rejects your token: {_LOGIN} again"
        return (
            f"is not at {address}, or it is private and you have no access to it: check the name "
            f"in the catalog, or {_LOGIN}"
        )
    return ""


def _status_of(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _require_cached(repo_id: str, repo_type: str, error: Exception) -> None:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = {repo.repo_id for repo in scan_cache_dir().repos}
    except CacheNotFound:
        cached = set()
    status = _status_of(error)
    state = f"HTTP {status}" if status else type(error).__name__
    if constants.HF_HUB_OFFLINE:
        state = "offline mode is on"
    if repo_id not in cached:
        raise InputError(
            f"{repo_type} '{repo_id}' cannot be reached ({state}): {_OFFLINE_REMEDY}"
        ) from error
    logger.info(
        "%s '%s': the hub cannot be reached (%s), using the local cache", repo_type, repo_id, state
    )


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
            f"model '{repo_id}' could not be downloaded ({error}): repeat the command, which keeps "
            f"the files that are complete, or {_OFFLINE_REMEDY}"
        ) from error


def check_hub_dataset(name: str, /, **arguments: Any) -> None:
    """Raise ``InputError`` unless a data set has the split and the files that the arguments name.

    A few kilobytes are downloaded: the card and the list of the files. See ``load_hub_dataset``.
    """
    from datasets import load_dataset_builder

    revision, split = arguments.get("revision"), arguments.get("split")
    known = {key: value for key, value in arguments.items() if key not in _ONLY_FOR_LOADING}
    # the library would try for 20 seconds to reach a hub that is out of reach
    if not (Path(name).is_dir() or check_repository(name, revision, "dataset")):
        return
    with _explaining(name, arguments):
        builder = load_dataset_builder(name, **known)
        splits = [str(one) for one in builder.config.data_files or builder.info.splits or ()]
        # 'train[:10%]' and 'train+test' are left to the library
        if splits and str(split).isidentifier() and split not in (None, "all", *splits):
            raise ValueError(f"it has the splits {', '.join(splits)}")


def load_hub_dataset(name: str, /, **arguments: Any) -> Dataset | DatasetDict:
    """Return a data set of the hub, downloaded unless it is cached, or of a local folder.

    Args:
        name: ``owner/name`` or the folder.
        arguments: Arguments of ``datasets.load_dataset``.

    Raises:
        InputError: As ``check_repository``; or the data set does not have what the arguments name,
            or has no files that can be read.
    """
    from datasets import load_dataset

    with _explaining(name, arguments):
        return load_dataset(name, **arguments)  # type: ignore[no-any-return]


@contextmanager
def _explaining(name: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Raise ``InputError`` for an error of ``datasets`` that is not one of the disk."""
    from datasets.exceptions import DatasetsError
    from httpx import TransportError

    try:
        yield
    except InputError:
        raise
    except (DatasetsError, RuntimeError, TypeError, ValueError, *hub_errors()) as error:
        if explain_disk_error(error):
            raise
        if not Path(name).is_dir():
            check_repository(name, arguments.get("revision"), "dataset")
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        is_of_hub = _status_of(error) or isinstance(error, (TransportError, ConnectionError))
        raise InputError(
            f"dataset '{name}' cannot be loaded with {given or 'no arguments'} ({reason}): "
            f"{_OFFLINE_REMEDY if is_of_hub else 'correct its catalog entry'}"
        ) from error


def fetch_file(repo_id: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a model, downloaded or from the cache; None if neither has it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub import try_to_load_from_cache as find_cached

    try:
        # hf_hub_download retries for half a minute if the hub is out of reach
        get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision))
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except hub_errors():
        cached = find_cached(repo_id, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else None


def is_cached(repo_id: str, revision: str | None, name: str) -> bool:
    """Return whether the local cache has a file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str)


def cached_commit(
    repo_id: str, revision: str | None, repo_type: Literal["model", "dataset"]
) -> str | None:
    """Return the commit that a revision was downloaded at, by the cache alone; None if not."""
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


class ModelListing(NamedTuple):
    """What the hub lists of a model: its files, and the number of weights of each type (``BF16``).

    Without safetensors there are no types.
    """

    files: tuple[str, ...]
    weights_by_type: dict[str, int]


def list_model(repo_id: str, revision: str | None) -> ModelListing | None:
    """Return what the hub lists of a model; None if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo_id, revision=revision)
    except hub_errors():
        return None
    files = tuple(file.rfilename for file in info.siblings or ())
    return ModelListing(files, dict(info.safetensors.parameters) if info.safetensors else {})


def module_names(repo_id: str, revision: str | None) -> frozenset[str] | None:
    """Return the names of a model's weights without ``.weight``, from a few kilobytes of the hub.

    They are those of the index of its shards, or else of its only file's header, and include norms.
    None if neither is available.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    index = fetch_file(repo_id, revision, INDEX_FILE)
    if index is not None:
        names: Iterable[str] = read_weight_map(index.parent) or ()
    else:
        errors: tuple[type[Exception], ...] = (*hub_errors(), SafetensorsParsingError)
        try:
            header = HfApi().parse_safetensors_file_metadata(
                repo_id, "model.safetensors", revision=revision
            )
        except errors:
            return None
        names = header.tensors
    suffix = ".weight"
    return frozenset(name.removesuffix(suffix) for name in names if name.endswith(suffix))


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
