"""The identity of a log: tells a position in one log from the same position in another."""

from uuid import UUID, uuid4

from sqlalchemy import Connection, select

from peon.persistence.backends import backend_of
from peon.persistence.schema import log_identity


def identity_of_log(connection: Connection) -> UUID:
    return UUID(connection.scalars(select(log_identity.c.identity)).one())


def renew_identity(connection: Connection) -> UUID:
    """Gives the log a new identity in the transaction of the connection, and returns it."""
    identity = uuid4()
    insert = backend_of(connection).insert(log_identity).values(number=1, identity=str(identity))
    connection.execute(insert.on_conflict_do_update(index_elements=["number"], set_={"identity": str(identity)}))
    return identity
