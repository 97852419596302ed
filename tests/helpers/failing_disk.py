"""The switches of tests/data/failing_disk.c, and how a program is run on a disk that fails."""

import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOURCE = TESTS / "data" / "failing_disk.c"
ALWAYS = 1 << 16
EXTENDING_ONLY, SHORT_WRITES, SYNCS, SYNCS_ONLY = 1, 2, 4, 8

_SWITCHES = struct.Struct("=IIIIIIQ")
_FOLDER_BYTES = 4096


class FailingDisk:
    """Decides which writes and syncs of the files in a folder fail. No call fails before `fail` and after `heal`."""

    def __init__(self, switches: Path, folder: Path, seed: int) -> None:
        with switches.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SWITCHES.size + _FOLDER_BYTES)
        self._seed = seed * 7919 + 1
        name = os.fsencode(folder.resolve()) + b"/\0"
        self._memory[_SWITCHES.size : _SWITCHES.size + len(name)] = name
        self.heal()  # a process that was killed may have left the switches on

    def fail(self, chance: int, error: int = errno.ENOSPC, flags: int = 0, after: int = 0) -> None:
        """Lets calls fail.

        Args:
            chance: Of 65,536 calls, this many fail.
            error: Their `errno`.
            flags: `EXTENDING_ONLY`: only writes beyond the end of a file; `SHORT_WRITES`: some write half of the bytes,
                without an error; `SYNCS`: syncs fail too; `SYNCS_ONLY`: nothing else fails.
            after: This many calls succeed before the first one that fails.
        """
        self._seed += 1
        self._memory[: _SWITCHES.size] = _SWITCHES.pack(
            chance, error, flags, after, 0, 0, self._seed * 0x9E3779B97F4A7C15 % 2**64
        )

    def heal(self) -> int:
        """Lets everything work again; returns how many calls have failed."""
        failed: int = _SWITCHES.unpack(self._memory[: _SWITCHES.size])[5]
        self._memory[: _SWITCHES.size] = bytes(_SWITCHES.size)
        return failed


def create_switches(path: Path) -> Path:
    path.write_bytes(bytes(_SWITCHES.size + _FOLDER_BYTES))
    return path


def compile_shim(folder: Path) -> Path:
    """Skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    library = folder / "failing_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def run_on_failing_disk(
    shim: Path, switches: Path, module: str, *arguments: object
) -> "subprocess.CompletedProcess[str]":
    """Runs a helper module in a new process, whose exit code and output are returned."""
    environment = os.environ | {"LD_PRELOAD": str(shim), "FAILING_DISK": str(switches)}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *(path for path in sys.path if path)])
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
