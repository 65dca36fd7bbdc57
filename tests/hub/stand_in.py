"""A stand-in for the Hub on 127.0.0.1: enough of its answers for the real clients to push, pull, or be refused.

It is not the Hub: what it answers was read off the clients' source and off what they send and accept.
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

# In the form of the real ones, so that whoever looks for tokens finds them.
WRITER = "hf_" + "Writer" * 5 + "1234"
READER = "hf_" + "Reader" * 5 + "1234"
STRANGER = "hf_" + "Strang" * 5 + "1234"
FREE = "hf_" + "Gratis" * 5 + "1234"


@dataclass
class Fault:
    """What is to go wrong, once or more often.

    Attributes:
        where: part of "METHOD /path" of the requests that it befalls.
        what: a status to answer with, `hang` (no answer), `reset` (the connection breaks before anything is done),
            or `lost` (it breaks behind what was done, so that the answer is lost).
        times: how many of these requests.
        words: what the Hub says of it.
        headers: further ones, such as Retry-After.
    """

    where: str
    what: int | Literal["hang", "reset", "lost"]
    times: int = 10**9
    words: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StandIn:
    """What it serves, and what it was asked.

    Attributes:
        repositories: ("models", "datasets" or "spaces", "owner/name") -> what to serve; any other name is not found.
        accounts: token -> whose it is.
        faults: what is to go wrong.
        hangs: accept every question and answer none.
        asked: method and path of each question.
        tokens: the tokens that came with them.
        at: is called with the number of a question and whether it has been answered (0: it has just come; 1: what it
            asks for has been done, and the answer is about to be sent).
        xet: the folder of a storage for the clients' Xet path; None: large files go the older way.
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

    def fault(self, question: str) -> Fault | None:
        """What is to befall a question; each is used up as often as it says."""
        with self.lock:
            for fault in self.faults:
                if fault.where in question and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def model(self, name: str) -> Repository:
        """A model by its name."""
        return self.repositories["models", name]


def with_accounts() -> StandIn:
    """One that knows alice, by a token to write and one to read, bob, and carol, who pays nothing."""
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
