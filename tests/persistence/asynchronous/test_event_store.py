"""The asynchronous store."""

import pytest

from peon.persistence import EventStore, create_engine
from peon.persistence.asynchronous import AsyncEventStore, create_async_engine


def test_each_store_accepts_only_its_own_kind_of_engine() -> None:
    with pytest.raises(TypeError, match="AsyncEventStore an AsyncEngine"):
        EventStore(create_async_engine("sqlite://"))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="takes an AsyncEngine"):
        AsyncEventStore(create_engine("sqlite://"))  # type: ignore[call-overload]
