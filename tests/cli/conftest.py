"""The command `peon`."""

import pytest
from helpers.peon_command import Peon, run_peon


@pytest.fixture
def peon() -> Peon:
    return run_peon
