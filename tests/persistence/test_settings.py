"""Any JSON value can be a setting, other values are refused, and no key is lost."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf, nan
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from helpers import processes
from helpers.event_strategies import json_values, texts
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from pydantic import BaseModel
from sqlalchemy import URL, text

from peon.config import AppConfig
from peon.orchestration import ProjectCreated
from peon.persistence import Database, SettingError, SettingsStore, StoreUnavailable, create_engine

HIDDEN = "what the user keeps to himself"


class Window(BaseModel):
    width: int
    title: str = ""


@dataclass
class Point:
    x: int


@pytest.fixture
def settings(database: Database) -> SettingsStore:
    return database.settings


@profile(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=texts.filter(lambda key: "\0" not in key), value=json_values)
def test_any_json_value_is_read_back(settings: SettingsStore, key: str, value: Any) -> None:
    settings.set(key, value)

    found = settings.get(key, "nothing")
    assert found == value
    assert type(found) is type(value)
    assert settings.all() == {key: value}
    assert settings.delete(key) is True


def test_a_setting_is_replaced_and_removed(settings: SettingsStore) -> None:
    settings.set("theme", "dark")
    settings.set("theme", {"dark": True})
    assert settings.get("theme") == {"dark": True}

    assert settings.delete("theme") is True
    assert settings.delete("theme") is False
    assert settings.get("theme") is None


def test_all_settings_are_in_the_order_of_their_keys(settings: SettingsStore) -> None:
    for key in ("b", "a", "c"):
        settings.set(key, None)

    assert list(settings.all().items()) == [("a", None), ("b", None), ("c", None)]


def test_a_missing_key_returns_the_default(settings: SettingsStore) -> None:
    settings.set("null", None)

    assert settings.get("theme", "dark") == "dark"
    assert settings.get("theme", default={"dark": True}) == {"dark": True}
    assert settings.get("theme", 5, type=int) == 5
    assert settings.get("theme", type=Window) is None
    assert settings.get("null", "dark") is None


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (5, int, 5),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        (None, int | None, None),
        ({"width": 800}, Window, Window(width=800)),
        ({"x": 1}, Point, Point(1)),
        ("2026-01-02T03:04:05Z", datetime, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_a_setting_is_validated_with_the_requested_type(
    settings: SettingsStore, value: Any, kind: Any, expected: object
) -> None:
    settings.set("key", value)

    assert settings.get("key", type=kind) == expected


@pytest.mark.parametrize(
    ("value", "kind"), [(HIDDEN, int), ({"width": HIDDEN}, Window), ({"width": 1, "title": [HIDDEN]}, Window)]
)
def test_the_error_for_a_value_of_another_type_does_not_show_the_value(
    settings: SettingsStore, value: Any, kind: Any
) -> None:
    settings.set("key", value)

    with pytest.raises(SettingError, match=r"'key'.*not of the type that was asked for") as caught:
        settings.get("key", type=kind)

    assert caught.value.key == "key"
    assert HIDDEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert settings.get("key") == value


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1, 2},
        b"bytes",
        datetime(2026, 1, 1, tzinfo=UTC),
        UUID(int=1),
        nan,
        [inf],
        {1: "a"},
        {"a": {"b": object()}},
        "\ud800",
        Window(width=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_is_not_json_is_refused_before_it_is_written(settings: SettingsStore, value: object) -> None:
    settings.set("key", "before")

    with pytest.raises(SettingError, match="'key'"):
        settings.set("key", value)

    assert settings.all() == {"key": "before"}


def test_a_model_is_refused_with_a_hint(settings: SettingsStore) -> None:
    with pytest.raises(SettingError, match=r"model_dump\(mode='json'\)"):
        settings.set("window", Window(width=1))


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
def test_a_key_that_cannot_be_stored_is_refused(settings: SettingsStore, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: settings.set(key, 1),
        lambda: settings.get(key),
        lambda: settings.delete(key),
    ]
    for use in uses:
        with pytest.raises(SettingError, match="its key cannot be stored"):
            use()
    assert settings.all() == {}


@pytest.mark.parametrize("key", [None, 5, b"a"])
def test_a_key_must_be_text(settings: SettingsStore, key: Any) -> None:
    with pytest.raises(TypeError, match="the key of a setting must be text"):
        settings.set(key, 1)


def test_the_error_for_a_row_that_is_not_json(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO settings VALUES ('broken', :value)"), {"value": HIDDEN})
    for use in (lambda: database.settings.get("broken"), database.settings.all):
        with pytest.raises(SettingError, match=r"'broken'.*not JSON") as caught:
            use()
        assert HIDDEN not in str(caught.value)

    database.settings.set("broken", 1)
    assert database.settings.get("broken") == 1


class TestJoiningATransaction:
    def event(self) -> ProjectCreated:
        return ProjectCreated(project_id=uuid4(), name="tide-table", path="/")

    def test_settings_and_events_are_stored_together(self, database: Database) -> None:
        database.settings.set("old", 1)
        with database.engine.begin() as connection:
            database.settings.set("new", 1, connection=connection)
            assert database.settings.delete("old", connection=connection) is True
            database.events.append_all([self.event()], connection=connection)

        assert database.settings.all() == {"new": 1}
        assert database.events.last_sequence() == 1

    def test_neither_settings_nor_events_are_stored_after_a_rollback(self, database: Database) -> None:
        with database.engine.connect() as connection:
            database.settings.set("new", 1, connection=connection)
            database.events.append_all([self.event()], connection=connection)
            connection.rollback()

        assert database.settings.all() == {}
        assert database.events.last_sequence() == 0


def test_settings_survive_a_restart(migrated_lasting_url: URL) -> None:
    with Database.open(url=migrated_lasting_url) as database:
        database.settings.set("theme", "dark")
    with Database.open(url=migrated_lasting_url) as database:
        assert database.settings.get("theme") == "dark"


def set_many(barrier: Barrier, url: str, process: int) -> None:
    with Database.open(url=url) as database:
        barrier.wait(processes.PATIENCE)
        for number in range(25):
            database.settings.set(f"{process}-{number}", number)
            database.settings.set("shared", [process, number])


def test_processes_that_set_different_keys_lose_none(migrated_lasting_url: URL) -> None:
    Database.open(url=migrated_lasting_url).close()
    address = migrated_lasting_url.render_as_string(hide_password=False)
    barrier = processes.context.Barrier(4)

    codes = processes.exit_codes(set_many, [(barrier, address, process) for process in range(4)])

    assert codes == [0] * 4
    with Database.open(url=migrated_lasting_url) as database:
        found = database.settings.all()
    assert found.pop("shared") in [[process, 24] for process in range(4)]
    assert found == {f"{process}-{number}": number for process in range(4) for number in range(25)}


def test_the_error_for_a_locked_database(sqlite_url: URL) -> None:
    with Database.open(AppConfig(database={"busy_timeout": 0.05}), url=sqlite_url) as database:
        with database.engine.begin(), pytest.raises(StoreUnavailable, match="locked"):
            database.settings.set("theme", HIDDEN)
        assert database.settings.all() == {}


def test_the_error_for_missing_tables(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")
    settings = SettingsStore(engine)
    for use in (lambda: settings.get("a"), lambda: settings.set("a", HIDDEN), settings.all):
        with pytest.raises(StoreUnavailable, match="alembic upgrade head") as caught:
            use()
        assert HIDDEN not in str(caught.value)
    engine.dispose()
