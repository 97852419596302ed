"""The page of campaigns shows the results that are recorded."""

import pytest
from helpers.campaigns import PAGE, page


@pytest.mark.skipif(not PAGE.parent.is_dir(), reason="the documentation is only in a checkout")
def test_the_page_shows_the_recorded_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python tests/helpers/campaigns.py"
