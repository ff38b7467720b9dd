"""Ids: UUIDv7 as RFC 9562 has them; those that are derived are the same each time."""

from __future__ import annotations

import time
import uuid

import pytest

from ekiben.ids import derived_id, new_id


def millis(ident: str) -> int:
    return uuid.UUID(ident).int >> 80


def test_a_new_id_is_of_now_and_sorts_by_time() -> None:
    before = time.time_ns() // 1_000_000
    first = new_id()
    time.sleep(0.003)
    second = new_id()
    for ident in (first, second):
        parsed = uuid.UUID(ident)
        assert (str(parsed), parsed.version, parsed.variant) == (ident, 7, uuid.RFC_4122)
    assert before <= millis(first) < millis(second) <= time.time_ns() // 1_000_000
    assert first < second
    assert len({new_id() for _ in range(1000)}) == 1000


def test_a_derived_id() -> None:
    base, other = new_id(), new_id()
    image = derived_id(base, "image")
    parsed = uuid.UUID(image)
    assert (str(parsed), parsed.version, parsed.variant) == (image, 7, uuid.RFC_4122)
    assert millis(image) == millis(base)
    assert derived_id(base, "image") == image
    others = {derived_id(base, f"file {n}") for n in range(1000)}
    assert len(others | {base, image, derived_id(other, "image"), derived_id(image, "image")}) == 1004


def test_a_derived_id_stays_what_it_was() -> None:
    """Blobs of jobs that run during an update lie under these. By hand: time of the base, 7, the number; then
    the digits 5 to 20 of ``sha256sum`` of "BASE/image/0", with the variant, 10, in the first two bits."""
    base = "01a1fd33-f034-7dd3-b448-5e82451fcbe3"
    assert derived_id(base, "image") == "01a1fd33-f034-7000-9dff-1cb55596b21f"
    assert derived_id(base, "file", 258) == "01a1fd33-f034-7102-bb3b-f0f0f023969f"


def test_derived_ids_stand_by_their_numbers() -> None:
    base = new_id()
    numbered = [derived_id(base, "file", number) for number in range(4096)]
    assert numbered == sorted(numbered)
    assert len({*numbered, *(derived_id(base, "file", number) for number in range(4096, 6000))}) == 6000


def test_only_of_an_id() -> None:
    with pytest.raises(ValueError, match="UUID"):
        derived_id("street.jpg", "image")
