"""What may happen to a file, for the tests of how it is read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Corrupt = Callable[["Path"], None] if TYPE_CHECKING else object


def _rewrite(change: Callable[[str], str], encoding: str = "utf-8") -> Corrupt:
    def corrupt(path: Path) -> None:
        path.write_bytes(change(path.read_text("utf-8")).encode(encoding, "replace"))

    return corrupt


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _japanese(text: str) -> str:
    """Return the text with a Japanese name at its beginning: the first object has a key more."""
    return text.replace("{", '{"説明": "日本語の説明",', 1)


def _with_other_types(text: str) -> str:
    """Return an object, or lines of objects, whose values have other types."""

    def changed(content: dict) -> dict:
        return {key: 7 if isinstance(value, str) else "七" for key, value in content.items()}

    try:
        return json.dumps(changed(json.loads(text)))
    except json.JSONDecodeError:
        return "".join(f"{json.dumps(changed(json.loads(one)))}\n" for one in text.splitlines())


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_unreadable(path: Path) -> None:
    if os.geteuid():
        path.chmod(0)
    else:  # the superuser reads every file; the first page of this one gives an I/O error
        path.unlink()
        path.symlink_to("/proc/self/mem")


# of any file
BYTES: dict[str, Corrupt] = {
    "truncated": _truncate,
    "empty": lambda path: path.write_bytes(b""),
    "a directory": _replace_by_directory,
    "unreadable": _make_unreadable,
}
# of a JSON file
CORRUPTIONS: dict[str, Corrupt] = {
    **BYTES,
    "a list": _rewrite(lambda _: '[{"a": 1}]'),
    "a number": _rewrite(lambda _: "12"),
    "a string": _rewrite(lambda _: '"text"'),
    "null": _rewrite(lambda _: "null"),
    "other types": _rewrite(_with_other_types),
    "UTF-16": _rewrite(_japanese, "utf-16"),
    "Shift_JIS": _rewrite(_japanese, "shift_jis"),
    "not UTF-8": lambda path: path.write_bytes(
        path.read_bytes().replace(b"{", b'{"\xff\xfe":1,', 1)
    ),
    "a byte order mark": _rewrite(str, "utf-8-sig"),
}
