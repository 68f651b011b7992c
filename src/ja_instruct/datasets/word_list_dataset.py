"""``WordListDataset``: a list of texts, or of replacements, that a person edits as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from ja_instruct.datasets.base import InputPathDataset
from ja_instruct.datasets.preview import make_preview
from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import (
    Replacement,
    Replacements,
    Substrings,
    WordListKind,
    parse_word_list,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kedro_datasets._typing import TablePreview


class WordListDataset(InputPathDataset[Substrings | Replacements]):
    r"""Loads a word list with comments; an error names the line of every entry that is wrong.

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
        ja_instruct.errors.InputError: ...banned.yml:3 is yes, not text: ... put it in quotes
        >>> _ = path.write_text('# Translation tasks\n- "翻訳"\n- "yes"\n', encoding="utf-8")
        >>> WordListDataset(filepath=path, kind="substrings").load()
        ['翻訳', 'yes']
    """

    SAVE_ERROR = "the file is edited by hand, and saving would remove its comments"

    def __init__(
        self, *, filepath: str | Path, kind: WordListKind, metadata: dict[str, Any] | None = None
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The YAML file.
            kind: ``substrings``, a list of texts, or ``replacements``, a list of mappings with
                ``find`` and ``replace``.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.

        Raises:
            InputError: The kind is unknown.
        """
        kinds = get_args(WordListKind)
        if kind not in kinds:
            raise InputError(
                f"a word list's 'kind' is {' or '.join(kinds)}, not {kind!r}; correct it in the "
                f"catalog"
            )
        super().__init__(filepath=filepath, metadata=metadata)
        self._kind = kind

    def check(self) -> None:
        """Raise ``InputError`` that lists all mistakes in the file."""
        self.load()

    def load(self) -> Substrings | Replacements:
        """Return the entries in the order of the file.

        Raises:
            InputError: The file is missing, or lists all mistakes in it with their lines.
        """
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file")
        raw = self._filepath.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"{self._filepath}:{line}: not UTF-8 ({error.reason}); convert the file, for "
                f"example with 'iconv -t UTF-8'"
            ) from error
        return parse_word_list(text, self._kind, str(self._filepath))

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first ``nrows`` entries as the table that kedro-viz shows."""
        return make_preview(
            [
                entry._asdict() if isinstance(entry, Replacement) else {"substring": entry}
                for entry in self.load()[:nrows]
            ]
        )
