"""Wakes the subscriptions of this process: at once for its own appends, soon for those of other processes."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from threading import RLock
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy import Engine, Pool, event

from peon.persistence.backends.address import is_memory
from peon.persistence.runtime.forking import keep_inherited, reset_after_fork
from peon.persistence.subscriptions.watcher import Watcher

Wake = Callable[[], object]


class Notifier:
    """The subscriptions of this process to one database.

    While there are any, a `Watcher` looks for commits of other connections. A database in memory has no others.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._reset()
        reset_after_fork(self, Notifier._reset_in_child)

    def _reset_in_child(self) -> None:
        """The watcher and the waiting subscriptions belong to threads of the parent process."""
        keep_inherited(self._watcher)
        self._reset()

    def _reset(self) -> None:
        self._lock = RLock()  # reentrant: a finalizer may call `leave` while this thread holds it
        self._wakes: dict[int, Wake] = {}
        self._watcher: Watcher | None = None

    def announce(self) -> None:
        """Wakes the waiting subscriptions."""
        if self._wakes:
            for wake in [*self._wakes.values()]:
                with suppress(RuntimeError):  # its event loop is closed
                    wake()

    def listen(self, engine: Engine, wake: Wake) -> int:
        """Calls `wake`, from any thread, when events may have been stored; it must not block.

        Returns:
            The number to give to `leave`.
        """
        with self._lock:
            number = next(self._numbers)
            self._wakes[number] = wake
            if self._watcher is None and not is_memory(engine.url):
                self._watcher = Watcher(engine, self.announce)
            return number

    def is_listening(self, number: int | None) -> bool:
        """Returns whether `wake` will be called; in a forked child it must listen again."""
        return number in self._wakes

    def leave(self, number: int) -> Watcher | None:
        """Ends the calls. Returns the watcher if it was told to stop, because no other subscription listens."""
        with self._lock:
            self._wakes.pop(number, None)
            watcher = None
            if not self._wakes:
                watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
        return watcher


class _Notifiers:
    """All notifiers of this process: one a database."""

    def __init__(self) -> None:
        self._by_address: WeakValueDictionary[str, Notifier] = WeakValueDictionary()
        self._in_memory: WeakKeyDictionary[Pool, Notifier] = WeakKeyDictionary()
        self._reset()
        reset_after_fork(self, _Notifiers._reset)

    def _reset(self) -> None:
        self._lock = RLock()

    def of(self, engine: Engine) -> Notifier:
        if is_memory(engine.url):
            with self._lock:
                notifier = self._in_memory.get(engine.pool)
                if notifier is None:
                    notifier = Notifier()
                    # SQLAlchemy calls it before the commit, but a subscription has to wait for the only connection.
                    event.listen(engine, "commit", _announcing(notifier))
                    self._in_memory[engine.pool] = notifier  # last: an interrupt must not leave one that hears nothing
                return notifier
        address = engine.url.set(drivername=engine.url.get_backend_name()).render_as_string(hide_password=False)
        with self._lock:
            return self._by_address.setdefault(address, Notifier())


def _announcing(notifier: Notifier) -> Callable[[object], None]:
    return lambda _: notifier.announce()


_notifiers = _Notifiers()


def notifier_of(engine: Engine) -> Notifier:
    """Returns the notifier of the engine's database, which all engines of that database share."""
    return _notifiers.of(engine)
