"""Records of what made an output: one JSON file each, in ``.freshness`` beside the output."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from kedro_freshness.files import is_other_process, read_json, write_json
from kedro_freshness.fingerprints import DIGESTS, FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".json"
PENDING = ".pending.json"
# key of the ID of the process that saves the output
PROCESS = "process"
# of an output whose record is named after it; names of files have at most 255 bytes
NAME_BYTES_MAX = 255 - len(PENDING)


@dataclass(frozen=True)
class Record:
    """What made an output.

    Attributes:
        dataset: Name of the output in the catalog of the run that made it.
        node: Name of the node.
        environment: Name of the configuration environment, the owner of the output.
        parameters: Values that count by full name, such as ``sft.training.learning_rate``.
        inputs: Fingerprint of each persisted input by name; None for one that did not exist. An
            input that is only in memory is replaced by what it was made of.
        run: Kedro's identifier of the run.
        made_at: Local time with offset, ISO 8601.
        code: For information: version and digest of the package of the node's function.
        libraries: For information: version by distribution.
        output: Fingerprint of the output itself; None in a record that is pending.
        saved: False in a record that is pending because the output is being saved.
        format: Version of this format.
    """

    dataset: str
    node: str
    environment: str
    parameters: dict[str, Any]
    inputs: dict[str, str | None]
    run: str = ""
    made_at: str = ""
    code: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    saved: bool = True
    format: int = FORMAT


def read_record(path: Path, fingerprint: Callable[[], str | None]) -> Record | None:
    """Return the record of the output at ``path`` as it is now.

    Its ``saved`` is False if the process was killed while it saved the output, which may be
    half-written.

    Args:
        path: The output, which exists.
        fingerprint: Returns the fingerprint of the output as it is now.

    Returns:
        None if there is no record, or if it describes another content: the output was copied in,
        edited or made by something else since.
    """
    record = _read(_record_file(path))
    pending = _read(_pending_file(path))
    if pending is not None and pending.saved:
        return pending
    if record is not None and record.output is not None and record.output == fingerprint():
        return record  # of a pending save, nothing was written
    return pending


def settle_record(path: Path, fingerprint: Callable[[], str | None]) -> None:
    """Complete or drop the pending record of a process that was killed.

    The one of an output that may be half-written stays.
    """
    pending = _pending_file(path)
    if not pending.is_file() or is_other_process((read_json(pending) or {}).get(PROCESS)):
        return
    record = read_record(path, fingerprint) if path.exists() else None
    if record is not None and record.saved and record.output is None:
        complete_record(path, replace(record, output=fingerprint()))
    elif record is None or record.saved:
        _drop(pending)


def begin_record(path: Path, record: Record, *, saved: bool) -> None:
    """Write a pending record, before and once more after the output is saved.

    A kill then leaves neither an output that is taken for finished nor one of unknown origin.
    """
    try:
        content = {**asdict(replace(record, saved=saved)), PROCESS: os.getpid()}
        write_json(_pending_file(path), content, is_durable=False)
    except OSError as error:  # 'complete_record' warns
        logger.debug("%s cannot be written: %s", _pending_file(path), error)


def complete_record(path: Path, record: Record) -> None:
    """Write the record of an output that is saved."""
    try:
        write_json(_record_file(path), asdict(record))
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the output will be of unknown origin",
            _record_file(path),
            error.strerror,
        )
    _drop(_pending_file(path))


def finish_record(path: Path, fingerprint: Callable[[], str | None]) -> None:
    """Complete the pending record of an output whose node has ended."""
    pending = _read(_pending_file(path))
    if pending is not None:
        complete_record(path, replace(pending, saved=True, output=fingerprint()))


def is_recorded(path: Path, run: str) -> bool:
    """Return whether an output has a complete record of a run."""
    record = _read(_record_file(path))
    return record is not None and record.run == run


def _record_file(path: Path) -> Path:
    return path.parent / FOLDER / f"{_name(path)}{SUFFIX}"


def _pending_file(path: Path) -> Path:
    return path.parent / FOLDER / f"{_name(path)}{PENDING}"


def _name(path: Path) -> str:
    encoded = os.fsencode(path.name)
    is_taken = path.name == DIGESTS.removesuffix(SUFFIX) or f"{path.name}{SUFFIX}".endswith(PENDING)
    if is_taken or len(encoded) > NAME_BYTES_MAX:
        return hashlib.sha256(encoded).hexdigest()
    return path.name


def _drop(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Record | None:
    content = read_json(path)
    if content is None or content.get("format") != FORMAT:
        return None
    known = {one.name for one in fields(Record)}
    try:
        record = Record(**{key: value for key, value in content.items() if key in known})
    except TypeError:  # a field is missing
        return None
    values = (record.parameters, record.inputs, record.libraries)
    return record if all(isinstance(value, dict) for value in values) else None
