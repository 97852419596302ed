import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from pydantic import ValidationError

from peon.config import AppConfig, ConfigError

HIDDEN = "pa55-of-the-database"
URL = f"postgresql+psycopg://peon:{HIDDEN}@localhost/peon"

ALLOWED = {
    "general.data_dir": "the path of a folder",
    "database.url": "an SQLAlchemy URL",
    "database.synchronous": "FULL, or NORMAL",
    "database.busy_timeout": "seconds from 0 to 86400",
    "database.pool_size": "a whole number of connections",
    "database.pool_timeout": "seconds from 0 to 86400 to wait for a connection",
    "database.version_table": "1 to 59 lower-case letters, digits and underscores",
}

WriteConfig = Callable[[str | bytes], Path]


@pytest.fixture
def write_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WriteConfig:
    """Returns a function that writes the file that PEON_CONFIG names."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "named.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.setenv("PEON_CONFIG", str(path))
        return path

    return write


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        AppConfig(**arguments)
    return str(caught.value)


# Where a value comes from


def test_the_defaults_apply_without_any_configuration() -> None:
    config = AppConfig()
    assert config.general.data_dir == platformdirs.user_data_path("peon", appauthor=False)
    assert config.database.url is None
    assert config.database.synchronous == "FULL"
    assert config.database.busy_timeout == 10.0


def test_arguments_override_environment_overrides_file_overrides_defaults(
    monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig
) -> None:
    write_config("database = {url = 'sqlite:///file', busy_timeout = 1, synchronous = 'NORMAL'}\n")
    monkeypatch.setenv("PEON_DATABASE__URL", "sqlite:///environment")
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "2")
    config = AppConfig(database={"url": "sqlite:///argument"})
    assert config.database.url == "sqlite:///argument"
    assert config.database.busy_timeout == 2
    assert config.database.synchronous == "NORMAL"
    assert config.general.data_dir == AppConfig().general.data_dir


def test_an_argument_of_none_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_DATABASE__URL", URL)
    assert AppConfig(database={"url": None}).database.url is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems use another folder")
def test_the_file_in_the_configuration_folder_of_the_user_is_read_if_it_exists(tmp_path: Path) -> None:
    path = tmp_path / "xdg-config" / "peon" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("database.busy_timeout = 3\n")
    assert AppConfig().database.busy_timeout == 3
    path.write_text("database.busy_timeout = 'x'\n")
    assert f"(file {path})" in refusal()


def test_the_file_that_peon_config_names_replaces_the_usual_one(write_config: WriteConfig, tmp_path: Path) -> None:
    usual = tmp_path / "xdg-config" / "peon" / "config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("database.busy_timeout = 3\n")
    write_config("")
    assert AppConfig().database.busy_timeout == 10


@pytest.mark.parametrize("name", ["missing.toml", ".", "~no-such-user/config.toml", "x" * 5000])
def test_a_missing_or_invalid_path_in_peon_config_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEON_CONFIG", name)
    message = refusal()
    assert message.startswith(f"PEON_CONFIG names {name}, ")


@pytest.mark.skipif(sys.platform == "win32", reason="names of variables are not case-sensitive")
def test_peon_config_in_lower_case_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("peon_config", str(tmp_path / "config.toml"))
    assert refusal().startswith("peon_config (environment variable): ")


@pytest.mark.parametrize("content", ["[database", "database = ", b"\xff\xfe", "a = 1\na = 2\n"])
def test_the_error_names_a_file_that_is_not_toml(write_config: WriteConfig, content: str | bytes) -> None:
    path = write_config(content)
    assert refusal().startswith(f"{path} is not valid TOML: ")


# Wrong values

WRONG = [
    ("general.data_dir", ["a"]),
    ("database.url", ""),
    ("database.url", "/srv/peon.db"),
    ("database.url", "mysql://ada@host/peon"),
    ("database.url", "postgres://ada@host/peon"),
    ("database.url", 5),
    ("database.synchronous", "OFF"),
    ("database.synchronous", None),
    ("database.busy_timeout", -1),
    ("database.busy_timeout", 86_401),
    ("database.pool_size", -1),
    ("database.pool_size", 2.5),
    ("database.pool_timeout", -1),
    ("database.busy_timeout", "soon"),
    ("database.version_table", ""),
    ("database.version_table", "PeonVersion"),
    ("database.version_table", "peon-version"),
    ("database.version_table", "peon.version"),
    ("database.version_table", "peon_version\n"),
    ("database.version_table", "1_version"),
    ("database.version_table", "v" * 60),
    ("database.version_table", "pg_class"),
    ("database.version_table", "sqlite_master"),
    ("database.version_table", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_the_error_for_a_wrong_argument_says_what_is_allowed(key: str, value: object) -> None:
    section, name = key.split(".")
    message = refusal(**{section: {name: value}})
    assert message.startswith(f"{key} (argument): ")
    assert f"; allowed: {ALLOWED[key]}" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("database.synchronous", "OFF"),
        ("database.synchronous", "full"),
        ("database.busy_timeout", "soon"),
        ("database.busy_timeout", "-0.5"),
        ("database.pool_size", "many"),
        ("database.pool_timeout", "nan"),
        ("database.busy_timeout", "nan"),
        ("database.busy_timeout", ""),
    ],
)
def test_the_error_for_a_wrong_variable_says_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    variable = "PEON_" + key.replace(".", "__").upper()
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(f"{key} (environment variable {variable}): ")
    assert f"; allowed: {ALLOWED[key]}" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.data_dir", "5"),
        ("general.data_dir", "{a = 1}"),
        ("database.url", "5"),
        ("database.url", "['a']"),
        ("database.synchronous", "'OFF'"),
        ("database.synchronous", "true"),
        ("database.busy_timeout", "-1"),
        ("database.busy_timeout", "nan"),
        ("database.busy_timeout", "'soon'"),
        ("database.busy_timeout", "2026-01-01"),
        ("database.pool_size", "'many'"),
        ("database.pool_timeout", "'long'"),
    ],
)
def test_the_error_for_a_wrong_value_in_the_file_says_what_is_allowed(
    write_config: WriteConfig, key: str, value: str
) -> None:
    path = write_config(f"{key} = {value}\n")
    message = refusal()
    assert message.startswith(f"{key} (file {path}): ")
    assert f"; allowed: {ALLOWED[key]}" in message


def test_the_error_for_an_invalid_section_names_its_source(write_config: WriteConfig) -> None:
    assert refusal(database="FULL").startswith("database (argument): ")
    assert refusal(database=None).startswith("database (argument): ")
    path = write_config("database = 5\n")
    assert refusal().startswith(f"database (file {path}): ")


@pytest.mark.parametrize("value", ["", "FULL", '{"synchronous": "FULL"}'])
def test_a_section_cannot_be_given_in_one_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PEON_DATABASE", value)
    assert refusal().startswith("PEON_DATABASE (environment variable): there is no key database; the keys are ")


def test_the_error_names_all_wrong_values(monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig) -> None:
    path = write_config("general.data_dir = 5\n")
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", "soon")
    message = refusal(database={"synchronous": "OFF"})
    assert f"general.data_dir (file {path}): " in message
    assert "database.busy_timeout (environment variable PEON_DATABASE__BUSY_TIMEOUT): " in message
    assert "database.synchronous (argument): " in message


# Unknown keys


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"databse": {"url": URL}}, "databse"),
        ({"database": {"urll": URL}}, "database.urll"),
        ({"general": {"url": URL}}, "general.url"),
        ({"url": URL}, "url"),
    ],
)
def test_the_error_names_an_unknown_argument(arguments: dict[str, Any], key: str) -> None:
    message = refusal(**arguments)
    assert message.startswith(f"{key} (argument): there is no key {key}")
    assert message.endswith(f"the keys are {', '.join(ALLOWED)}")


@pytest.mark.parametrize(
    "variable",
    [
        "PEON_DATABASE__TIMEOUT",
        "PEON_DATABASE__URL__HOST",
        "PEON_DATABASE__",
        "PEON_GENERAL__",
        "PEON_GENERAL__URL",
        "peon_general__url",
    ],
)
def test_the_error_names_an_unknown_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, URL)
    message = refusal()
    assert message.startswith(f"{variable} (environment variable): there is no key ")
    assert message.endswith(f"the keys are {', '.join(ALLOWED)}")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PEON_DATABASE_URL", "PEON_DATABASE__URL"),
        ("PEON_DATABASE___URL", "PEON_DATABASE__URL"),
        ("PEON__DATABASE__URL", "PEON_DATABASE__URL"),
        ("PEON_DATABASE_BUSYTIMEOUT", "PEON_DATABASE__BUSY_TIMEOUT"),
        ("PEON_GENERAL_DATA_DIR", "PEON_GENERAL__DATA_DIR"),
        ("PEON_GENERAL__DATADIR", "PEON_GENERAL__DATA_DIR"),
        ("PEON_DATABSE__URL", "PEON_DATABASE__URL"),
        ("PEON_DATABASE__URLL", "PEON_DATABASE__URL"),
        ("PEON_DATABASE_URI", "PEON_DATABASE__URL"),
        ("Peon_Databse__Url", "PEON_DATABASE__URL"),
        ("PEON_CONFIGS", "PEON_CONFIG"),
        ("PEON_DATABASE_VERSIONTABLE", "PEON_DATABASE__VERSION_TABLE"),
        ("PEON_DATABASE__VERSION", "PEON_DATABASE__VERSION_TABLE"),
        ("PEON_GENERAL__URL", "PEON_DATABASE__URL"),
        ("PEON_DATABASE__TIMEOUT", "PEON_DATABASE__POOL_TIMEOUT or PEON_DATABASE__BUSY_TIMEOUT"),
    ],
)
def test_a_near_miss_is_told_with_the_right_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, URL)
    message = refusal()
    assert message.startswith(f"{variable} (environment variable): there is no key ")
    assert message.endswith(f" (did you mean {meant}?); the keys are {', '.join(ALLOWED)}")


@pytest.mark.parametrize("service", ["PEON", "PEON_DB", "PEON_DATABASE", "PEON_GENERAL", "PEON_CONFIG", "PEON_URL"])
def test_the_variables_of_a_kubernetes_service_are_left_alone(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    address = "tcp://10.0.0.7:5432"
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_POSTGRESQL", "PORT", "PORT_5432_TCP"):
        monkeypatch.setenv(f"{service}_{name}", address)
    for part in ("PROTO", "PORT", "ADDR"):
        monkeypatch.setenv(f"{service}_PORT_5432_TCP_{part}", address)
    assert AppConfig() == AppConfig.model_construct(general=AppConfig().general, database=AppConfig().database)
    assert AppConfig().database.url is None


@pytest.mark.parametrize("variable", ["PEON_URL", "PEON_", "PEON_HOME", "PEON_CONFIG__FILE", "PEON_LOGGING__LEVEL"])
def test_the_variables_of_the_application_are_left_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, URL)
    assert AppConfig().database.url is None


def test_variables_of_other_applications_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEONY_DATABSE__URL", URL)
    monkeypatch.setenv("DATABASE__URL", URL)
    monkeypatch.setenv("DATABASE", URL)
    assert AppConfig().database.url is None


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (f"[databse]\nurl = '{URL}'\n", "databse.url"),
        (f"[Database]\nurl = '{URL}'\n", "Database.url"),
        (f"[database]\nurll = '{URL}'\n", "database.urll"),
        (f"[database.urls]\na = '{URL}'\n", "database.urls"),
        ("[database]\ntimeout = 5\n", "database.timeout"),
        (f'"database.url" = "{URL}"\n', "database.url"),
        (f'database_url = "{URL}"\n', "database_url"),
        ("[generall]\ndata_dir = 'x'\n", "generall.data_dir"),
    ],
)
def test_the_error_names_an_unknown_key_in_the_file(write_config: WriteConfig, content: str, key: str) -> None:
    path = write_config(content)
    message = refusal()
    assert message.startswith(f"{key} (file {path}): there is no key {key}")
    assert message.endswith(f"the keys are {', '.join(ALLOWED)}")


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ("[databse]\nurl = 'x'\n", "database.url"),
        ("[database]\nurll = 'x'\n", "database.url"),
        ("[database]\nversion = 'x'\n", "database.version_table"),
        ("[database]\ndata_dir = 'x'\n", "general.data_dir"),
        ("[database]\ntimeout = 5\n", "database.pool_timeout or database.busy_timeout"),
        ("database_url = 'x'\n", "database.url"),
    ],
)
def test_the_error_for_an_unknown_key_in_the_file_suggests_the_right_one(
    write_config: WriteConfig, content: str, meant: str
) -> None:
    write_config(content)
    assert refusal().endswith(f" (did you mean {meant}?); the keys are {', '.join(ALLOWED)}")


@pytest.mark.parametrize("variable", ["PEON_DATABASE__", "PEON_DATABASE__COLOUR", "PEON_GENERAL__"])
def test_no_key_is_suggested_for_a_name_that_is_like_none(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "x")
    assert "did you mean" not in refusal()


@pytest.mark.parametrize(
    "content",
    [
        "[logging]\nlevel = 'INFO'\n",
        "[databases]\nmain = 'x'\n",
        "[[servers]]\nurl = 'x'\n",
        "url = 'x'\n",
        "[database_backup]\nkeep = 5\n",
        "[databse]\n",
        "[Database]\ntimeout = 5\n",
        "[peon.database]\nurl = 'x'\n",
    ],
)
def test_other_sections_of_the_file_belong_to_the_application(write_config: WriteConfig, content: str) -> None:
    write_config(f"{content}\n[database]\nbusy_timeout = 3\n")
    assert AppConfig().database.busy_timeout == 3


@pytest.mark.parametrize("name", ["peon_version", "order", "_", "v" * 59])
def test_the_version_table_can_have_any_name_that_both_backends_allow(
    monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig, name: str
) -> None:
    assert AppConfig().database.version_table == "alembic_version"
    write_config(f"[database]\nversion_table = '{name}'\n")
    assert AppConfig().database.version_table == name
    monkeypatch.setenv("PEON_DATABASE__VERSION_TABLE", "of_environment")
    assert AppConfig().database.version_table == "of_environment"


# Secrets


@pytest.mark.parametrize(
    ("arguments", "environment", "content"),
    [
        ({"database": {"url": [URL]}}, {}, ""),
        ({"database": {"url": URL, "synchronous": "OFF"}}, {}, ""),
        ({"database": {"urll": URL}}, {}, ""),
        ({"database": URL}, {}, ""),
        ({"url": URL}, {}, ""),
        ({}, {"PEON_DATABASE_URL": URL}, ""),
        ({}, {"PEON_DATABSE__URL": URL}, ""),
        ({}, {"PEON_DATABASE": URL}, ""),
        ({}, {"PEON_DATABASE": f'"{URL}"'}, ""),
        ({}, {"PEON_DATABASE": f'{{"url": "{URL}"'}, ""),
        ({}, {"PEON_DATABASE": f'{{"url": ["{URL}"]}}'}, ""),
        ({}, {"PEON_DATABASE__URL": URL, "PEON_DATABASE__BUSY_TIMEOUT": "soon"}, ""),
        ({}, {"PEON_DATABASE__BUSY_TIMEOUT": URL}, ""),
        ({}, {}, f"database = '{URL}'\n"),
        ({}, {}, f"[database]\nurl = ['{URL}']\n"),
        ({}, {}, f"[[database]]\nurl = '{URL}'\n"),
        ({}, {}, f"[database]\nurll = '{URL}'\n"),
        ({}, {}, f"[database]\nurl = '{URL}'\nsynchronous = 'OFF'\n"),
        ({}, {}, f"[database]\nurl = '{URL}\n"),
        ({}, {}, f"[database]\nurl = {URL}\n"),
        ({}, {}, f"[database]\nurl = '{URL}'\nurl = '{URL}'\n"),
    ],
)
def test_no_error_shows_the_password(
    monkeypatch: pytest.MonkeyPatch,
    write_config: WriteConfig,
    arguments: dict[str, Any],
    environment: dict[str, str],
    content: str,
) -> None:
    write_config(content)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        AppConfig(**arguments)
    # A log would show the error like this, with its causes.
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "ConfigError" in shown
    assert HIDDEN not in shown


def test_the_configuration_does_not_show_the_url() -> None:
    config = AppConfig(database={"url": URL})
    assert config.database.url == URL
    for shown in (repr(config), str(config), repr(config.database), str(config.database)):
        assert "synchronous='FULL'" in shown
        assert "url" not in shown
        assert HIDDEN not in shown


# The data folder


def test_a_relative_data_dir_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    argument = AppConfig(general={"data_dir": Path("data")})
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", "data")
    variable = AppConfig()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert argument.general.data_dir == variable.general.data_dir == tmp_path / "data"


def test_a_relative_data_dir_in_the_file_is_relative_to_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig, tmp_path: Path
) -> None:
    write_config("general.data_dir = 'data'\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert AppConfig().general.data_dir == tmp_path / "work" / "data"


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is not the home folder")
@pytest.mark.parametrize(("given", "expected"), [("~", "."), ("~/data", "data")])
def test_a_tilde_in_data_dir_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig, tmp_path: Path, given: str, expected: str
) -> None:
    assert AppConfig(general={"data_dir": given}).general.data_dir == tmp_path / expected
    write_config(f"general.data_dir = '{given}'\n")
    assert AppConfig().general.data_dir == tmp_path / expected
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", given)
    assert AppConfig().general.data_dir == tmp_path / expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows expands unknown users, too")
def test_a_data_dir_in_the_home_folder_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", "~no-such-user/data")
    assert refusal().startswith("general.data_dir (environment variable PEON_GENERAL__DATA_DIR): ")


def test_an_empty_data_dir_is_not_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEON_GENERAL__DATA_DIR", "")
    assert refusal().startswith("general.data_dir (environment variable PEON_GENERAL__DATA_DIR): ")


def test_a_dot_is_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert AppConfig(general={"data_dir": "."}).general.data_dir == tmp_path


@pytest.mark.parametrize("seconds", [0, 0.25, 86_400])
def test_a_timeout_at_the_limits_is_allowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setenv("PEON_DATABASE__BUSY_TIMEOUT", str(seconds))
    assert AppConfig().database.busy_timeout == seconds


@pytest.mark.skipif(sys.platform == "win32", reason="HOME is not the home folder")
def test_a_tilde_in_peon_config_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("database.busy_timeout = 7\n")
    monkeypatch.setenv("PEON_CONFIG", "~/mine.toml")
    assert AppConfig().database.busy_timeout == 7


# The configuration cannot be changed


@pytest.mark.parametrize("key", ["general", "database", *ALLOWED])
def test_the_configuration_is_frozen(key: str) -> None:
    config = AppConfig()
    section, _, name = key.partition(".")
    owner, attribute = (getattr(config, section), name) if name else (config, section)
    before = getattr(owner, attribute)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(owner, attribute, before)
    assert getattr(owner, attribute) is before


def test_no_attribute_can_be_added() -> None:
    config = AppConfig()
    with pytest.raises(ValidationError):
        config.databse = 1  # type: ignore[attr-defined]
    assert not hasattr(config, "databse")
