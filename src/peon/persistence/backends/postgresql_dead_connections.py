"""Notices connections to a server that are dead although no side has closed them, as after a failed network.

Without these limits, TCP sends again for about 15 minutes, and asks a silent peer for the first time after two hours.
"""

import os
import socket
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_SECONDS = 10
"""For one host of the address. The driver's own limit is 130 seconds, which a caller takes for a hang."""

UNACKNOWLEDGED_MS = 10_000
"""How long sent data may remain without an acknowledgement: longer than the usual short failures of a network."""

# The parameters of libpq, the names of the socket's options, and their values. An idle connection is asked after five
# seconds, and is dead after about as long without an acknowledgement as one with sent data.
_OPTIONS = (
    ("tcp_user_timeout", ("TCP_USER_TIMEOUT",), UNACKNOWLEDGED_MS),
    ("keepalives_idle", ("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 5),  # macOS has the second name
    ("keepalives_interval", ("TCP_KEEPINTVL",), 5),
    ("keepalives_count", ("TCP_KEEPCNT",), 2),
)


def connect_timeout(url: URL) -> dict[str, Any]:
    """Returns the argument of the driver that limits connecting, unless address or environment set a limit."""
    if "connect_timeout" in url.query or "PGCONNECT_TIMEOUT" in os.environ:
        return {}
    return {"connect_timeout": CONNECT_TIMEOUT_SECONDS}


def set_limits(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    """Sets each limit of the connection that neither its address nor the service file of libpq sets.

    On the socket, after connecting: only libpq knows what a service file says.
    """
    given = connection.info.get_parameters()
    connected = socket.socket(fileno=connection.fileno())
    try:
        if connected.family not in (socket.AF_INET, socket.AF_INET6):
            return
        for parameter, names, value in _OPTIONS:
            if parameter in given:
                continue
            for name in names:
                if hasattr(socket, name):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                    break
    finally:
        connected.detach()  # the driver closes it
