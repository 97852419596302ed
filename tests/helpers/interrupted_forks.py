"""Prints after how many of a hundred forks, each met by a signal, another thread finds a lock of SQLite held.

Run it as a program: its signal handler raises, and it ends its children at once.
"""

import os
import random
import signal
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from peon.persistence.backends.sqlite_driver import GatedConnection
from peon.persistence.runtime import forking

FORKS = 100


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def is_free(connection: GatedConnection) -> bool:
    for lock in (forking._registering, connection.fork_lock):
        if not lock.acquire(timeout=0.5):
            return False
        lock.release()
    return True


def main() -> None:
    connection = sqlite3.connect(":memory:", factory=GatedConnection)
    began = time.perf_counter()
    fork()
    length = time.perf_counter() - began
    os.wait()
    signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = lambda _: None  # an interrupt at the end of a fork is only reported
    locked = 0
    with ThreadPoolExecutor(1) as other:
        for _ in range(FORKS):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, length))
                fork()
                signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            with suppress(ChildProcessError):
                os.wait()
            if not other.submit(is_free, connection).result():
                locked += 1
                break  # the others would find the same lock
    sys.stdout.write(f"{locked}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
