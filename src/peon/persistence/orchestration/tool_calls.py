"""The calls of tools that have no result yet."""

from collections import defaultdict

from sqlalchemy import Connection

from peon.persistence.orchestration import statements
from peon.persistence.orchestration.nul_characters import with_visible_nul


class ToolCalls:
    """The calls of tools in a batch of events, and the results.

    A result answers the last unanswered call of its thread that has its identifier. The turn does not matter: an agent
    that was interrupted may get the result in its next turn. A call that is answered in the same batch never becomes a
    row.
    """

    def __init__(self) -> None:
        self._calls: defaultdict[tuple[str, str], list[tuple[str, int, str, str, str]]] = defaultdict(list)
        self._results: list[tuple[str, str, str, int]] = []

    def add_call(self, tool_call_id: str, thread_key: str, sequence: int, turn_key: str, message_key: str) -> None:
        shown = with_visible_nul(tool_call_id)
        self._calls[thread_key, shown].append((thread_key, sequence, turn_key, message_key, shown))

    def add_result(self, tool_call_id: str, thread_key: str, sequence: int) -> None:
        shown = with_visible_nul(tool_call_id)
        if calls := self._calls.get((thread_key, shown)):
            calls.pop()
        else:
            self._results.append((thread_key, thread_key, shown, sequence))

    def write(self, connection: Connection) -> None:
        statements.INSERT_TOOL_CALL.run(connection, [row for rows in self._calls.values() for row in rows])
        statements.ANSWER_TOOL_CALL.run(connection, self._results)
