"""The content of the stand-in for the Hub, in memory: accounts, and repositories as lists of commits."""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# What the Hub's own .gitattributes sends to large-file storage.
LARGE = (".safetensors", ".bin", ".parquet", ".arrow", ".pt", ".npz")
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass(frozen=True)
class Account:
    """The account of a token.

    Attributes:
        name: of the user.
        role: of the token: write, read, or fineGrained, which may write where `scopes` says.
        organizations: name -> role in it.
        pays: may have Spaces that run code.
        scopes: of a fine-grained token: names of users or organizations it may write to.
    """

    name: str
    role: str = "write"
    organizations: dict[str, str] = field(default_factory=dict)
    pays: bool = True
    scopes: tuple[str, ...] = ()

    def may_read(self, owner: str) -> bool:
        """Whether it may read private repositories of an owner."""
        return owner == self.name or owner in self.organizations or owner in self.scopes

    def may_write(self, owner: str) -> bool:
        """Whether it may write to repositories of an owner."""
        if self.role == "fineGrained":
            return owner in self.scopes
        within = owner == self.name or self.organizations.get(owner) in ("admin", "write", "contributor")
        return self.role == "write" and within

    def described(self) -> dict[str, object]:
        """The answer to `whoami`."""
        token: dict[str, object] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": name}, "permissions": ["repo.write"]} for name in self.scopes]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        organizations = [{"name": name, "roleInOrg": role} for name, role in self.organizations.items()]
        access = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": self.name, "isPro": self.pays, "orgs": organizations, "auth": access}


@dataclass(frozen=True)
class Elsewhere:
    """A large file whose content is in the storage of the clients' Xet protocol.

    Attributes:
        sha256: of its content.
        size: in bytes.
        hash: its name in that storage.
    """

    sha256: str
    size: int
    hash: str


@dataclass(frozen=True)
class Stored:
    """A file of a commit."""

    content: bytes
    large: bool = False
    elsewhere: Elsewhere | None = None

    @property
    def oid(self) -> str:
        """The name of its content in git; of a large file that of its pointer."""
        content = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 (git's own)

    @property
    def size(self) -> int:
        return self.elsewhere.size if self.elsewhere else len(self.content)

    @property
    def sha256(self) -> str:
        return self.elsewhere.sha256 if self.elsewhere else hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {self.size}")
        return "\n".join([*lines, ""]).encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def entry(self, path: str) -> dict[str, object]:
        """The file in a listing."""
        shown: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.large:
            shown["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        if self.elsewhere:
            shown["xetHash"] = self.elsewhere.hash
        return shown


Files = dict[str, Stored]


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time, and the message of the commit."""

    oid: str
    files: Files
    message: str


class Repository:
    """A model, data set or Space.

    Args:
        folder: files of its first commit; without it the Hub's own first file alone.
        private: is shown to its owner only.
        gated: is refused to everyone.
    """

    def __init__(self, folder: Path | None = None, *, private: bool = False, gated: bool = False) -> None:
        self.private, self.gated = private, gated
        self.sdk: str | None = None
        self.secrets: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        self.hardware = "cpu-basic"
        self.tags: dict[str, str] = {}
        self._numbers = itertools.count()
        content = {path: Stored(data) for path, data in FIRST_FILES.items()}
        if folder is not None:
            content = {path: Stored(data, is_large(path)) for path, data in _read(folder).items()}
        self.commits = [self._commit(content, "initial commit")]

    @property
    def head(self) -> Commit:
        """The newest commit of the only branch, `main`."""
        return self.commits[-1]

    @property
    def commit(self) -> str:
        """The name of the newest commit."""
        return self.head.oid

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a hash (or its start) stands for."""
        wanted = self.commit if revision == "main" else self.tags.get(revision, revision)
        matching = [commit for commit in self.commits if len(wanted) >= 7 and commit.oid.startswith(wanted)]
        return matching[0] if matching else None

    def add(self, files: Files, message: str) -> Commit:
        """A new commit with these files."""
        self.commits.append(self._commit(dict(files), message))
        return self.head

    def texts(self, commit: Commit | None = None) -> dict[str, bytes]:
        """Path -> content, of the newest commit or of the given one."""
        return {path: stored.content for path, stored in sorted((commit or self.head).files.items())}

    def _commit(self, files: Files, message: str) -> Commit:
        names = "".join(f"{path} {stored.oid}\n" for path, stored in sorted(files.items()))
        unique = f"{next(self._numbers)}\n{message}\n{names}"
        return Commit(hashlib.sha1(unique.encode()).hexdigest(), files, message)  # noqa: S324 (git's own)


def is_large(path: str) -> bool:
    """Whether a file goes to large-file storage."""
    return path.endswith(LARGE)


def listing(files: Files, folder: str, *, recursive: bool) -> list[dict[str, object]]:
    """Files and folders in a folder and, if recursive, in the folders below."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: stored for path, stored in files.items() if path.startswith(prefix)}
    parents = {parent.as_posix() for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
    folders: list[dict[str, object]] = [
        {"type": "directory", "path": path, "size": 0, "oid": Stored(path.encode()).oid}
        for path in sorted(parents)
        if path.startswith(prefix)
    ]
    entries = [*folders, *(stored.entry(path) for path, stored in sorted(inside.items()))]
    return [entry for entry in entries if recursive or "/" not in str(entry["path"]).removeprefix(prefix)]


def _read(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def cache_by_hand(hub_cache: Path, name: str, folder: Path, commit: str = "b" * 40) -> None:
    """Put a model into a Hub cache as a download would."""
    home = hub_cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)
    for path in folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
