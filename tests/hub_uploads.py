"""What ``hub_server`` answers to uploads: new repositories, files in git and in LFS, commits."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hub_repositories import HubFile, Repository

if TYPE_CHECKING:
    from hub_server import HubServer

_ACTION = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)")
_LFS_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LFS_UPLOAD = re.compile(r"/lfs-upload/([0-9a-f]{64})")


class NotWritableError(Exception):
    """The account of the token may not write there."""


def answer_upload(
    server: HubServer, path: str, body: bytes, account: list[str]
) -> dict[str, Any] | None:
    """Return the answer to a request; None if it is not one of an upload.

    Args:
        server: The hub.
        path: The path of the request.
        body: Its body.
        account: The names that the token may publish under, the user's first.

    Raises:
        NotWritableError: The repository is under another name, or the server is read-only.
    """
    path = urlsplit(path).path
    if match := _LFS_UPLOAD.fullmatch(path):  # the address is the permission
        if server.is_storage_read_only:
            raise NotWritableError
        server.lfs[match[1]] = ("", HubFile(body))
        return {}
    return _answer_account(server, path, body, account) if account else None


def _answer_account(
    server: HubServer, path: str, body: bytes, account: list[str]
) -> dict[str, Any] | None:
    if path == "/api/whoami-v2":
        orgs = [{"name": name} for name in account[1:]]
        return {"type": "user", "name": account[0], "orgs": orgs}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        return _create(server, json.loads(body), account)
    if match := _LFS_BATCH.fullmatch(path):
        return _offer_addresses(server, json.loads(body)["objects"])
    if match := _ACTION.fullmatch(path):
        repository = server.repositories["model", match[1]]
        if server.is_read_only or match[1].partition("/")[0] not in account:
            raise NotWritableError
        if match[2] == "preupload":
            return _choose_modes(json.loads(body)["files"])
        return _commit(server, repository, match[3], body)
    return None


def _create(server: HubServer, wanted: dict[str, Any], account: list[str]) -> dict[str, Any]:
    repo_id = f"{wanted.get('organization') or account[0]}/{wanted['name']}"
    if repo_id.partition("/")[0] not in account:
        raise NotWritableError
    if ("model", repo_id) not in server.repositories:
        is_private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        server.add(repo_id, {".gitattributes": b""}, is_private=is_private)
        for names in server.tokens.values():
            names.add(repo_id)
    return {"url": f"{server.uri}/{repo_id}", "id": repo_id}


def _choose_modes(files: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "files": [
            {
                "path": one["path"],
                "uploadMode": "lfs"
                if HubFile(None, one["size"]).is_lfs(one["path"])
                else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
    }


def _offer_addresses(server: HubServer, objects: list[dict[str, Any]]) -> dict[str, Any]:
    offered = [
        {**one, "actions": {"upload": {"href": f"{server.uri}/lfs-upload/{one['oid']}"}}}
        for one in objects
    ]
    return {"transfer": "basic", "objects": offered}


def _commit(server: HubServer, repository: Repository, branch: str, body: bytes) -> dict[str, Any]:
    files = dict(repository.commits[repository.branches[branch]])
    for line in body.splitlines():
        record = json.loads(line)
        value = record["value"]
        if record["key"] == "header":
            repository.messages.append(value["summary"])
        elif record["key"] == "deletedFile":
            del files[value["path"]]
        elif record["key"] == "lfsFile":
            files[value["path"]] = server.lfs[value["oid"]][1]
        elif record["key"] == "file":
            files[value["path"]] = HubFile(base64.b64decode(value["content"]))
    server.lfs.update({file.sha256: (path, file) for path, file in files.items()})
    commit = repository.commit(files, branch)
    url = f"{server.uri}/{repository.repo_id}/commit/{commit}"
    return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}
