"""The configuration: environment variables win over a TOML file, and the file over the defaults."""

import os
import re
import tomllib
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_config_path, user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

APPLICATION = "peon"
ENVIRONMENT_PREFIX = "PEON_"
CONFIG_FILE_VARIABLE = "PEON_CONFIG"

DEFAULT_VERSION_TABLE = "alembic_version"
VERSION_TABLE_NAMES = (
    "1 to 59 lower-case letters, digits and underscores, which do not begin with a digit, pg_ or sqlite_"
)

SIMILARITY = 0.9
"""From here on, a name is a near miss of a key: `databse_url` is one, and Kubernetes' `database_port` (0.8) is not."""

SIMILARITY_IN_SECTION = 0.6
"""In Peon's sections an unknown key is an error anyway, so the suggestion may be less certain."""


class ConfigError(ValueError):
    """A configuration value is wrong or unknown; the message names the key, where it was set, and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class GeneralConfig(_Section):
    data_dir: Path = Field(
        default_factory=lambda: user_data_path(APPLICATION, appauthor=False),
        description="the path of a folder; ~ stands for the home folder",
    )

    @field_validator("data_dir", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value == "":  # an empty variable would mean the working directory, which is hardly intended
            raise ValueError("must not be empty")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        # Absolute, so that a later change of the working directory does not lead to another database.
        try:
            return path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("~ names a user whose home folder is unknown") from None


class DatabaseConfig(_Section):
    url: str | None = Field(
        default=None,
        repr=False,  # may hold a password
        description="an SQLAlchemy URL, sqlite:///… or postgresql+psycopg://…; "
        "by default the SQLite file peon.db in general.data_dir",
    )
    synchronous: Literal["FULL", "NORMAL"] = Field(
        default="FULL", description="FULL, or NORMAL, which may lose the last commits in a power failure"
    )
    busy_timeout: float = Field(
        default=10.0, ge=0, le=86_400, description="seconds from 0 to 86400 to wait for a locked database"
    )

    pool_size: int | None = Field(
        default=None, ge=0, le=10_000, description="a whole number of connections, or 0 for no limit; 5 by default"
    )
    pool_timeout: float | None = Field(
        default=None,
        ge=0,
        le=86_400,
        description="seconds from 0 to 86400 to wait for a connection of the pool; 30 by default",
    )

    version_table: str = Field(default=DEFAULT_VERSION_TABLE, description=VERSION_TABLE_NAMES)

    @field_validator("version_table")
    @classmethod
    def _name_of_a_table(cls, name: str) -> str:
        if not is_version_table_name(name):
            raise ValueError("not a name that both SQLite and PostgreSQL allow for the version table")
        return name

    @field_validator("url")
    @classmethod
    def _of_a_known_backend(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"(sqlite|postgresql)(\+\w+)?:", url):
            raise ValueError("not the URL of a supported database")
        return url


def is_version_table_name(name: str) -> bool:
    """Returns whether a version table can have the name in both SQLite and PostgreSQL.

    PostgreSQL allows 63 bytes, and Alembic appends `_pkc` for the name of the primary key. SQLite ignores case.
    """
    return re.fullmatch(r"(?!pg_|sqlite_)[a-z_][a-z0-9_]{0,58}", name) is not None


SECTIONS: dict[str, type[_Section]] = {"general": GeneralConfig, "database": DatabaseConfig}
KEYS = [f"{name}.{field}" for name, section in SECTIONS.items() for field in section.model_fields]


class AppConfig(BaseSettings):
    """The configuration. `AppConfig()` reads it.

    The first source that sets a key wins: arguments; environment variables such as `PEON_GENERAL__DATA_DIR` for
    `general.data_dir`; the TOML file that `PEON_CONFIG` names, or else `config.toml` in the platform's user
    configuration folder for `peon`, if it exists.

    Raises:
        ConfigError: A value is wrong; a key in the sections `general` and `database` is unknown; a name elsewhere is a
            near miss of a key; the file is missing or not TOML.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    general: GeneralConfig = Field(default_factory=GeneralConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)

    def __init__(self, **values: Any) -> None:
        _refuse_misspelt_variables()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(detail, values) for detail in error.errors())) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings fixes the signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _toml_source(settings_cls)


