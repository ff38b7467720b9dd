"""Ids: UUIDv7 strings, which sort by the time of their creation and keep database indexes dense."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def new_id() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    return _uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(base: str, name: str, number: int = 0) -> str:
    """A UUIDv7 that depends on ``base`` (a UUIDv7), ``name`` and ``number`` alone, with the time of ``base``.

    Work that is repeated thus gives its results the ids of the first attempt. Ids of one ``base`` sort by ``number`` up
    to 4095.
    """
    random = hashlib.sha256(f"{base}/{name}/{number}".encode()).digest()[:10]
    ordered = min(number, 0xFFF).to_bytes(2, "big") + random[2:]  # the 12 bits after the version (RFC 9562: rand_a)
    return _uuid7(uuid.UUID(base).int >> 80, ordered)


def _uuid7(millis: int, random: bytes) -> str:
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant 10
    return str(uuid.UUID(int=value))


LOCAL_OWNER = "local"
