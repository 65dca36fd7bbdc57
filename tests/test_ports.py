"""Ports that tests hold for servers of other processes."""

import errno
import socket

import pytest
from torch._C._distributed_c10d import TCPStore

from tests.ports import held_port


def test_a_port_is_held_until_its_server_listens() -> None:
    """As does that of the first of several processes: another one can no longer take the port before it."""
    with held_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
            other.bind(("127.0.0.1", port))
        assert caught.value.errno == errno.EADDRINUSE
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        store = TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("here", "yes")
        assert (store.port, store.get("here")) == (port, b"yes")


def test_the_port_of_a_server_that_has_ended_is_still_held() -> None:
    """Runs that follow each other in the same processes connect anew, each time by this port."""
    with held_port() as port:
        for _ in range(2):
            store = TCPStore("127.0.0.1", port, 1, is_master=True)
            del store
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
