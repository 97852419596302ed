"""Folders whose permissions the tests of the backends remove."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a folder that the user nobody can enter, unlike pytest's temporary folders."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        monkeypatch.setenv("XDG_CONFIG_HOME", name)
        yield path
        for inner in [path, *path.rglob("*")]:
            inner.chmod(0o700)
