"""Timeouts of connections to a server, with which the operating system notices a dead one."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from peon.persistence import create_engine
from peon.persistence.asynchronous import create_async_engine

OPTIONS = {
    "tcp_user_timeout": socket.TCP_USER_TIMEOUT,
    "keepalives_idle": socket.TCP_KEEPIDLE,
    "keepalives_interval": socket.TCP_KEEPINTVL,
    "keepalives_count": socket.TCP_KEEPCNT,
}
DEFAULTS = {"tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2}

Limits = dict[str, int]


def limits_of(driver: Any) -> Limits:
    connected = socket.socket(fileno=driver.fileno())
    try:
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return {name: connected.getsockopt(socket.IPPROTO_TCP, option) for name, option in OPTIONS.items()}
    finally:
        connected.detach()


def of_a_thread(url: URL) -> Limits:
    engine = create_engine(url)
    with engine.connect() as connection:
        limits = limits_of(connection.connection.driver_connection)
    engine.dispose()
    return limits


def of_a_task(url: URL) -> Limits:
    async def look() -> Limits:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            limits = limits_of((await connection.get_raw_connection()).driver_connection)
        await engine.dispose()
        return limits

    return asyncio.run(look())


@pytest.fixture(params=[of_a_thread, of_a_task])
def limits(request: pytest.FixtureRequest) -> Callable[[URL], Limits]:
    return request.param  # type: ignore[no-any-return]


def test_each_connection_has_the_limits_of_peon(postgresql_server: URL, limits: Callable[[URL], Limits]) -> None:
    assert limits(postgresql_server) == DEFAULTS


def test_limits_in_the_address_take_precedence(postgresql_server: URL, limits: Callable[[URL], Limits]) -> None:
    url = postgresql_server.update_query_dict({"tcp_user_timeout": "7000", "keepalives_idle": "60"})
    assert limits(url) == DEFAULTS | {"tcp_user_timeout": 7000, "keepalives_idle": 60}


@pytest.mark.parametrize("named_by", ["address", "environment"])
def test_limits_in_a_service_file_take_precedence(
    named_by: str,
    postgresql_server: URL,
    limits: Callable[[URL], Limits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "services"
    file.write_text("[tides]\ntcp_user_timeout=8000\nkeepalives_count=9\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    url = postgresql_server
    if named_by == "address":
        url = url.update_query_dict({"service": "tides"})
    else:
        monkeypatch.setenv("PGSERVICE", "tides")
    assert limits(url) == DEFAULTS | {"tcp_user_timeout": 8000, "keepalives_count": 9}


def test_connecting_ends_after_a_timeout_that_can_be_set(
    postgresql_server: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timeout_of(url: URL) -> object:
        engine = create_engine(url)
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            given = driver.info.get_parameters()
        engine.dispose()
        return given["connect_timeout"]

    assert timeout_of(postgresql_server) == "10"
    assert timeout_of(postgresql_server.update_query_dict({"connect_timeout": "7"})) == "7"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "8")
    assert timeout_of(postgresql_server) == "8"
