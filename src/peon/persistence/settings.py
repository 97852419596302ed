"""The settings store: keys and JSON values that the application chooses."""

from collections.abc import Callable
from typing import Any, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Engine, delete, select
from typing_extensions import TypeForm
from typing_extensions import TypeVar as TypeVarWithDefault

from peon.payloads import RuleError, exact_json
from peon.persistence.backends import backend_of
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.backends.retries import ResultT, in_own_transaction
from peon.persistence.backends.same_database import require_connection
from peon.persistence.errors import SettingError
from peon.persistence.schema import settings
from peon.validation_messages import collect_names, describe

SettingT = TypeVarWithDefault("SettingT", default=Any)
DefaultT = TypeVarWithDefault("DefaultT", default=None)


class SettingsStore:
    """The settings in one database. Each call changes one row in a transaction of its own, so no other key is lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._backend = backend_of(engine)
        self._reads = self._backend.consistent_reads(engine)
        self._driver_errors = DriverErrors(engine, expects_tables=True)
        insert = self._backend.insert(settings)
        self._upsert = insert.on_conflict_do_update(
            index_elements=[settings.c.key], set_={"value": insert.excluded.value}
        )

    @overload
    def get(self, key: str, default: DefaultT = ..., *, type: TypeForm[SettingT]) -> SettingT | DefaultT: ...
    @overload
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002
        """Returns a setting, or `default` if it is not set.

        Args:
            default: What to return if the setting does not exist.
            type: Any type that pydantic can validate: a model, `int`, `list[str]`, … The setting is returned as this
                type. By default it is returned as the stored JSON value.

        Raises:
            SettingError: The stored value is not of that type, is not JSON, or the key cannot be stored.
            TypeError: The key is not text.
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, self._reads.connect() as connection:
            value = connection.scalar(select(settings.c.value).where(settings.c.key == _checked(key)))
        if value is None:
            return default
        return _parsed(key, value) if type is None else _validated(key, value, type)

    def set(self, key: str, value: Any, *, connection: Connection | None = None) -> None:
        """Stores a JSON value: text, a number, `True`, `False`, `None`, a list or a dictionary of them.

        Args:
            connection: Stores it in the transaction that this connection is in, or begins one; its owner commits.

        Raises:
            SettingError: The value is not JSON. Nothing was stored.
            StoreUnavailable: The database is locked, read-only, full or damaged. Nothing was stored.
            ValueError: The connection is to another database, or its isolation level is AUTOCOMMIT.
        """
        try:
            text = to_json(exact_json(value)).decode()
        except RuleError as error:
            hint = "; for a pydantic model, store model_dump(mode='json')" if hasattr(value, "model_dump") else ""
            raise SettingError(key, f"{error}{hint}") from None
        row = {"key": _checked(key), "value": text}
        self._write(lambda own: own.execute(self._upsert, row), connection)

    def delete(self, key: str, *, connection: Connection | None = None) -> bool:
        """Removes a setting, and returns whether it was set. See `set` for `connection` and errors."""
        statement = delete(settings).where(settings.c.key == _checked(key))
        return self._write(lambda own: own.execute(statement).rowcount > 0, connection)

    def all(self) -> dict[str, Any]:
        """Returns all settings as a dictionary, sorted by key.

        Raises:
            SettingError: A setting was not stored as JSON.
            StoreUnavailable: The database cannot be read.
        """
        with self._driver_errors, self._reads.connect() as connection:
            rows = connection.execute(select(settings.c.key, settings.c.value).order_by(settings.c.key)).all()
        return {key: _parsed(key, value) for key, value in rows}

    def _write(self, work: Callable[[Connection], ResultT], connection: Connection | None) -> ResultT:
        if connection is None:
            return in_own_transaction(self._engine, self._driver_errors, work)
        require_connection(connection, self._engine)
        with self._driver_errors:
            self._backend.begin_writing(connection)
            return work(connection)


def _checked(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key of a setting must be text, not {type(key).__name__}")
    try:
        exact_json(key)
    except RuleError as error:
        raise SettingError(repr(key), f"its key cannot be stored: {error}") from None
    if "\0" in key:
        raise SettingError(key, "its key cannot be stored: it contains a NUL character")
    return key


def _parsed(key: str, value: str) -> Any:
    try:
        return from_json(value)
    except ValueError:
        raise SettingError(key, "its value in the database is not JSON: set it again, or delete it") from None


def _validated(key: str, value: str, kind: Any) -> Any:
    names: set[object] = set()
    collect_names(kind, names)
    try:
        return TypeAdapter(kind).validate_json(value)
    except ValidationError as error:
        reason = describe(error, names, "value")
    # Outside the handler, so that pydantic's error, which shows the value, is not its context.
    raise SettingError(key, f"its value is not of the type that was asked for: {reason}")
