"""An interrupt at the jump back of a loop skips the handlers of its function on Python 3.12 and later.

See https://github.com/python/cpython/issues/130279. A `with` around such a loop keeps its lock, and every thread that
needs the lock waits without end.
"""

import ast
from collections.abc import Iterator
from inspect import getsource
from types import ModuleType

import pytest

from peon.persistence.backends import sqlite_driver
from peon.persistence.group_commit import threads
from peon.persistence.runtime import forking
from peon.persistence.subscriptions import notifier

LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
FUNCTIONS = (ast.FunctionDef, ast.Lambda, ast.GeneratorExp)
"""Have handlers of their own: the interrupt of one is an exception of the call in the other."""


def loops_within(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, LOOPS):
            yield child
        if not isinstance(child, FUNCTIONS):
            yield from loops_within(child)


@pytest.mark.parametrize("module", [threads, forking, notifier, sqlite_driver], ids=lambda module: module.__name__)
def test_no_loop_is_in_a_function_that_must_release_a_lock_after_it(module: ModuleType) -> None:
    tree = ast.parse(getsource(module))
    blocks = [node for node in ast.walk(tree) if isinstance(node, (ast.With, ast.Try))]
    assert blocks

    assert [f"line {loop.lineno}" for block in blocks for loop in loops_within(block)] == []  # type: ignore[attr-defined]
