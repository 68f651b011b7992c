"""Records of what made an output: one JSON file each, in ``.freshness`` beside the output."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from kedro_freshness.files import discard_unfinished, is_other_process, read_json, write_json
from kedro_freshness.fingerprints import FOLDER, fingerprint_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

FORMAT = 1
# the ID of the process that saves the output
PROCESS = "process"


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
        made_at: Local time with offset, ISO 8601.
        code: For information: version and digest of the package of the node's function.
        libraries: For information: version by distribution.
        output: Fingerprint of the output itself; None in a record that is pending.
        format: Version of this format.
    """

    dataset: str
    node: str
    environment: str
    parameters: dict[str, Any]
    inputs: dict[str, str | None]
    made_at: str = ""
    code: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    format: int = FORMAT


def read_record(path: Path) -> Record | None:
    """Return the record of the output at ``path`` as it is now.

    None if there is no record, or if it describes another content: the output was copied in,
    edited or made by something else since.
    """
    record = _read(_record_file(path))
    # The process that saved the output was killed before it could complete the record. If the
    # output is still the old one, the old record holds.
    pending = _read(_pending_file(path))
    if record is None and pending is None:
        return None
    try:
        found = fingerprint_path(path)
    except OSError:
        return None
    if record is not None and record.output == found:
        return record
    return None if pending is None else pending


def settle_record(path: Path) -> None:
    """Complete or drop the pending record of a process that was killed."""
    discard_unfinished(path.parent / FOLDER)
    pending_file = _pending_file(path)
    pending = read_json(pending_file)
    if pending is None or is_other_process(pending.get(PROCESS)):
        return
    record = read_record(path)
    if record is not None and record.output is None:
        _write(_record_file(path), replace(record, output=fingerprint_path(path)))
    pending_file.unlink(missing_ok=True)


def begin_record(path: Path, record: Record) -> None:
    """Write a pending record before the output is saved, so that a kill leaves no gap."""
    _write(_pending_file(path), record, {PROCESS: os.getpid()})


def complete_record(path: Path, record: Record) -> None:
    """Write the record of an output that is saved."""
    _write(_record_file(path), record)
    _pending_file(path).unlink(missing_ok=True)


def _record_file(path: Path) -> Path:
    return path.parent / FOLDER / f"{path.name}.json"


def _pending_file(path: Path) -> Path:
    return path.parent / FOLDER / f"{path.name}.pending.json"


def _write(path: Path, record: Record, more: Mapping[str, Any] | None = None) -> None:
    try:
        write_json(path, {**asdict(record), **(more or {})})
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the output will be of unknown origin", path, error.strerror
        )


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
