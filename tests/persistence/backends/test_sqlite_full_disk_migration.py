"""A migration on a disk without room for the copy that it makes first."""

from contextlib import suppress
from pathlib import Path

import pytest
from helpers.migrated_databases import names_in, thaw
from helpers.unavailable_databases import assert_sound, sqlite, unavailable

from peon.persistence import Database


# Room for the files that SQLite has beside a database that is open, and for the beginning of the copy.
@pytest.mark.parametrize("room", [49_152, 65_536])
def test_a_copy_that_does_not_fit_is_removed(small_disk: Path, room: int) -> None:
    path = thaw("001_initial", small_disk / "peon.db")
    content = path.read_bytes()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - room)

    with unavailable(sqlite(path), "the disk "):
        Database.open(url=sqlite(path), maintain_projections=False)

    assert [name for name in names_in(small_disk) if "backup" in name] == []
    filler.unlink()
    assert_sound(path)
    assert path.read_bytes() == content
    Database.open(url=sqlite(path), maintain_projections=False).close()
    with Database.open(url=sqlite(path), maintain_projections=False) as database:
        assert database.events.last_sequence() > 0
    assert_sound(path)
