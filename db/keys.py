"""Blob keys: how they are made, and how a store checks them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from ekiben.errors import BadInput
from ekiben.temporary_files import TEMPORARY


def new_key(area: Literal["images", "artifacts", "datasets"], id: str, ext: str, now: datetime) -> str:
    """A key such as ``images/2026/11/20/<id>.jpg``: the day of ``now`` in UTC; ``ext`` with or without its dot."""
    return f"{area}/{now.astimezone(UTC):%Y/%m/%d}/{id}.{ext.lstrip('.')}"


def check_key(key: str) -> None:
    """BadInput for a key that is not a relative path of plain names, which could leave the store's folder."""
    parts = key.split("/")
    if (
        any(part in ("", ".", "..") or part.startswith(TEMPORARY) or len(part.encode()) > 255 for part in parts)
        or len(key.encode()) > 1024
        or "\\" in key
        or not key.isprintable()
    ):
        raise BadInput("this cannot be the key of a blob")


def check_prefix(prefix: str) -> None:
    """BadInput for a prefix that no key can have; the empty prefix is that of every key."""
    if prefix:
        check_key(prefix.removesuffix("/"))
