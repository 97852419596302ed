"""Invalid addresses are refused, without showing the password."""

from pathlib import Path
from typing import Any

import pytest
from helpers.secret import SECRET, assert_secret_is_kept
from helpers.unavailable_databases import files

from peon.persistence import (
    Database,
    PersistenceError,
    create_engine,
)

INVALID_ADDRESSES = {
    "nothing": "",
    "a word": "peon",
    "a path": f"/home/ada/{SECRET}/peon.db",
    "no slashes": f"postgresql+psycopg:ada:{SECRET}@127.0.0.1/peon",
    "SQLite with two slashes": "sqlite://peon.db",
    "SQLite on a host": f"sqlite://ada:{SECRET}@127.0.0.1/peon.db",
    "port that is a word": f"postgresql+psycopg://ada:{SECRET}@127.0.0.1:port/peon",
    "password that is taken for a port": f"postgresql+psycopg://127.0.0.1:{SECRET}/peon",
    "several hosts with ports": f"postgresql+psycopg://ada:{SECRET}@db1:5432,db2:5432/peon",
    "another backend": f"mysql+pymysql://ada:{SECRET}@127.0.0.1/peon",
    "backend that does not exist": f"nonsense://ada:{SECRET}@127.0.0.1/peon",
    "driver that does not exist": f"postgresql+nonsense://ada:{SECRET}@127.0.0.1/peon",
    "driver of SQLite that does not exist": "sqlite+nonsense:///peon.db",
    "not even text": 5,
}


@pytest.mark.parametrize("address", INVALID_ADDRESSES.values(), ids=INVALID_ADDRESSES)
def test_the_error_for_an_invalid_address_hides_the_password(
    address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Database.open(url=address, maintain_projections=False), lambda: create_engine(address)):
        with pytest.raises(PersistenceError) as caught:
            use()
        assert_secret_is_kept(caught.value)
        if not caught.value.__cause__:
            assert caught.value.__suppress_context__ or caught.value.__context__ is None

    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("address", "saying"),
    [
        (f"mysql+pymysql://ada:{SECRET}@127.0.0.1/peon", "mysql; only sqlite and postgresql are supported"),
        ("peon", "not one of SQLAlchemy: give sqlite:///… or postgresql+psycopg://…"),
        ("postgresql+psycopg://ada@db1:5432,db2:5432/peon", "?host=first:5432&host=second:5432"),
        ("postgresql+psycopg://db1:5432,db2/peon", "?host=first:5432&host=second:5432"),
        ("postgresql+psycopg://a,a@db1:port/peon", "not one of SQLAlchemy"),
        ("postgresql+nonsense://127.0.0.1/peon", "asks for nonsense; give postgresql+psycopg"),
    ],
)
def test_the_error_for_an_invalid_address_names_the_remedy(address: str, saying: str) -> None:
    with pytest.raises(PersistenceError) as caught:
        Database.open(url=address, maintain_projections=False)

    assert saying in str(caught.value)


def test_hosts_without_ports_may_be_listed() -> None:
    assert create_engine("postgresql+psycopg://ada@db1,db2/peon").url.host == "db1,db2"
