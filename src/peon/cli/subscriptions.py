"""`peon subscriptions`: the saved positions of durable subscriptions."""

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from peon.cli.commands import DryRun, Yes, command
from peon.cli.errors import CommandFailed
from peon.cli.invocation import Invocation
from peon.cli.subscription_document import Subscription, described
from peon.cli.text import printable, table_of
from peon.persistence import Database
from peon.persistence.backends.driver_errors import DriverErrors
from peon.persistence.runtime.counts import counted
from peon.persistence.schema import LAST_SEQUENCE
from peon.persistence.subscriptions.administration import (
    SubscriptionPosition,
    delete_position,
    saved_positions,
    set_position,
)

subscriptions = typer.Typer(
    help="Lists, moves and removes the positions of durable subscriptions.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the subscription.", show_default=False)]

END = "end"


class Subscriptions(BaseModel):
    """All durable subscriptions, and the end of the log. A negative lag is a position beyond it, as after a restore."""

    last_sequence: int
    subscriptions: list[Subscription]


class MovedSubscription(BaseModel):
    """What has happened to a subscription, or would happen. The position is null if it was removed."""

    name: str
    before: int
    position: int | None
    delivered_again: int
    skipped: int
    done: bool


def add_to(application: typer.Typer) -> None:
    application.add_typer(subscriptions, name="subscriptions")


@command(subscriptions, "list", document=Subscriptions)
def list_subscriptions(invocation: Invocation) -> None:
    """Lists all durable subscriptions with their positions."""
    with invocation.reading() as database:
        found, end = _positions(database)
    document = Subscriptions(last_sequence=end, subscriptions=[described(each, end) for each in found])
    invocation.show(document, *tables_of(document.subscriptions), Text(f"The log ends with {end:,}."))


def tables_of(found: list[Subscription]) -> list[Table | Text]:
    """Returns what people are shown of subscriptions."""
    if not found:
        return [Text("There is no durable subscription.")]
    table = table_of("subscription", "position", "lag", "last moved")
    for each in found:
        lag = f"{each.lag:,}" if each.lag >= 0 else f"{-each.lag:,} beyond the end"
        table.add_row(printable(each.name), f"{each.position:,}", lag, f"{each.saved_at:%Y-%m-%d %H:%M:%S}")
    return [table]


@command(subscriptions, "set-position", document=MovedSubscription)
def move_subscription(
    invocation: Invocation,
    name: Name,
    position: Annotated[
        str,
        typer.Argument(
            metavar="POSITION", help="The last event that counts as handled: a sequence, 0 for none, or end for all."
        ),
    ],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Moves a subscription, so that events are delivered again or skipped. Its consumers must be stopped."""
    if position != END and not position.isdecimal():
        raise typer.BadParameter("POSITION is a sequence from 0, or end")
    with invocation.reading() as database:
        before, end = _position_of(invocation, database, name)
    wanted = end if position == END else int(position)
    if wanted > end:
        raise typer.BadParameter(f"{wanted:,} is beyond the end of the log, {end:,}")
    again, skipped = max(min(before, end) - wanted, 0), max(wanted - before, 0)
    document = MovedSubscription(
        name=name, before=before, position=wanted, delivered_again=again, skipped=skipped, done=not dry_run
    )
    count, what = (again, "delivered again") if again else (skipped, "skipped")
    effect = f"{counted(count, 'event is', 'events are')} {what}"
    move = f"{name} from {before:,} to {wanted:,}: {effect}"
    if dry_run:
        invocation.show(document, printable(f"This would move {move}."))
        return
    invocation.confirm(f"Move {printable(move)}. Do that?", yes=yes)
    with invocation.writing() as database:
        set_position(database.engine, name, wanted)
    invocation.show(document, printable(f"Moved {move}."))


@command(subscriptions, "delete", document=MovedSubscription)
def delete_subscription(invocation: Invocation, name: Name, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Removes a subscription. A consumer of its name then begins where its code says. Its consumers must be stopped."""
    with invocation.reading() as database:
        before, end = _position_of(invocation, database, name)
    again = min(before, end)
    document = MovedSubscription(
        name=name, before=before, position=None, delivered_again=again, skipped=0, done=not dry_run
    )
    effect = f"a new consumer of the name may be given {counted(again, 'event')} again"
    if dry_run:
        invocation.show(document, printable(f"This would remove {name} at {before:,}: {effect}."))
        return
    invocation.confirm(f"Remove {printable(name)} at {before:,}: {effect}. Do that?", yes=yes)
    with invocation.writing() as database:
        delete_position(database.engine, name)
    invocation.show(document, printable(f"Removed {name}, which was at {before:,}."))


def _position_of(invocation: Invocation, database: Database, name: str) -> tuple[int, int]:
    """Returns the position of a name, and the end of the log."""
    found, end = _positions(database)
    for each in found:
        if each.name == name:
            return each.sequence, end
    raise CommandFailed(f"there is no subscription {name!r}: run  peon subscriptions list{invocation.address}")


def _positions(database: Database) -> tuple[list[SubscriptionPosition], int]:
    with DriverErrors(database.engine), database.read_transaction() as connection:
        return saved_positions(connection), connection.scalars(LAST_SEQUENCE).one()
