"""Requests that change the stand-in: new repositories, and commits, which are complete or not made."""

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.hub import storage
from tests.hub.contents import Files, Repository, Stored, is_large
from tests.hub.refusals import RefusedError, refuse

if TYPE_CHECKING:
    from tests.hub.answers import Answers


def create(request: "Answers") -> dict[str, str]:
    """Create a repository; for an existing one the answer is 409 with its address."""
    asked = json.loads(request.body)
    account = request.account()
    kind = f"{asked.get('type') or 'model'}s"
    name = f"{asked.get('organization') or account.name}/{asked['name']}"
    prefix = "" if kind == "models" else f"{kind}/"
    url = f"{request.hub.endpoint}/{prefix}{name}"
    if not account.may_write(name.split("/")[0]):
        raise RefusedError(403, f"You don't have the rights to create a {kind[:-1]} under this namespace")
    if kind == "spaces" and asked["sdk"] in ("gradio", "docker") and not account.pays:
        raise RefusedError(402, "Spaces that run code need a PRO subscription")
    with request.hub.lock:
        if (kind, name) in request.hub.repositories:
            raise RefusedError(409, "You already created this repository", url=url)
        made = Repository(private=asked.get("visibility") == "private")
        made.sdk = asked.get("sdk")
        made.secrets = {row["key"]: row["value"] for row in asked.get("secrets") or []}
        made.variables = {row["key"]: row["value"] for row in asked.get("variables") or []}
        request.hub.repositories[kind, name] = made
    return {"url": url}


def delete(request: "Answers") -> dict[str, str]:
    """Remove a repository."""
    asked = json.loads(request.body)
    name = f"{asked.get('organization') or request.account().name}/{asked['name']}"
    kind = f"{asked.get('type') or 'model'}s"
    request.writable(kind, name)
    del request.hub.repositories[kind, name]
    return {}


def preupload(request: "Answers", kind: str, name: str, rest: list[str]) -> dict[str, Any]:
    """How each file should be uploaded, and the hash of the existing file of that name."""
    commit = request.writable(kind, name).at(rest[0]) or refuse("RevisionNotFound")
    rows = []
    for file in json.loads(request.body)["files"]:
        existing = commit.files.get(file["path"])
        mode = "lfs" if is_large(file["path"]) else "regular"
        row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        rows.append(row | ({"oid": existing.etag} if existing else {}))
    return {"files": rows}


def commit(request: "Answers", kind: str, name: str, rest: list[str]) -> dict[str, Any]:
    """Make a commit with all its operations, or none."""
    repository = request.writable(kind, name)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    with request.hub.lock:
        if header.get("parentCommit") not in (None, repository.commit):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head.files)
        for line in lines[1:]:
            _apply(request, files, line["key"], line["value"])
        new = repository.add(files, header["summary"])
    return {"commitOid": new.oid, "commitUrl": f"{request.hub.endpoint}/{name}/commit/{new.oid}", "success": True}


def _apply(request: "Answers", files: Files, key: str, value: dict[str, Any]) -> None:
    if key == "file":
        files[value["path"]] = Stored(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        content = request.hub.blobs.get(value["oid"])
        if content is not None:
            files[value["path"]] = Stored(content, large=True)
        elif request.hub.xet is not None:
            elsewhere = storage.find(request.hub.xet, value["oid"], value["size"])
            files[value["path"]] = Stored(b"", large=True, elsewhere=elsewhere)
        else:
            raise RefusedError(400, f"{value['path']}: no such large file has been sent")
    elif key == "deletedFile":
        if value["path"] not in files:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        del files[value["path"]]
    else:
        inside = f"{value['path'].rstrip('/')}/"
        for path in [path for path in files if path.startswith(inside)]:
            del files[path]


def storage_of(request: "Answers", kind: str, name: str, rest: list[str]) -> dict[str, Any]:
    """Where to upload the large files of a commit; `rest` is `info/lfs/objects/batch` or `.../verify`."""
    request.writable(kind, name)
    asked = json.loads(request.body)
    if rest[-1] == "verify":
        if len(request.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, "no such large file")
        return {}
    base, prefix = request.hub.endpoint, "" if kind == "models" else f"{kind}/"
    rows = []
    for file in asked["objects"]:
        row = {"oid": file["oid"], "size": file["size"]}
        if file["oid"] not in request.hub.blobs:
            verify = f"{base}/{prefix}{name}.git/info/lfs/objects/verify"
            row["actions"] = {"upload": {"href": f"{base}/storage/{file['oid']}"}, "verify": {"href": verify}}
        rows.append(row)
    return {"transfer": "basic", "objects": rows}


def store(request: "Answers", oid: str) -> dict[str, Any]:
    """Store a large file."""
    sent = Stored(request.body)
    if sent.sha256 != oid:
        raise RefusedError(400, "The content is not what its name says")
    request.hub.blobs[oid] = sent.content
    return {}


def tag(request: "Answers", kind: str, name: str, rest: list[str]) -> dict[str, Any]:
    """Tag a commit."""
    repository = request.writable(kind, name)
    tagged = repository.at(rest[0]) or refuse("RevisionNotFound")
    new = json.loads(request.body)["tag"]
    if new in repository.tags:
        raise RefusedError(409, "This tag exists")
    repository.tags[new] = tagged.oid
    return {}


def settings(request: "Answers", kind: str, name: str, _: list[str]) -> dict[str, Any]:
    """Make a repository public or private."""
    request.writable(kind, name).private = json.loads(request.body)["visibility"] == "private"
    return {}


def secrets(request: "Answers", kind: str, name: str, _: list[str]) -> Any:
    """The secrets of a Space."""
    return _pairs(request, request.writable(kind, name).secrets, shown=False)


def variables(request: "Answers", kind: str, name: str, _: list[str]) -> Any:
    """The variables of a Space."""
    return _pairs(request, request.writable(kind, name).variables, shown=True)


def _pairs(request: "Answers", pairs: dict[str, str], *, shown: bool) -> dict[str, Any]:
    if request.command != "GET":
        asked = json.loads(request.body)
        pairs.pop(asked["key"], None)
        if request.command == "POST":
            pairs[asked["key"]] = asked["value"]
    return {key: {"key": key, **({"value": value} if shown else {})} for key, value in pairs.items()}


def runtime(request: "Answers", kind: str, name: str, _: list[str]) -> dict[str, Any]:
    """The state and the hardware of a Space."""
    space = request.writable(kind, name)
    if request.command == "POST":
        space.hardware = json.loads(request.body or b"{}").get("flavor", space.hardware)
    return {"stage": "RUNNING", "hardware": {"current": space.hardware, "requested": space.hardware}}


ROUTES: dict[str, Callable[["Answers", str, str, list[str]], Any]] = {
    "preupload": preupload,
    "commit": commit,
    "tag": tag,
    "settings": settings,
    "secrets": secrets,
    "variables": variables,
    "runtime": runtime,
    "hardware": runtime,
    "sleeptime": runtime,
    "pause": runtime,
    "restart": runtime,
}
