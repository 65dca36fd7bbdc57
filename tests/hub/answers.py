"""How the stand-in answers requests: accounts, scripted faults, and the routes of the Hub."""

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub import storage, writing
from tests.hub.contents import Account, Repository, Stored, listing
from tests.hub.refusals import RefusedError, refuse

if TYPE_CHECKING:
    from tests.hub.stand_in import Fault, StandIn

HANGS_SECONDS = 30
KINDS = ("models", "datasets", "spaces")


class Answers(BaseHTTPRequestHandler):
    """One request to `hub`."""

    hub: "StandIn"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 (the names that the server looks for)

    def _answer(self) -> None:
        request = f"{self.command} {self.path}"
        with self.hub.lock:
            self.hub.asked.append(request)
            number = len(self.hub.asked)
        self.body = self._read_body()
        if self.hub.at:
            self.hub.at(number, 0)
        fault = self.hub.fault(request)
        if self.hub.hangs or (fault and fault.what == "hang"):
            time.sleep(HANGS_SECONDS)
        if self.hub.hangs or (fault and fault.what in ("hang", "reset")):
            self.close_connection = True
            return
        status, content, headers = self._done(fault)
        if self.hub.at:
            self.hub.at(number, 1)
        if fault and fault.what == "lost":
            self.close_connection = True
            return
        self._send(status, content, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _done(self, fault: "Fault | None") -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers of the answer."""
        try:
            if fault and isinstance(fault.what, int):
                raise RefusedError(fault.what, fault.words, headers=fault.headers)
            address = urlsplit(self.path)
            self.query = parse_qs(address.query)
            content, headers = self._routed([unquote(part) for part in address.path.strip("/").split("/")])
        except RefusedError as refused:
            return refused.status, json.dumps(refused.body).encode(), refused.headers
        if isinstance(content, bytes):
            return 200, content, headers
        return 200, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}

    def _routed(self, parts: list[str]) -> tuple[Any, dict[str, str]]:
        if parts[:1] == ["api"] and len(parts) >= 4 and parts[1] in KINDS:
            return self._about(parts[1], "/".join(parts[2:4]), parts[4:])
        alone: dict[str, Callable[[], Any]] = {
            "GET api/whoami-v2": lambda: self.account().described(),
            "POST api/validate-yaml": self._validated,
            "POST api/repos/create": lambda: writing.create(self),
            "DELETE api/repos/delete": lambda: writing.delete(self),
        }
        if chosen := alone.get(f"{self.command} {'/'.join(parts)}"):
            return chosen(), {}
        if parts[0] == "storage":
            return writing.store(self, parts[1]), {}
        kind = parts.pop(0) if parts[0] in ("datasets", "spaces") else "models"
        if parts[1:2] and parts[1].endswith(".git"):
            return writing.storage_of(self, kind, f"{parts[0]}/{parts[1].removesuffix('.git')}", parts[2:]), {}
        return self._file(kind, "/".join(parts[:2]), parts[2:])

    def asker(self) -> Account | None:
        """The account of the request's token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.tokens |= {token} - {""}
        if token and token not in self.hub.accounts:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.accounts.get(token)

    def account(self) -> Account:
        """The same, which must exist."""
        account = self.asker()
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        return account

    def readable(self, kind: str, name: str) -> Repository:
        """A repository that the account may read."""
        asker, repository = self.asker(), self.hub.repositories.get((kind, name))
        hidden = repository is not None and repository.private and not (asker and asker.may_read(name.split("/")[0]))
        if repository is None or hidden:
            # Like the Hub, which does not reveal to strangers that a repository exists.
            raise RefusedError(404 if asker or not hidden else 401, "Repository not found", "RepoNotFound")
        if repository.gated:
            refuse("GatedRepo")
        return repository

    def writable(self, kind: str, name: str) -> Repository:
        """A repository that the account may write to."""
        repository = self.readable(kind, name)
        if not self.account().may_write(name.split("/")[0]):
            raise RefusedError(403, f"You don't have the rights to write to {name}")
        return repository

    def _about(self, kind: str, name: str, rest: list[str]) -> tuple[Any, dict[str, str]]:
        """`/api/KIND/OWNER/NAME/...`."""
        what = rest[0] if rest else "revision"
        if rest == ["auth-check", "write"]:
            return {"ok": bool(self.writable(kind, name))}, {}
        if what in writing.ROUTES and not (self.command == "GET" and what == "tag"):
            return writing.ROUTES[what](self, kind, name, rest[1:]), {}
        if what in ("xet-write-token", "xet-read-token"):
            return storage.pass_to(self, kind, name, writes=what == "xet-write-token")
        repository = self.readable(kind, name)
        if what == "auth-check":
            return {"ok": True}, {}
        if what == "refs":
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repository.tags.items()
            ]
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commit}
            return {"branches": [branch], "tags": tags, "converts": []}, {}
        commit = repository.at(rest[1] if len(rest) > 1 else "main") or refuse("RevisionNotFound")
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            about = {"id": name, "sha": commit.oid, "private": repository.private, "gated": False, "tags": []}
            card = _front_matter(commit.files.get("README.md"))
            return {**about, "downloads": 0, "likes": 0, "cardData": card, "siblings": siblings}, {}
        if what == "tree":
            recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
            inside = listing(commit.files, "/".join(rest[2:]), recursive=recursive)
            return (inside or refuse("EntryNotFound")), {}
        if what == "paths-info":
            text = self.body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            return [stored.entry(path) for path, stored in sorted(commit.files.items()) if path in asked], {}
        return refuse("EntryNotFound"), {}

    def _file(self, kind: str, name: str, rest: list[str]) -> tuple[bytes, dict[str, str]]:
        """`/[datasets/]OWNER/NAME/resolve/REV/PATH`."""
        repository = self.readable(kind, name)
        commit = repository.at(rest[1] if len(rest) > 1 else "main") or refuse("RevisionNotFound")
        stored = commit.files.get("/".join(rest[2:]))
        if rest[:1] != ["resolve"] or stored is None:
            refuse("EntryNotFound", {"X-Repo-Commit": commit.oid})
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes"}
        if stored.large:
            headers |= {"X-Linked-Etag": f'"{stored.etag}"', "X-Linked-Size": str(stored.size)}
        if stored.elsewhere:
            route = f"{self.hub.endpoint}/api/{kind}/{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": stored.elsewhere.hash, "Link": f'<{route}>; rel="xet-auth"'}
        return stored.content, headers

    def _validated(self) -> dict[str, object]:
        """Check that the metadata of a README is YAML."""
        text = json.loads(self.body)["content"]
        try:
            yaml.safe_load(text.split("---\n")[1] if text.startswith("---\n") else "")
        except yaml.YAMLError as error:
            raise RefusedError(400, f"Invalid metadata: {error}") from error
        return {"errors": [], "warnings": []}

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if wanted and status == 200:
            first, _, last = wanted.partition("-")
            end = min(int(last or len(content) - 1), len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{end}/{len(content)}"}
            status, content = 206, content[int(first) : end + 1]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _front_matter(readme: Stored | None) -> dict[str, Any] | None:
    text = readme.content.decode() if readme else ""
    metadata = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    return metadata if isinstance(metadata, dict) else None
