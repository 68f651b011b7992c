"""``WordListDataset``: a list of texts, or of replacements, that a person edits as YAML."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import yaml
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview

from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import (
    Replacement,
    find_covered,
    read_replacements,
    read_substrings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

Kind = Literal["substrings", "replacements"]


class WordListDataset(AbstractDataset[Any, "list[str] | list[Replacement]"]):
    r"""Reads a word list with comments; what cannot be meant is refused with its line.

    It only loads: written anew, the file would lose its comments.

    Examples:
        YAML API, with the file of each kind:

        ```yaml
        banned_substrings:
          type: ja_instruct.datasets.WordListDataset
          filepath: conf/base/word_lists/banned_substrings.yml
          kind: substrings

        replacements:
          type: ja_instruct.datasets.WordListDataset
          filepath: conf/base/word_lists/replacements.yml
          kind: replacements
        ```

        ```yaml
        # Translation tasks
        - "翻訳"
        - " - Arigatou "  # in quotes, so that the spaces count
        ```

        ```yaml
        - find: "よしmitsu"
          replace: "よしみつ"
        - find: "♪"
          replace: ""
        ```

        Python API:

        >>> path = tmp_path / "banned.yml"
        >>> _ = path.write_text('# Translation tasks\n- "翻訳"\n- yes\n', encoding="utf-8")
        >>> WordListDataset(filepath=path, kind="substrings").load()
        Traceback (most recent call last):
            ...
        ja_instruct.errors.InputError: ...banned.yml:3 is yes, not a text: ... put it in quotes
        >>> _ = path.write_text('# Translation tasks\n- "翻訳"\n- "yes"\n', encoding="utf-8")
        >>> WordListDataset(filepath=path, kind="substrings").load()
        ['翻訳', 'yes']
    """

    def __init__(
        self, *, filepath: str | Path, kind: Kind, metadata: dict[str, Any] | None = None
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The YAML file.
            kind: ``substrings``, a list of texts, or ``replacements``, a list of mappings with
                ``find`` and ``replace``.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.

        Raises:
            InputError: There is no such kind.
        """
        if kind not in get_args(Kind):
            raise InputError(
                f"a word list's 'kind' is {' or '.join(get_args(Kind))}, not {kind!r}; correct it "
                f"in the catalog"
            )
        self._filepath = Path(filepath)
        self._kind = kind
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` listing everything that is wrong with the file."""
        self._read()

    def load(self) -> list[str] | list[Replacement]:
        """Return the entries in the order of the file.

        Raises:
            InputError: Listing everything that is wrong with the file, by line.
        """
        entries = self._read()
        if self._kind == "substrings":
            self._tell_covered(find_covered(entries))
        return entries

    def _tell_covered(self, covered: dict[str, str]) -> None:
        for text, other in islice(covered.items(), 1):
            logger.debug(
                "%s: entries that ban no text that a shorter one does not: %d, such as %r (%r)",
                self._filepath,
                len(covered),
                text,
                other,
            )

    def _read(self) -> list[Any]:
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file")
        text = _decode(self._filepath)
        read = read_substrings if self._kind == "substrings" else read_replacements
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise _explain(error, text, self._filepath) from error
        name = str(self._filepath)
        if not isinstance(root, yaml.SequenceNode):
            return list(read(_read_no_list(root), name, []))
        lines = [node.start_mark.line + 1 for node in root.value]
        found = [f"{name}:{line} {fault}" for line, fault in _find_faults(root.value)]
        return list(read([_read_entry(node) for node in root.value], name, lines, found=found))

    def save(self, data: Any) -> NoReturn:
        """Refuse: the file is a person's, and its comments would be lost."""
        raise DatasetError(f"{self._filepath} is edited by hand and is never written to")

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first ``nrows`` entries as the table that kedro-viz shows."""
        head = self._read()[:nrows]
        table = self._kind == "replacements"
        columns = list(Replacement._fields) if table else ["substring"]
        rows = [list(entry) if table else [entry] for entry in head]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "kind": self._kind}


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 ({error.reason}); convert the file, for example with "
            f"'iconv -t UTF-8'"
        ) from error


class _NoText:
    """A value that YAML takes for a number, a date or the like, shown as the file has it.

    YAML's own values would show ``yes`` as ``True``, and some cannot be made: a day 2024-13-45.
    """

    def __init__(self, node: yaml.Node) -> None:
        is_scalar = isinstance(node, yaml.ScalarNode)
        self._source = (node.value or "nothing") if is_scalar else "a list within the list"

    def __repr__(self) -> str:
        return self._source


def _read_text(node: yaml.Node) -> Any:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    return node.value if is_text else _NoText(node)


def _read_entry(node: yaml.Node) -> Any:
    """Return an entry's text, or the texts of its keys."""
    if not isinstance(node, yaml.MappingNode):
        return _read_text(node)
    return {str(_read_text(key)): _read_text(value) for key, value in node.value}


def _read_no_list(root: yaml.Node | None) -> dict[str, Any] | str | None:
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return None
    return {} if isinstance(root, yaml.MappingNode) else str(root.value)


def _find_faults(nodes: list[yaml.Node]) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of faults that YAML passes over in silence."""
    for node in nodes:
        scalars = [node]
        if isinstance(node, yaml.MappingNode):
            scalars = [value for _, value in node.value]
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            repeated = [f"'{key}'" for key in dict.fromkeys(keys) if keys.count(key) > 1]
            if repeated:
                yield (
                    node.start_mark.line + 1,
                    f"has {' and '.join(repeated)} more than once: begin every entry with '- '",
                )
        for scalar in scalars:
            # | and > say that several lines are meant
            folded = isinstance(scalar, yaml.ScalarNode) and scalar.style not in ("|", ">")
            if folded and scalar.start_mark.line != scalar.end_mark.line:
                yield (
                    scalar.start_mark.line + 1,
                    f"goes on in line {scalar.end_mark.line + 1}, which YAML joins to one text: "
                    f"begin every entry with '- ', and write a line break as \\n in double quotes",
                )


def _explain(error: yaml.YAMLError, text: str, path: Path) -> InputError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return InputError(
            f"{path}:{line}: holds the control character U+{int(error.character):04X}, which YAML "
            f"forbids: write it as an escape such as \\x01 in double quotes, or remove it"
        )
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    what = getattr(error, "problem", None) or str(error)
    return InputError(
        f'{where}: no valid YAML ({what}); most often a text must be put in quotes, with a " in '
        f"it as \\\" and a \\ as \\\\, or a line lacks its '- ' or its indentation (of spaces)"
    )
