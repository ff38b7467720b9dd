"""Ids: UUIDv7 strings, so that ids made later sort later and indexes stay dense."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    return _uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(base: str, name: str, number: int = 0) -> str:
    """The same UUIDv7 for the same ``base`` (a UUIDv7), ``name`` and ``number``, of the same time as ``base``: what a
    repeated piece of work makes is called as it was the first time. Sorted, they stand by their numbers up to 4095."""
    random = hashlib.sha256(f"{base}/{name}/{number}".encode()).digest()[:10]
    ordered = min(number, 0xFFF).to_bytes(2, "big") + random[2:]  # the 12 bits after the version (RFC 9562: rand_a)
    return _uuid7(uuid.UUID(base).int >> 80, ordered)


def _uuid7(millis: int, random: bytes) -> str:
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant 10
    return str(uuid.UUID(int=value))


LOCAL_OWNER = "local"
