"""Ports for servers that other processes start."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port on which a server can listen, and that the system gives to nobody else until the end of the block.

    A port that was merely free when it was chosen may be taken by another test, or by any connection, before the server
    has started, which takes seconds. This one stays bound, by a socket that does not listen: a server that sets
    SO_REUSEADDR can listen beside it, as those of torch, uvicorn and gradio do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
