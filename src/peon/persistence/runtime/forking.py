"""The one fork handler: what must be replaced in a forked child process registers itself here.

A forked child has a copy of every lock, but only the thread that called `fork`. A lock that another thread held is
never released there, and a database connection must not be used by two processes
(https://sqlite.org/howtocorrupt.html, section 2.6).
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

OwnerT = TypeVar("OwnerT")

_resets: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()
_inherited: list[object] = []


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


def _reset_all() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reset_all)
