"""Which outputs of two runs must be equal, and in what they may differ: one table.

``TABLE`` has a row for every file that a run of the environment ``test`` or ``demo`` leaves below
``data/``. Comparisons of runs and of revisions read it, and a test holds that it is complete.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

INPUTS = ("01_raw/*", "06_models/*/tiny*", "README.md", "*.gitkeep")
# of a dataset that was being replaced: .NAME.TOKEN.new
TEMPORARY = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{8}\.(new|old|lock)(/|$)")
# a model in a local directory is recorded by its path
LOCAL_MODEL = re.compile(rb'"/[^"]*?(?=/data/06_models/)')
SECONDS = ("*seconds", "*tokens_per_second", "*_runtime", "*_per_second")
# how much of a result an interrupted run had left
RESUMED = ("summary.resumed_from_step", "summary.encoded", "summary.reused")

Content = dict[str, Any] | bytes
Reader = Callable[[bytes, tuple[str, ...]], Content]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON by their dotted keys; an empty container is a leaf."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    found: dict[str, Any] = {}
    for key, one in pairs:
        found |= flatten(one, f"{prefix}{key}.")
    return found or {prefix.rstrip("."): value}


def _bytes(content: bytes, _: tuple[str, ...]) -> Content:
    return content


def _json(content: bytes, keys: tuple[str, ...]) -> Content:
    leaves = flatten(json.loads(content))
    return {
        key: value
        for key, value in leaves.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in keys)
    }


def _rows(content: bytes, keys: tuple[str, ...]) -> Content:
    """Return the rows as a set, without their order and without a line that was cut off."""
    rows = set()
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            rows.add(json.dumps(_json(line, keys), ensure_ascii=False, sort_keys=True))
    return dict.fromkeys(rows, "a row")


def _text(content: bytes, patterns: tuple[str, ...]) -> Content:
    text = content.decode()
    for pattern in patterns:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    return dict(enumerate(text.split("\n"), start=1))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rule:
    """How files are compared.

    Attributes:
        pattern: Of the path below ``data/``; ``*`` also matches slashes. The first row that
            matches a file holds for it.
        read: Returns what is compared; None if the files may differ, or be missing.
        unlike: What is left out of the comparison: keys of JSON, or regular expressions of text.
        of_folder: Is left out, too, if the projects of the two runs were in different folders:
            ``adapter_config.json`` names the folder of the 4-bit model, and hashes cover it.
        is_result: A revision of the code that must not alter results must leave it equal, too.
            Other files also record versions and texts of the project.
        may_grow: The file may hold more than that of the undisturbed run.
    """

    pattern: str
    read: Reader | None = _bytes
    unlike: tuple[str, ...] = ()
    of_folder: tuple[str, ...] = ()
    is_result: bool = False
    may_grow: bool = False


TABLE = (
    # the tracking store: times and random ids
    Rule("mlflow/*", read=None),
    # the contents of inputs and outputs follow the other rows of this table
    Rule("*/.freshness/*.json", _json, ("made_at", "run", "code", "output", "inputs.*")),
    # working files of a training, from which an interrupted one resumes
    Rule("06_models/*/checkpoints/*", read=None),
    Rule("03_primary/*.jsonl", is_result=True),
    Rule("04_feature/*/embeddings.safetensors", is_result=True),
    Rule("04_feature/*/index.json"),
    Rule("05_model_input/*.jsonl", is_result=True),
    Rule(
        "06_models/*/adapter/ja_instruct.json",
        _json,
        of_folder=("files.adapter_config.json.*",),
    ),
    Rule("06_models/*.safetensors", is_result=True),
    Rule("06_models/*/quantized_model/*"),
    Rule("06_models/*/adapter/*"),
    Rule("06_models/*/merged_model/*"),
    # its rows have the order in which answers were finished
    Rule(
        "07_model_output/*/answer_store.jsonl",
        _rows,
        ("answer.seconds",),
        of_folder=("key",),
        may_grow=True,
    ),
    Rule("07_model_output/*.jsonl", is_result=True),
    Rule("08_reporting/*/train_history.json", _json, SECONDS, is_result=True),
    Rule("08_reporting/*/train_metrics.json", _json, (*SECONDS, *RESUMED)),
    Rule("08_reporting/*/inference_report.json", _json, SECONDS),
    Rule("08_reporting/*/quantization_report.json", _json, SECONDS),
    Rule("08_reporting/*/filter_report.json"),
    Rule("08_reporting/*/rag_index_report.json", _json, RESUMED),
    Rule("08_reporting/*/export_report.json", _json, SECONDS),
    Rule("08_reporting/*_plot.json"),
    Rule("08_reporting/*/filter_report.html"),
    Rule(
        "08_reporting/*/report.html",
        _text,
        (
            r"<dt>[^<]*(seconds|tokens per second|encoded|reused)</dt><dd>[^<]*</dd>",
            r"<dt>resumed from step</dt><dd>[^<]*</dd>\s*",
        ),
    ),
)


def rule_of(path: str) -> Rule | None:
    """Return the row for a path below ``data/``; None if the table has none."""
    return next((rule for rule in TABLE if fnmatch.fnmatchcase(path, rule.pattern)), None)


def output_files(project: Path) -> Iterator[str]:
    """Yield the paths of all outputs below ``data/``, sorted."""
    data = project / "data"
    for file in sorted(data.rglob("*")):
        path = file.relative_to(data).as_posix()
        if file.is_file() and not any(fnmatch.fnmatchcase(path, one) for one in INPUTS):
            yield path


def differences(
    expected: Path, made: Path, *, same_folder: bool = False, shown: int = 3
) -> dict[str, str]:
    """Compare the outputs of two projects by the table.

    Args:
        expected: The project of the undisturbed run.
        made: The other project.
        same_folder: Both runs were made in the same folder, and copied since.
        shown: How many differing keys or lines of a file are named.

    Returns:
        By path what differs; a file that is missing, temporary or not in the table differs, too.
    """
    found = {}
    for path in sorted({*output_files(expected), *output_files(made)}):
        rule = rule_of(path)
        if temporary := TEMPORARY.search(path):
            # its files, if it is a directory, are listed once
            found[path[: temporary.end()].rstrip("/")] = "temporary, of a run that was killed"
        elif rule is None:
            found[path] = "not in the table of outputs"
        elif rule.read is not None and (
            text := _difference(path, _in_folders(rule, same_folder), expected, made, shown)
        ):
            found[path] = text
    return found


def _in_folders(rule: Rule, same_folder: bool) -> Rule:
    return rule if same_folder else replace(rule, unlike=rule.unlike + rule.of_folder)


def _difference(path: str, rule: Rule, expected: Path, made: Path, shown: int) -> str:
    files = [project / "data" / path for project in (expected, made)]
    if not all(file.is_file() for file in files):
        return "only in the undisturbed run" if files[0].is_file() else "not in the undisturbed run"
    try:
        old, new = (_read(file, rule) for file in files)
    except (ValueError, KeyError, TypeError) as error:
        return f"cannot be read: {error!r}"
    if old == new:
        return ""
    if isinstance(old, bytes) or isinstance(new, bytes):
        return f"{len(old)} and {len(new)} bytes" if len(old) != len(new) else "other bytes"
    keys = [
        key
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not (rule.may_grow and key not in old)
    ]
    lines = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}"[:160] for key in keys[:shown]]
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return "; ".join(lines) + more


def _read(file: Path, rule: Rule) -> Content:
    content = file.read_bytes()
    if file.suffix in (".json", ".jsonl", ".md"):
        content = LOCAL_MODEL.sub(rb'"', content)
    return content if rule.read is None else rule.read(content, rule.unlike)
