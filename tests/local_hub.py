"""A small double of the Hub on 127.0.0.1: enough of its answers for the real clients to load, or to be refused."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

HANGS_SECONDS = 30
REFUSALS = {
    "GatedRepo": (403, "Access to it is restricted and you are not in the authorized list."),
    "RepoNotFound": (404, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
}


@dataclass
class Repository:
    """A model or data set that the double serves, in one commit on `main`."""

    folder: Path
    commit: str = "a" * 40

    def files(self) -> dict[str, bytes]:
        """All files with their contents."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


@dataclass
class LocalHub:
    """What the double serves, and what it was asked.

    Attributes:
        repositories: ("models" or "datasets", "owner/name") -> what to serve; any other name is not found.
        gated: names that are refused to everyone.
        hangs: accept every question and answer none.
        asked: method and path of each question.
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def local_hub(hub: LocalHub) -> Iterator[LocalHub]:
    """Serve `hub` on a free port; `hub.endpoint` is its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.hub.hangs:
            time.sleep(HANGS_SECONDS)
            self.close_connection = True
            return
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            self._about(parts[1], "/".join(parts[2:4]), parts[4:], body)
        else:
            kind = parts.pop(0) if parts[0] in ("datasets", "spaces") else "models"
            self._file(kind, "/".join(parts[:2]), parts[2:])

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get((kind, name))
        if name in self.hub.gated:
            self._refuse("GatedRepo")
        elif found is None:
            self._refuse("RepoNotFound")
        elif revision not in ("main", found.commit):
            self._refuse("RevisionNotFound")
        else:
            return found
        return None

    def _about(self, kind: str, name: str, rest: list[str], body: str) -> None:
        """`/api/KIND/OWNER/NAME[/revision/REV | /tree/REV[/PATH] | /paths-info/REV]`."""
        found = self._repository(kind, name, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        entries = [_entry(path, content) for path, content in found.files().items()]
        what = rest[0] if rest else "revision"
        if what == "revision":
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            about = {"id": name, "sha": found.commit, "private": False, "gated": False, "tags": [], "downloads": 0}
            self._send(json.dumps({**about, "likes": 0, "siblings": siblings}).encode())
        elif what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            inside = _listing(found.files(), "/".join(rest[2:]), recursive)
            self._send(json.dumps(inside).encode()) if inside else self._refuse("EntryNotFound")
        elif what == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            self._send(json.dumps([entry for entry in entries if entry["path"] in asked]).encode())
        else:
            self._refuse("EntryNotFound")

    def _file(self, kind: str, name: str, rest: list[str]) -> None:
        """`/[datasets/]OWNER/NAME/resolve/REV/PATH`."""
        found = self._repository(kind, name, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        content = found.files().get("/".join(rest[2:]))
        if rest[:1] != ["resolve"] or content is None:
            self._refuse("EntryNotFound", {"X-Repo-Commit": found.commit})
        else:
            self._send(content, {"X-Repo-Commit": found.commit, "ETag": f'"{_digest(content)}"'})

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        status, words = REFUSALS[code]
        self._send(json.dumps({"error": words}).encode(), {"X-Error-Code": code, **(headers or {})}, status)

    def _send(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()  # noqa: S324 (the Hub's own kind of identity)


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}


def _listing(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """Files and folders below a folder, or right inside it."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    parents = {parent.as_posix() for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
    folders: list[dict[str, object]] = [
        {"type": "directory", "path": path, "size": 0, "oid": _digest(path.encode())}
        for path in sorted(parents)
        if path.startswith(prefix)
    ]
    found = [*folders, *(_entry(path, content) for path, content in inside.items())]
    return [entry for entry in found if recursive or "/" not in str(entry["path"]).removeprefix(prefix)]


def cache_by_hand(hub_cache: Path, name: str, folder: Path, commit: str = "b" * 40) -> None:
    """Lay a model into a Hub cache as an earlier download would have."""
    home = hub_cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)
    for path in folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
