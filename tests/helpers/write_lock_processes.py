"""Child processes of the tests of SQLite's write lock."""

import fcntl
import os
import sqlite3
import time
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Thread

from helpers.processes import PATIENCE
from sqlalchemy import text

from peon.persistence import create_engine


def writer_waits(path: Path) -> bool:
    """Returns whether a connection to the file has registered that it waits for the write lock."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def take_turns(barrier: Barrier, url: str, writer: int, turns: int) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        barrier.wait(PATIENCE)
        for _ in range(turns):
            with connection.begin():
                connection.execute(text("INSERT INTO turns (writer) VALUES (:writer)"), {"writer": writer})
                time.sleep(0.01)  # like a slow disk
    engine.dispose()


def wait_for_turn(url: str) -> None:
    with create_engine(url, busy_timeout=PATIENCE).begin():
        pass


def fork_while_another_thread_waits(url: str, path: str) -> str:
    """Returns whether a writer seems to wait after the thread had its turn, while the child is still alive."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = Thread(target=wait_for_turn, args=[url])
        thread.start()
        while not writer_waits(Path(path)):
            time.sleep(0.001)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.read(read, 1)
            os._exit(0)
    thread.join()
    outcome = "a writer waits" if writer_waits(Path(path)) else "no writer waits"
    os.write(write, b"-")
    os.waitpid(child, 0)
    return outcome
