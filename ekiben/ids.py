"""Ids: UUIDv7 strings, so that ids made later sort later and indexes stay dense."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    return _uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def derived_id(base: str, name: str) -> str:
    """The same UUIDv7 for the same ``base`` (a UUIDv7) and ``name``, of the same time as ``base``: what a repeated
    piece of work makes is called as it was the first time."""
    random = hashlib.sha256(f"{base}/{name}".encode()).digest()[:10]
    return _uuid7(uuid.UUID(base).int >> 80, random)


def _uuid7(millis: int, random: bytes) -> str:
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant 10
    return str(uuid.UUID(int=value))
