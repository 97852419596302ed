"""A network between a client and a server that can stop without closing either connection."""

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import URL


class Network:
    """Forwards all data between clients and the server, until it is frozen.

    Attributes:
        url: The address of the server through this network.
        withheld: The number of bytes that arrived after it was frozen.
    """

    def __init__(self, url: URL) -> None:
        self._server = (url.host or "127.0.0.1", url.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._frozen = self._over = False
        self._ends: list[socket.socket] = []
        self._listening: set[socket.socket] = set()
        self._listeners_frozen = False
        self.withheld = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def freeze(self) -> None:
        self._frozen = True

    def freeze_listeners(self) -> None:
        """Freezes only the connections that have sent LISTEN, or will: their sockets stay open and are silent."""
        self._listeners_frozen = True

    def _is_frozen(self, sender: socket.socket) -> bool:
        return self._frozen or (self._listeners_frozen and sender in self._listening)

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    server = socket.create_connection(self._server)
                    self._ends += [client, server]
                    self._selector.register(client, selectors.EVENT_READ, server)
                    self._selector.register(server, selectors.EVENT_READ, client)
                elif isinstance(key.fileobj, socket.socket):
                    self._pass_on(key.fileobj, key.data)

    def _pass_on(self, sender: socket.socket, receiver: socket.socket) -> None:
        sent = sender.recv(65_536)
        if b"LISTEN" in sent:
            self._listening |= {sender, receiver}
        if self._is_frozen(sender):
            self.withheld += len(sent)
        elif sent:
            receiver.sendall(sent)
        if not sent:
            self._selector.unregister(sender)
            if not self._is_frozen(sender):
                receiver.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join()
        for end in (self._listener, *self._ends):
            end.close()
        self._selector.close()
