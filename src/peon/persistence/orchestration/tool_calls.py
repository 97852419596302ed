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
        self._calls: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._results: list[tuple[str, str, str, int]] = []

    def add_call(self, thread_key: str, tool_call_id: str, sequence: int) -> None:
        self._calls[thread_key, with_visible_nul(tool_call_id)].append(sequence)

    def add_result(self, thread_key: str, tool_call_id: str, sequence: int) -> None:
        shown = with_visible_nul(tool_call_id)
        if calls := self._calls.get((thread_key, shown)):
            calls.pop()
        else:
            self._results.append((thread_key, thread_key, shown, sequence))

    def write(self, connection: Connection) -> None:
        rows = [(key, sequence, call) for (key, call), sequences in self._calls.items() for sequence in sequences]
        statements.INSERT_TOOL_CALL.run(connection, rows)
        statements.ANSWER_TOOL_CALL.run(connection, self._results)