def _config_file() -> Path | None:
    named = os.environ.get(CONFIG_FILE_VARIABLE)
    if named:
        with suppress(OSError, RuntimeError):  # the name is too long, or the home folder of the user is unknown
            path = Path(named).expanduser()
            if path.is_file():
                return path.absolute()
        raise ConfigError(
            f"{CONFIG_FILE_VARIABLE} names {named}, which is not a file: correct the path or unset the variable"
        )
    usual = user_config_path(APPLICATION, appauthor=False) / "config.toml"
    try:
        return usual if usual.is_file() else None
    except OSError as error:  # no permission to enter the folder
        raise ConfigError(f"{usual} cannot be read: {error.strerror}") from error


def _toml_source(settings_cls: type[BaseSettings]) -> InitSettingsSource:
    """Returns the sections of the file that are Peon's. Others belong to the application."""
    path = _config_file()
    if path is None:
        return InitSettingsSource(settings_cls, {})
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    for name, section in content.items():
        if name not in SECTIONS:
            keys = [f"{name}.{key}" for key in section] if isinstance(section, dict) else [name]
            for key in keys:
                if meant := _near_keys(key):
                    raise ConfigError(f"{key} (file {path}): {_unknown(key, meant)}")
    return InitSettingsSource(settings_cls, {name: content[name] for name in SECTIONS if name in content})


def _refuse_misspelt_variables() -> None:
    """Refuses variables that are probably meant for Peon, which pydantic-settings would ignore.

    Others belong to the application or its platform: Kubernetes sets `PEON_SERVICE_HOST` for a service named `peon`.
    """
    for variable in os.environ:
        if not variable.upper().startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_FILE_VARIABLE:
            continue
        name = variable.lower().removeprefix(ENVIRONMENT_PREFIX.lower())
        section, _, field = name.partition("__")
        if section in SECTIONS and field in SECTIONS[section].model_fields:
            continue
        meant = _near_variables(name) or [_variable(key) for key in _keys_like(section, field)]
        if section in SECTIONS or meant:  # a variable for a whole section is not allowed either
            raise ConfigError(f"{variable} (environment variable): {_unknown(name.replace('__', '.'), meant)}")


def _explain(detail: ErrorDetails, values: dict[str, Any]) -> str:
    key = tuple(str(part) for part in detail["loc"])
    where = f"{'.'.join(key)} ({_source(key, values)})"
    allowed = _allowed(key)
    if allowed is None:
        return f"{where}: {_unknown('.'.join(key), _near_keys('.'.join(key)) or _keys_like(*key[:2]))}"
    return f"{where}: {detail['msg'].removeprefix('Value error, ')}; allowed: {allowed}"


def _source(key: tuple[str, ...], values: dict[str, Any]) -> str:
    given: Any = values
    for part in key:
        if not isinstance(given, dict) or part not in given:
            break
        given = given[part]
    else:
        return "argument"
    variable = _variable(".".join(key))
    if variable in map(str.upper, os.environ):
        return f"environment variable {variable}"
    return f"file {_config_file()}"


def _allowed(key: tuple[str, ...]) -> str | None:
    """Returns a description of the allowed values, `None` for a key that does not exist."""
    section = SECTIONS.get(key[0])
    if section is None:
        return None
    if len(key) == 1:
        return f"a section with {', '.join(section.model_fields)}"
    field = section.model_fields.get(key[1])
    return None if field is None or len(key) > 2 else field.description


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()


def _near_variables(name: str) -> list[str]:
    if get_close_matches(name, [CONFIG_FILE_VARIABLE.lower().removeprefix(ENVIRONMENT_PREFIX.lower())], 1, SIMILARITY):
        return [CONFIG_FILE_VARIABLE]
    return [_variable(key) for key in _near_keys(name)]


def _near_keys(name: str) -> list[str]:
    """Returns the key of which a name is a near miss, whatever separates its parts; nothing if there is none."""
    keys = {key.replace(".", "_"): key for key in KEYS}
    found = get_close_matches(re.sub(r"[._-]+", "_", name.lower()), keys, 1, SIMILARITY)
    return [keys[near] for near in found]


def _keys_like(section: str, field: str = "") -> list[str]:
    """Returns the keys that may be meant by an unknown one of a section of Peon's; nothing for another section."""
    if section not in SECTIONS:
        return []
    if elsewhere := [key for key in KEYS if key.endswith(f".{field}")]:
        return elsewhere
    found = get_close_matches(field.lower(), SECTIONS[section].model_fields, 2, SIMILARITY_IN_SECTION)
    return [f"{section}.{near}" for near in found]


def _unknown(key: str, meant: list[str]) -> str:
    suggestion = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    return f"there is no key {key}{suggestion}; the keys are {', '.join(KEYS)}"
