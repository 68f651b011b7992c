"""A server on this computer that speaks the Hugging Face hub's protocol, for ``HF_ENDPOINT``.

Model and data set repositories with branches and commits, private and gated ones, tokens, listings,
files in git and in LFS, parts of files, downloads that break, and uploads of models. The clients
are the real ones; Xet is not there.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import HubFile, Repository
from hub_uploads import NotWritableError, answer_upload

_API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/lfs/([0-9a-f]{64})")


class Request(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    range: str | None


class HubServer(ThreadingHTTPServer):
    """A hub on a free port of this computer.

    Attributes:
        uri: For ``HF_ENDPOINT``.
        requests: All requests so far.
        tokens: The tokens that the hub knows, each with the gated and private repositories that it
            gives access to.
        accounts: The names that a token may publish under, the user's first.
        is_read_only: Whether nothing can be uploaded to repositories that exist.
        is_storage_read_only: Whether nothing can be uploaded to LFS.
        breaks: By path in the repository, after how many bytes the connection of each of the next
            downloads is closed.
        status: The status of every answer, if it is not 200.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[Request] = []
        self.tokens: dict[str, set[str]] = {}
        self.accounts: dict[str, list[str]] = {}
        self.is_read_only = False
        self.is_storage_read_only = False
        self.breaks: dict[str, list[int]] = {}
        self.status = 200
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, tuple[str, HubFile]] = {}
        self._connections: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that uses this hub."""
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        addresses = {"HF_ENDPOINT": self.uri, "NO_PROXY": "127.0.0.1,localhost"}
        return {**addresses, **dict.fromkeys(offline, "0")}

    def add(
        self,
        repo_id: str,
        files: Path | dict[str, bytes | HubFile],
        *,
        repo_type: str = "model",
        branch: str = "main",
        **attributes: Any,
    ) -> str:
        """Add a repository, or a branch to one, and return the commit.

        Args:
            repo_id: ``owner/name``.
            files: A folder, or the files' contents by path.
            repo_type: ``model`` or ``dataset``.
            branch: The branch that has these files.
            attributes: Attributes of the repository.
        """
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        made = {
            path: file if isinstance(file, HubFile) else HubFile(file)
            for path, file in files.items()
        }
        key = (repo_type, repo_id)
        repository = self.repositories.setdefault(key, Repository(repo_id, repo_type))
        for name, value in attributes.items():
            setattr(repository, name, value)
        self.lfs.update({file.sha256: (path, file) for path, file in made.items()})
        return repository.commit(made, branch)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def close(self) -> None:
        """Stop; clients are refused the connection from now on."""
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


class _RefusalError(Exception):
    """An answer that is an error, with the hub's headers."""

    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        super().__init__(message)
        self.status = status
        self.headers = {name: value for name, value in headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._body = self._read_body()
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(Request(self.command, path, self.headers.get("Range")))
        try:
            self._require_known_token()
            self._answer(urlsplit(self.path).path)
        except _RefusalError as refusal:
            self._send(json.dumps({"error": str(refusal)}), refusal.headers, refusal.status)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self, path: str) -> None:
        if self.server.status != 200:
            raise _RefusalError(self.server.status, "", "the hub has a problem")
        account = self.server.accounts.get(self._token() or "", [])
        try:
            answer = answer_upload(self.server, path, self._body, account)
        except NotWritableError as error:
            raise _RefusalError(403, "", "you may not write there") from error
        if answer is not None:
            self._send_json(answer)
            return
        if match := _LFS.fullmatch(path):
            path, file = self.server.lfs[match[1]]
            if file.content is None:
                raise _RefusalError(404, "", f"{path} is only listed")
            self._send_file(path, file, {})
        elif match := _RESOLVE.fullmatch(path):
            repository = self._find("dataset" if match[1] else "model", match[2])
            self._resolve(repository, unquote(match[3]), unquote(match[4]))
        elif path == "/api/whoami-v2":
            raise _RefusalError(401, "", "Invalid username or password.")
        elif match := _API.fullmatch(path):
            self._answer_api(self._find(match[1], match[2]), match[3], match[4] or "")
        else:
            raise _RefusalError(404, "", f"no such endpoint: {path}")

    def _answer_api(self, repository: Repository, what: str | None, rest: str) -> None:
        revision, _, folder = map(unquote, rest.partition("/"))
        if what == "auth-check":
            self._require_access(repository)
            self._send_json({})
        elif what in (None, "revision"):
            self._send_json(repository.describe(_find_commit(repository, unquote(rest) or "main")))
        elif what == "tree":
            commit = _find_commit(repository, revision)
            wanted = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0]
            entries = repository.list(commit, folder, is_recursive=wanted.lower() == "true")
            if not entries:
                raise _RefusalError(404, "EntryNotFound", f"{folder} does not exist", commit)
            self._send_json(entries)
        else:
            raise _RefusalError(404, "", f"no such endpoint: {what}")

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        self._require_access(repository)
        commit = _find_commit(repository, revision)
        file = repository.commits[commit].get(path)
        if file is None:
            raise _RefusalError(404, "EntryNotFound", "Entry not found", commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.git_oid}"'}
        if not file.is_lfs(path):
            self._send_file(path, file, headers)
            return
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-Etag": f'"{file.sha256}"',
            # another host, which must not get the token
            "Location": f"http://localhost:{self.server.server_address[1]}/lfs/{file.sha256}",
        }
        self._send("", headers, 302)

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _require_known_token(self) -> None:
        if (self._token() or "") not in {"", *self.server.tokens}:
            raise _RefusalError(401, "", "Invalid credentials in Authorization header")

    def _find(self, repo_type: str, repo_id: str) -> Repository:
        token = self._token()
        repository = self.server.repositories.get((repo_type, repo_id))
        if repository is None or (repository.is_private and not self._has_access(repository)):
            if token is None:  # the hub does not say which of the two it is
                raise _RefusalError(401, "", "Invalid username or password.")
            raise _RefusalError(404, "RepoNotFound", "Repository not found")
        return repository

    def _has_access(self, repository: Repository) -> bool:
        return repository.repo_id in self.server.tokens.get(self._token() or "", ())

    def _require_access(self, repository: Repository) -> None:
        if repository.is_gated and not self._has_access(repository):
            status = 401 if self._token() is None else 403
            message = f"Access to {repository.repo_type} {repository.repo_id} is restricted"
            raise _RefusalError(status, "GatedRepo", message)

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value), {"Content-Type": "application/json"})

    def _send_file(self, path: str, file: HubFile, headers: dict[str, str]) -> None:
        content, status = file.content or b"", 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or file.size - 1)
            content, status = content[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{file.size}"}
        breaks = self.server.breaks.get(path)
        sent = breaks.pop(0) if breaks and self.command == "GET" else None
        self._send(content, {"Accept-Ranges": "bytes", **headers}, status, sent)

    def _send(
        self,
        content: bytes | str,
        headers: dict[str, str],
        status: int = 200,
        sent: int | None = None,
    ) -> None:
        """Answer; with ``sent`` close the connection after so many bytes."""
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.command != "HEAD":
                self.wfile.write(body[:sent])
        self.close_connection |= sent is not None

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _find_commit(repository: Repository, revision: str) -> str:
    commit = repository.find(revision)
    if commit is None:
        raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit
