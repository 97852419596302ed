"""Folders without permissions and disks without space, for the tests of the backends."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a folder that the user `nobody` can enter, unlike pytest's temporary folders."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        monkeypatch.setenv("XDG_CONFIG_HOME", name)
        yield path
        for inner in [path, *path.rglob("*")]:
            inner.chmod(0o700)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a disk, and not in every container")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
