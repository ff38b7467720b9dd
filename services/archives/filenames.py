"""File names from requests, made safe to store."""

from __future__ import annotations


def clean_filename(filename: str | None) -> str | None:
    """The last part of a file name, printable characters only, at most 255; None when nothing is left."""
    if filename is None:
        return None
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:255] or None
