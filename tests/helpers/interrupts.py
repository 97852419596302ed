"""Interrupts at a chosen call, as by a signal handler that raises."""

import sys
from types import FrameType, TracebackType
from typing import Self

import psycopg
import sqlalchemy

import peon

PACKAGES = tuple(str(module.__path__[0]) for module in (peon, psycopg, sqlalchemy))


class Interrupt(BaseException):
    pass


class InterruptAtCall:
    """Raises at a call that this thread makes, counted from 1, of Peon, of psycopg or of SQLAlchemy.

    It spares SQLAlchemy's pool, and what the pool calls: an interrupt there may leave its lock held or lose a
    connection, which Peon cannot prevent.

    Attributes:
        raised: Whether there was such a call.
    """

    def __init__(self, call: int) -> None:
        self._left = call
        self.raised = False

    def _profile(self, frame: FrameType, kind: str, _: object) -> None:
        # Python runs signal handlers when a function begins, and after one that is written in C.
        if kind not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGES):
            return
        self._left -= 1
        if self._left <= 0 and not self.raised and not in_pool(frame):
            self.raised = True
            raise Interrupt

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        sys.setprofile(None)
        return kind is not None  # pydantic and SQLAlchemy sometimes convert an interrupt to one of their errors


def in_pool(frame: FrameType | None) -> bool:
    while frame is not None and "sqlalchemy/pool" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None
