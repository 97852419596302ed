"""Writes and syncs fail, and the disk is full; see docs/explanation/campaigns.md."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from helpers import campaigns
from helpers.campaign_workload import attempts, check, check_sound, consume_all, failed_batches, numbers
from helpers.failing_disk import compile_shim, create_switches, run_on_failing_disk
from helpers.kill_processes import OPERATIONS

from peon.persistence import Database

FAULT_ROUNDS = campaigns.rounds(6)
STAGE_ROUNDS = campaigns.rounds(1)
PROCESSES_A_ROUND = 2

ACTIONS = f"appends, a durable subscription, settings, starts, {', '.join(OPERATIONS)}"
AFTERWARDS = """\
After each action the disk works again, and the next append must succeed without opening the database again. At the end
of a round, everything that was acknowledged is there, and what failed was not stored, unless the error said that the
outcome is unknown. `integrity_check`, `verify()` and `peon doctor` find nothing. The consumer has handled each event
once. Each backup that has its name is whole."""
FAULTS = f"""\
A small library is loaded before SQLite. It lets writes and syncs of all files in the folder of the database fail at
random, between one in two hundred and all of them, during {ACTIONS}.
They fail with EIO or ENOSPC, and some writes write only half of the bytes. The process is sometimes killed right
after a failure, and another continues. {AFTERWARDS}"""
FULL = f"""\
A small library is loaded before SQLite. It lets the disk be full after the first, second, … write of each action
({ACTIONS}), until the action has no more writes; later writes are tried less densely.
In half of the cases only writes that extend a file fail. {AFTERWARDS}"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


def perform_round(shim: Path, folder: Path, mode: str, number: int, counts: Counter[str]) -> None:
    disk = folder / "disk"
    disk.mkdir(parents=True)
    file = disk / "peon.db"
    switches = create_switches(folder / "switches")
    for process in range(PROCESSES_A_ROUND if mode == "random" else 1):
        arguments = (mode, switches, file, folder, number * PROCESSES_A_ROUND + process)
        done = run_on_failing_disk(shim, switches, "helpers.failing_disk_process", *arguments)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        counts["kills after a failure"] += done.returncode != 0
        counts.update(json.loads(done.stdout.splitlines()[-1]))
    notes = [attempt for path in sorted(folder.glob("*.notes")) for attempt in attempts(path)]
    with Database.open(url=f"sqlite:///{file}") as database:
        consume_all(database)
        assert set(numbers(database.maintenance.lost_events())) == set()
        found = check(database, notes, set(), failed=failed_batches(notes))
    counts["acknowledged events"] += found.acknowledged
    counts["events redacted"] += found.redacted
    counts["effects of the consumer"] += found.effects
    for backup in [*disk.glob("*.copy"), *disk.glob("*.backup")]:  # the latter are of migrations
        check_sound(backup)
        counts["backups checked"] += 1


@pytest.mark.slow
@pytest.mark.timeout(campaigns.PATIENCE)
def test_a_disk_that_fails_loses_nothing_acknowledged(tmp_path: Path, shim: Path) -> None:
    counts: Counter[str] = Counter()
    for number in range(FAULT_ROUNDS):
        perform_round(shim, tmp_path / str(number), "random", number, counts)
        shutil.rmtree(tmp_path / str(number))
        record("failing_disk", "Writes and syncs that fail", FAULTS, number + 1, counts)
    assert counts["calls that failed"] > FAULT_ROUNDS * 20


@pytest.mark.slow
@pytest.mark.timeout(campaigns.PATIENCE)
def test_a_full_disk_loses_nothing_acknowledged_at_any_stage(tmp_path: Path, shim: Path) -> None:
    counts: Counter[str] = Counter()
    for number in range(STAGE_ROUNDS):
        perform_round(shim, tmp_path / str(number), "full", number, counts)
        shutil.rmtree(tmp_path / str(number))
        record("full_disk", "A full disk at each stage", FULL, number + 1, counts)
    assert counts["stages"] > STAGE_ROUNDS * 20


def record(name: str, title: str, what: str, rounds: int, counts: Counter[str]) -> None:
    campaigns.record(name, title, what, rounds, {**dict(sorted((+counts).items())), "Acknowledged events lost": 0})
