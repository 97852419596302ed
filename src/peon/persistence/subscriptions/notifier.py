"""Wakes those that wait for new events, at once in this process, and soon for what other processes store."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from threading import RLock
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from sqlalchemy import Engine, Pool, event

from peon.persistence.backends.engine import is_memory
from peon.persistence.subscriptions.watcher import Watcher

Wake = Callable[[], object]

_all: WeakSet["Arrivals"] = WeakSet()
_by_address: WeakValueDictionary[str, "Arrivals"] = WeakValueDictionary()
_in_memory: WeakKeyDictionary[Pool, "Arrivals"] = WeakKeyDictionary()
_lock = RLock()
_inherited: list[object] = []


class Arrivals:
    """The subscriptions of this process to one database.

    While there are any, a `Watcher` looks for what others commit. A database in memory has no others.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self.start_anew()
        _all.add(self)

    def start_anew(self) -> None:
        """Forgets the watcher, and those that wait: in a forked child their threads are not there."""
        self._lock = RLock()  # a finalizer may come here from inside
        self._wakes: dict[int, Wake] = {}
        self._watcher: Watcher | None = None

    def announce(self) -> None:
        """Wakes those that wait."""
        if self._wakes:
            for wake in [*self._wakes.values()]:
                with suppress(RuntimeError):  # an event loop that is closed
                    wake()

    def listen(self, engine: Engine, wake: Wake) -> int:
        """Calls `wake`, from any thread, when events may have come; it must not block.

        Returns:
            What `leave` takes.
        """
        with self._lock:
            number = next(self._numbers)
            self._wakes[number] = wake
            if self._watcher is None and not is_memory(engine.url):
                self._watcher = Watcher(engine, self.announce)
            return number

    def is_listening(self, number: int | None) -> bool:
        """Returns whether `wake` will be called; not in a forked child, where it has to listen anew."""
        return number in self._wakes

    def leave(self, number: int) -> Watcher | None:
        """Returns the watcher if nobody else listens: it was told to stop, and soon ends."""
        with self._lock:
            self._wakes.pop(number, None)
            watcher = None
            if not self._wakes:
                watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        return watcher


def arrivals_of(engine: Engine) -> Arrivals:
    """Returns those of the engine's database: the same for each engine of one database."""
    if is_memory(engine.url):
        with _lock:
            arrivals = _in_memory.get(engine.pool)
            if arrivals is None:
                arrivals = _in_memory[engine.pool] = Arrivals()
                # It is called before the commit; but whoever is woken has to wait for the only connection.
                event.listen(engine, "commit", _announcing(arrivals))
            return arrivals
    address = engine.url.set(drivername=engine.url.get_backend_name()).render_as_string(hide_password=False)
    with _lock:
        return _by_address.setdefault(address, Arrivals())


def _announcing(arrivals: Arrivals) -> Callable[[object], None]:
    return lambda _: arrivals.announce()


def _start_anew() -> None:
    global _lock
    _lock = RLock()
    for arrivals in _all:
        _inherited.append(arrivals._watcher)
        arrivals.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
