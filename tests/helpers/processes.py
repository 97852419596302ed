"""Runs functions in other processes. They must be in a helper module: a child cannot import a test module."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

PATIENCE = 60
"""After this many seconds, a process is considered to hang."""

context = multiprocessing.get_context("forkserver")
# Each process then starts in milliseconds.
context.set_forkserver_preload(["peon.persistence", "alembic.command"])


def run(function: Callable[..., ResultT], *args: object) -> ResultT:
    """Runs the function in a separate process; returns its result or raises its error, or `TimeoutError`."""
    with context.Pool(1) as pool:
        return pool.apply_async(function, args).get(timeout=PATIENCE)


def exit_codes(function: Callable[..., object], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """Runs the function in one process per set of arguments, all at once; `None` stands for a process that hangs."""
    return exit_codes_of([(function, args) for args in arguments], PATIENCE)


def exit_codes_of(calls: list[tuple[Callable[..., object], tuple[Any, ...]]], patience: float) -> list[int | None]:
    """Makes each call in a separate process, all at once.

    Returns:
        The exit codes; `None` for a process that was still running after this many seconds, or when another failed.
    """
    processes = [context.Process(target=function, args=args) for function, args in calls]
    for process in processes:
        process.start()
    deadline = time.monotonic() + patience
    running = {process.sentinel for process in processes}
    try:
        while running and not any(process.exitcode for process in processes):
            if not (ended := wait(running, deadline - time.monotonic())):
                break
            running.difference_update(ended)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
