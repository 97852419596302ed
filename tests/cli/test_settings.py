"""`peon settings`."""

import pytest
from helpers.migrated_databases import address
from helpers.peon_command import Peon
from sqlalchemy import URL

from peon import Database


@pytest.fixture
def at(migrated_lasting_url: URL) -> tuple[str, str]:
    with Database.open(url=migrated_lasting_url) as database:
        database.settings.set("theme", {"dark": True})
        database.settings.set("limit", 12)
    return "--url", address(migrated_lasting_url)


def test_settings_are_listed(peon: Peon, at: tuple[str, str]) -> None:
    assert peon("settings", "list", "--json", *at).document == {"settings": {"limit": 12, "theme": {"dark": True}}}
    assert '{"dark": true}' in peon("settings", "list", *at).out


def test_a_setting_is_read(peon: Peon, at: tuple[str, str]) -> None:
    assert peon("settings", "get", "theme", *at).out == '{"dark": true}\n'
    assert peon("settings", "get", "theme", "--json", *at).document == {"key": "theme", "value": {"dark": True}}


def test_a_missing_setting_ends_with_1(peon: Peon, at: tuple[str, str]) -> None:
    for command in (("get",), ("delete", "--yes")):
        done = peon("settings", *command, "colour", *at)
        assert (done.code, done.out) == (1, "")
        assert "there is no setting 'colour'" in done.err


def test_a_setting_is_stored(peon: Peon, at: tuple[str, str]) -> None:
    assert peon("settings", "set", "name", '"Ada"', *at).code == 0
    assert peon("settings", "get", "name", *at).out == '"Ada"\n'


def test_a_value_that_is_not_json_is_wrong_usage(peon: Peon, at: tuple[str, str]) -> None:
    done = peon("settings", "set", "name", "Ada", *at)
    assert done.code == 2
    assert "not JSON" in done.err


def test_a_setting_is_deleted_after_consent(peon: Peon, at: tuple[str, str]) -> None:
    assert "would be removed" in peon("settings", "delete", "theme", "--dry-run", *at).out
    assert peon("settings", "delete", "theme", *at, input="n\n").code == 1
    assert peon("settings", "delete", "theme", *at, input="").code == 1
    assert peon("settings", "get", "theme", *at).code == 0

    assert peon("settings", "delete", "theme", *at, input="y\n").code == 0
    assert peon("settings", "get", "theme", *at).code == 1


def test_control_characters_do_not_reach_the_terminal(peon: Peon, at: tuple[str, str]) -> None:
    peon("settings", "set", "title\x1b[2J", '"a"', *at)
    assert "\x1b" not in peon("settings", "list", *at).out
