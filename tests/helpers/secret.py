"""A text that no error message may show: it stands for the text of users and agents, and for passwords."""

import traceback
from pathlib import Path

from sqlalchemy import Connection, text

SECRET = "5a1t-0f-the-5ea"  # noqa: S105


def assert_secret_is_kept(error: BaseException) -> None:
    for shown in (str(error), repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in shown


def files_with_secret(folder: Path) -> list[str]:
    """Returns the names of the files in a folder that contain the secret."""
    return [path.name for path in folder.iterdir() if SECRET.encode() in path.read_bytes()]


def relations_with_secret(connection: Connection) -> list[str]:
    """Returns the tables, indexes and TOAST tables of the schema whose files contain the secret."""
    connection.execute(text("CHECKPOINT"))
    paths = connection.execute(
        text(
            "SELECT oid::regclass::text, pg_relation_filepath(oid) FROM pg_class "
            "WHERE pg_relation_filepath(oid) IS NOT NULL AND (relnamespace = current_schema()::regnamespace "
            "OR oid IN (SELECT reltoastrelid FROM pg_class WHERE relnamespace = current_schema()::regnamespace))"
        )
    ).all()
    read = text("SELECT pg_read_binary_file(:path)")
    return [name for name, path in paths if SECRET.encode() in bytes(connection.scalar(read, {"path": path}))]
