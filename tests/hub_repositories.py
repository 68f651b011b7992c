"""The repositories of ``hub_server``: commits, branches and the listings that the hub gives."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LFS_BYTES_MIN = 1_000_000
LFS_SUFFIXES = (".safetensors", ".parquet")
# a safetensors file without tensors
NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"


@dataclass(frozen=True)
class HubFile:
    """A file of a commit.

    Attributes:
        content: None for a file that is only listed.
        listed_size: The size of such a file, in bytes.
    """

    content: bytes | None
    listed_size: int = 0

    @property
    def size(self) -> int:
        return self.listed_size if self.content is None else len(self.content)

    @cached_property
    def git_oid(self) -> str:
        content = self.content or b""
        return hashlib.sha1(b"blob %d\0" % self.size + content).hexdigest()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content or str(self.size).encode()).hexdigest()

    def is_lfs(self, path: str) -> bool:
        """Return whether the hub stores the file in LFS and not in git."""
        return path.endswith(LFS_SUFFIXES) or self.size >= LFS_BYTES_MIN

    def describe(self, path: str) -> dict[str, Any]:
        """Return the entry of a listing."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.git_oid}
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry | ({"lfs": lfs} if self.is_lfs(path) else {})


@dataclass
class Repository:
    """A repository.

    Attributes:
        repo_id: ``owner/name``.
        repo_type: ``model`` or ``dataset``.
        is_gated: Whether files need a token that has access, but not the listing.
        is_private: Whether everything does.
        commits: The files by path, of each commit.
        branches: The commit of each branch.
        weights: The number of weights of each type, if the files do not say it.
        messages: Those of the commits that were uploaded.
    """

    repo_id: str
    repo_type: str
    is_gated: bool = False
    is_private: bool = False
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, HubFile], branch: str) -> str:
        """Make ``files`` the content of a branch, and return the commit."""
        names = "".join(f"{path} {file.sha256}\n" for path, file in sorted(files.items()))
        commit = hashlib.sha1(names.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def contents(self) -> dict[str, bytes | None]:
        """Return the contents of the default branch, by path."""
        files = self.commits[self.branches["main"]]
        return {path: file.content for path, file in files.items()}

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch or of a commit's name."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def list(self, commit: str, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
        """Return the entries of a folder; none if the commit does not have it."""
        entries = {}
        for path, file in self.commits[commit].items():
            name = path.removeprefix(f"{folder}/") if folder else path
            if folder and name == path:
                continue
            first, _, rest = name.partition("/")
            if rest and not is_recursive:
                path = f"{folder}/{first}" if folder else first
                entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            else:
                entries[path] = file.describe(path)
        return list(entries.values())

    def describe(self, commit: str) -> dict[str, Any]:
        """Return what the hub says about a commit."""
        files = self.commits[commit]
        weights = self.weights or count_weights(files)
        return {
            "id": self.repo_id,
            "sha": commit,
            "private": self.is_private,
            "gated": "manual" if self.is_gated else False,
            "siblings": [{"rfilename": path, "size": file.size} for path, file in files.items()],
            "safetensors": {"parameters": weights, "total": sum(weights.values())}
            if weights
            else None,
        }


def count_weights(files: dict[str, HubFile]) -> dict[str, int]:
    """Return the number of weights of each type, from the headers of safetensors files."""
    counts: Counter[str] = Counter()
    for path, file in files.items():
        if path.endswith(".safetensors") and file.content is not None:
            length = int.from_bytes(file.content[:8], "little")
            for name, tensor in json.loads(file.content[8 : 8 + length]).items():
                if name != "__metadata__":
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return dict(counts)
