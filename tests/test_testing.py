"""The helpers for tests of applications, and the plugin with its fixtures."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from helpers.word_count_projection import SCENE, THREAD, WordCount, said, words, writers
from sqlalchemy import Connection, func, select

from peon import Database
from peon.testing import ProjectionSuite, given

pytest_plugins = ["pytester"]


class TestWordCount(ProjectionSuite):
    def projection(self) -> WordCount:
        return WordCount()

    def sample_events(self) -> list[Any]:
        return SCENE


@pytest.fixture
def peon_open_arguments() -> Mapping[str, Any]:
    return {"projections": [WordCount()]}


def count_words(connection: Connection) -> int | None:
    return connection.scalar(select(func.count()).select_from(words))


def test_given_when_then(peon_memory_database: Database[Any]) -> None:
    scenario = given(peon_memory_database, SCENE).when([said("ebb")]).when_refused([said("barnacles")], "bad language")
    scenario.then_rows(writers, [{"thread_id": str(THREAD), "words": 6}]).then(count_words, 4)

    with pytest.raises(AssertionError, match=r"(?s)word_count_writers differ:.*missing: .*7.*unexpected: .*6"):
        scenario.then_rows(writers, [{"thread_id": str(THREAD), "words": 7}])
    with pytest.raises(AssertionError, match="unexpected"):
        scenario.then_rows(writers, [])
    with pytest.raises(AssertionError, match=r"(?s)count_words.*expected: 5.*found: +4"):
        scenario.then(count_words, 5)
    with pytest.raises(AssertionError, match="No projection refused"):
        scenario.when_refused([said("flow")], "bad language")
    with pytest.raises(AssertionError, match="another reason than 'rude'"):
        scenario.when_refused([said("barnacles")], "rude")


def test_without_a_url_tests_on_postgresql_are_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSTGRESQL_TEST_URL", raising=False)
    pytester.makepyfile("def test_it(peon_url): pass")
    result = pytester.runpytest_inprocess("-p", "pytest_peon", "-p", "no:cacheprovider", "-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*set peon_postgresql_url or POSTGRESQL_TEST_URL*"])


def test_a_projection_that_depends_on_its_calls_fails_the_suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from helpers.word_count_projection import SCENE, WordCount
        from peon.testing import ProjectionSuite

        class Splits(WordCount):
            def apply(self, connection, events):
                return super().apply(connection, events[:1])

        class TestSplits(ProjectionSuite):
            def projection(self): return Splits()
            def sample_events(self): return SCENE
    """)
    result = pytester.runpytest_inprocess("-p", "pytest_peon", "-p", "no:cacheprovider", "-k", "memory")
    result.assert_outcomes(passed=1, failed=3)


def test_the_plugin_does_not_import_peon() -> None:
    program = "import sys, pytest_peon; print(*{'peon', 'sqlalchemy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_without_pytest_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['pytest'] = None; import peon.testing"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'peon[testing]'" in found.stderr
