"""Decides for rows of the log whether a query matches them."""

from collections.abc import Collection

from peon.persistence.log.pages import LogRow
from peon.persistence.log.query import LIST, TYPE, Clause, EventQuery, key_of, keys_in


class Matcher:
    """Matches the rows that meet all clauses of at least one item.

    Args:
        query: What the rows match.
        list_tags: The tags of which an event can have several values.

    Attributes:
        items: See `EventQuery.wanted`. If the query matches every event, it is one item without clauses.
        names: The names under which the index has the tags of the query. See `LIST`.
    """

    def __init__(self, query: EventQuery, list_tags: Collection[str]) -> None:
        items = [
            [clause._replace(tag=clause.tag + LIST) if clause.tag in list_tags else clause for clause in item]
            for item in query.wanted()
        ]
        self.items: list[list[Clause]] = items if all(items) else [[]]
        self.names = sorted({clause.tag for item in self.items for clause in item})
        self._types: frozenset[str] | None = None
        of_type = [clause.keys for item in self.items for clause in item if clause.tag == TYPE]
        if len(of_type) == len(self.items):
            self._types = frozenset().union(*of_type)
        # By a key of their first clause, so that a row takes the same time for any number of items.
        self._items_by_key: dict[tuple[str, str], list[list[Clause]]] = {}
        for first, *others in filter(None, self.items):
            for key in first.keys:
                self._items_by_key.setdefault((first.tag, key), []).append(others)

    def matches(self, row: LogRow) -> bool:
        if not self.names:
            return True
        _, event_type, payload, _ = row
        if self._types is not None and event_type not in self._types and key_of(str(event_type)) not in self._types:
            return False  # the common case, without parsing the payload
        keys = keys_in(event_type, payload, self.names)
        return any(
            all(not clause.keys.isdisjoint(keys.get(clause.tag, ())) for clause in others)
            for tag, values in keys.items()
            for key in values
            for others in self._items_by_key.get((tag, key), ())
        )
