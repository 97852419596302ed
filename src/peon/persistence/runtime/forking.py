"""The one fork handler: what a fork has to wait for, and what must be replaced in a child process, registers here.

A forked child has a copy of every lock, but only the thread that called `fork`. A lock that another thread held is
never released there, and a database connection must not be used by two processes
(https://sqlite.org/howtocorrupt.html, section 2.6).
"""

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from threading import RLock, get_ident
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

OwnerT = TypeVar("OwnerT")

FORK_WAIT_SECONDS = 5.0
"""The longest wait of a fork for the calls of other threads: longer than a statement or a commit usually takes."""


class Gated(Protocol):
    """What must not be in the middle of a call when the process forks.

    Attributes:
        fork_lock: Is held during each call; set by `gate`.
    """

    fork_lock: RLock


_resets: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()
_inherited: list[object] = []
_gated: WeakSet[Any] = WeakSet()
_registering: RLock = RLock()
_held: dict[int, list[RLock]] = {}
"""The locks that a thread holds while it forks."""
_reset_in = os.getpid()
"""The process whose resets are done."""


def reset_after_fork(owner: OwnerT, reset: Callable[[OwnerT], object]) -> None:
    """Calls `reset(owner)` in every forked child in which `owner` is still alive, in the order of registration.

    Args:
        owner: Is kept by a weak reference.
        reset: Must not refer to `owner`, and must not wait for anything.
    """
    _resets[owner] = reset


def keep_inherited(value: object) -> None:
    """Keeps an object of the parent process alive in a child, unused.

    Closing a connection in the child would end locks of the child's own, or the parent's session on a server.
    """
    _inherited.append(value)


def gate(owner: Gated) -> None:
    """Gives `owner` its `fork_lock`. A fork waits, for up to `FORK_WAIT_SECONDS`, until no other thread holds it.

    A library in C may hold locks of its own during a call, which no Python code can see.

    Args:
        owner: Is kept by a weak reference.
    """
    owner.fork_lock = RLock()  # reentrant: a call may run Python code that makes another, or forks
    with _registering:
        _gated.add(owner)


class _ChildIsReady:
    """Lets the parent wait until the child has done its resets, for up to `FORK_WAIT_SECONDS`.

    A reset may acquire locks of a file, which a parent that closes the file at once must find.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def announce(self) -> None:
        self.close()  # the parent reads the end of the pipe

    def wait(self) -> None:
        os.close(self._writing)
        self._writing = -1
        ready = select.poll()  # `select.select` fails for descriptors above 1,023
        ready.register(self._reading)
        ready.poll(FORK_WAIT_SECONDS * 1000)
        self.close()

    def close(self) -> None:
        descriptors = self._reading, self._writing
        self._reading = self._writing = -1
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


_children: dict[int, _ChildIsReady] = {}
"""By the thread that forks."""


def _before() -> None:
    deadline = time.monotonic() + FORK_WAIT_SECONDS
    # Noted before it is acquired: a signal handler may raise in between, and the fork takes place nevertheless.
    held = _held[get_ident()] = [_registering]
    _registering.acquire(timeout=FORK_WAIT_SECONDS)  # no other thread can register until the fork is over
    for owner in list(_gated):
        lock = owner.fork_lock
        held.append(lock)
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held.pop()
    if _resets:
        with suppress(OSError):  # no descriptor is left: the fork has to do without
            _children[get_ident()] = _ChildIsReady()


def _after_in_parent() -> None:
    try:
        child = _children.pop(get_ident(), None)
        if child is not None:
            child.wait()
    finally:
        _release(_held.get(get_ident(), []))
        _held.pop(get_ident(), None)


def _release(held: list[RLock]) -> None:
    try:
        _release_each(held)  # a function of its own: see ThreadWriter
    finally:
        if held:  # a signal handler has raised
            _release(held)


def _release_each(held: list[RLock]) -> None:
    while held:
        with suppress(RuntimeError):  # it was not acquired
            held[-1].release()
        held.pop()


def _after_in_child() -> None:
    global _registering, _reset_in
    if _reset_in == os.getpid():
        return
    _registering = RLock()
    _held.clear()
    for owner in list(_gated):
        owner.fork_lock = RLock()
    for owner, reset in list(_resets.items()):
        reset(owner)
    for child in _children.values():
        child.announce()
    _children.clear()
    _reset_in = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    # Twice: a signal that arrives during the fork is handled where the first one begins, and may end it there.
    os.register_at_fork(after_in_parent=_after_in_parent, after_in_child=_after_in_child)
