"""The domain's events in a codec of an application's own."""

from typing import Any, Literal

import pytest
from helpers.orchestration_scene import SCENE, renamed
from helpers.own_events import AppEvent, codec, noted
from helpers.tide_events import StationClosed
from pydantic import BaseModel

from peon.orchestration import ProjectCreated
from peon.persistence import EventCodec, EventEncodeError
from peon.persistence.orchestration.codec import codec_of_store, orchestration_codec


def never_decode(payload: str | bytes) -> Any:
    raise AssertionError("decoded")


def test_only_events_of_the_application_are_decoded_again() -> None:
    used = codec_of_store(codec)
    used.decoders.update(dict.fromkeys(used.decoders, never_decode))

    assert used.encode(SCENE) == orchestration_codec.encode(SCENE)
    with pytest.raises(EventEncodeError):
        used.encode([noted()])


def test_the_check_of_the_application_is_for_its_own_events() -> None:
    checked: list[object] = []
    used = codec_of_store(EventCodec(AppEvent, check=checked.append))

    used.encode([renamed("x"), noted("ada"), renamed("y")])

    assert checked == [noted("ada").model_copy(update={"occurred_at": checked[0].occurred_at})]  # type: ignore[attr-defined]
    with pytest.raises(EventEncodeError, match="changed after validation"):
        used.encode([renamed("x").model_copy(update={"name": 7})])


def test_both_have_their_tags() -> None:
    assert codec.tags == {"author"}
    assert codec_of_store(codec).tags == {"author", "project_id", "thread_id", "turn_id"}


def test_an_identifier_of_the_domain_with_other_values_is_refused() -> None:
    class Ranked(BaseModel):
        type: Literal["Ranked"] = "Ranked"
        thread_id: float

    with pytest.raises(ValueError, match="tag 'thread_id' is a field of neither text nor integers nor UUIDs alone"):
        codec_of_store(EventCodec(AppEvent | Ranked))


def test_a_union_without_all_events_of_the_domain_is_left_alone() -> None:
    for other in (EventCodec(StationClosed), EventCodec(ProjectCreated | StationClosed)):
        assert codec_of_store(other) is other
    assert codec_of_store(None) is orchestration_codec
