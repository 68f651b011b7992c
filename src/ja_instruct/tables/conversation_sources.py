"""The sources of conversations, as a catalog entry describes them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError, model_validator

from ja_instruct.config import Parameters, explain_errors
from ja_instruct.errors import InputError

CONVERSATIONS = "conversations"
PAIR = ("instruction", "response")
TURN = ("role", "content")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json-lines")
PARQUET_SUFFIX = ".parquet"
SUFFIXES = (
    *JSON_LINES_SUFFIXES,
    *(f"{suffix}.gz" for suffix in JSON_LINES_SUFFIXES),
    PARQUET_SUFFIX,
)


class ConversationSource(Parameters):
    """One of the ``sources`` of a ``ConversationsDataset``."""

    hub: str | None = Field(
        None, min_length=1, description="A data set of the hub, or its local folder."
    )
    name: str | None = Field(None, description="The configuration of the hub's data set.")
    split: str | None = Field(None, description="Required if the data set has several.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    files: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="Paths or patterns of JSON Lines and Parquet files."
    )
    columns: dict[str, str] = Field({}, description="Our names of columns: the source's.")
    drop_columns: tuple[str, ...] = Field((), description="Columns of the source to leave out.")
    roles: dict[str, str] = Field({}, description="Our roles: the source's.")
    turn_keys: dict[str, str] = Field({}, description="Our keys of turns: the source's.")

    @model_validator(mode="after")
    def _one_place_and_one_shape(self) -> ConversationSource:
        if (self.hub is None) == (self.files is None):
            raise ValueError("give either 'hub: owner/name' or 'files: path/*.jsonl'")
        given = [key for key in ("name", "split", "revision") if getattr(self, key) is not None]
        if self.files is not None and given:
            raise ValueError(f"{', '.join(given)}: valid only for a data set of the 'hub'")
        if self.is_pairs:
            if not all(field in self.columns for field in PAIR) or CONVERSATIONS in self.columns:
                raise ValueError(
                    "columns: give either 'conversations', or both 'instruction' and 'response'"
                )
            if self.roles or self.turn_keys:
                raise ValueError(
                    "roles, turn_keys: valid only with turns, not with columns of texts"
                )
        for mapping in ("columns", "roles", "turn_keys"):
            theirs = list(getattr(self, mapping).values())
            repeated = [name for name in theirs if theirs.count(name) > 1]
            if repeated:
                raise ValueError(f"{mapping}: '{repeated[0]}' is given twice")
        return self

    @property
    def is_pairs(self) -> bool:
        """Whether a conversation comes from two columns, an instruction and a response."""
        return any(field in self.columns for field in PAIR)

    @property
    def hub_arguments(self) -> dict[str, str]:
        """The arguments of ``datasets.load_dataset`` that are given."""
        given = {"name": self.name, "split": self.split, "revision": self.revision}
        return {key: value for key, value in given.items() if value is not None}

    def find_files(self) -> list[Path]:
        """Return the files in the order of the patterns and of their names.

        Raises:
            InputError: A pattern matches no file, or a file is of an unknown kind.
        """
        patterns = (self.files,) if isinstance(self.files, str) else self.files or ()
        found: dict[Path, None] = {}
        for pattern in patterns:
            path = Path(pattern)
            root = Path(path.anchor)
            matches = [path] if path.is_file() else root.glob(str(path.relative_to(root)))
            files = sorted(match for match in matches if match.is_file())
            if not files:
                raise InputError(
                    f"no file matches '{pattern}'; put one there, or correct 'files' (paths are "
                    f"relative to the project)"
                )
            for file in files:
                if not file.name.endswith(SUFFIXES):
                    raise InputError(
                        f"{file}: unknown kind of file; rename or convert it to one of "
                        f"{', '.join(SUFFIXES)}"
                    )
            found.update(dict.fromkeys(files))
        return list(found)


class Place(NamedTuple):
    """A file (``Path``) or a data set of the hub (``str``), with its source and its number."""

    number: int
    path: str | Path
    source: ConversationSource


def find_places(sources: object) -> list[Place]:
    """Return the files and data sets of a catalog entry's ``sources``, in order.

    Raises:
        InputError: Lists every mistake and every pattern without a file, with the number of its
            source from 1.
    """
    if not isinstance(sources, list) or not sources:
        raise InputError(
            "sources: give a list, each entry with 'hub: owner/name' or 'files: path/*.jsonl'"
        )
    places: list[Place] = []
    problems: list[str] = []
    for number, entry in enumerate(sources, start=1):
        try:
            source = ConversationSource.model_validate(entry)
            paths = [source.hub] if source.hub is not None else source.find_files()
        except ValidationError as error:
            messages = explain_errors(error, ConversationSource)
            problems += [f"source {number}: {message}" for message in messages]
        except InputError as error:
            problems.append(f"source {number}: {error}")
        else:
            places += [Place(number, path, source) for path in paths]
    if problems:
        raise InputError("; ".join(problems))
    return places
