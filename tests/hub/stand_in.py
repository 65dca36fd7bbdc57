"""A stand-in for the Hub on 127.0.0.1: enough of its API for the real clients to push, pull, or be refused.

It is not the Hub: its answers were derived from the clients' source, and from what they send and accept.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tests.hub.answers import Answers
from tests.hub.contents import Account, Repository

# In the form of real tokens, so that a search for tokens finds them.
WRITER = "hf_" + "Writer" * 5 + "1234"
READER = "hf_" + "Reader" * 5 + "1234"
STRANGER = "hf_" + "Strang" * 5 + "1234"
FREE = "hf_" + "Gratis" * 5 + "1234"


@dataclass
class Fault:
    """A scripted fault.

    Attributes:
        where: part of "METHOD /path" of the requests that fail.
        what: a status to answer with, `hang` (no answer), `reset` (the connection breaks before the request is
            handled), or `lost` (it breaks after that, so that the answer is lost).
        times: how many of these requests fail.
        words: the Hub's message.
        headers: further headers, such as Retry-After.
    """

    where: str
    what: int | Literal["hang", "reset", "lost"]
    times: int = 10**9
    words: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StandIn:
    """Its content, and the requests it has received.

    Attributes:
        repositories: ("models", "datasets" or "spaces", "owner/name") -> repository; any other name is not found.
        accounts: token -> account.
        faults: scripted faults.
        hangs: accept every request and answer none.
        asked: method and path of each request.
        tokens: the tokens of the requests.
        at: is called twice for a request, with its number and 0 when it arrives, with its number and 1 when it has
            been handled and the answer is about to be sent.
        xet: the folder of a storage for the clients' Xet protocol; None: large files are uploaded by LFS.
    """

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    at: Callable[[int, int], None] | None = None
    xet: Path | None = None
    endpoint: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, request: str) -> Fault | None:
        """The fault of a request, if there is one."""
        with self.lock:
            for fault in self.faults:
                if fault.where in request and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def model(self, name: str) -> Repository:
        """A model by its name."""
        return self.repositories["models", name]


def with_accounts() -> StandIn:
    """With accounts of alice (a token to write and one to read), bob, and carol, who does not pay."""
    accounts = {
        WRITER: Account("alice", organizations={"press": "write", "club": "read"}),
        READER: Account("alice", role="read"),
        STRANGER: Account("bob"),
        FREE: Account("carol", pays=False),
    }
    return StandIn(accounts=accounts)


@contextmanager
def served(hub: StandIn) -> Iterator[StandIn]:
    """Serve it on a free port; `hub.endpoint` is its address."""
    handler = type("Handler", (Answers,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
