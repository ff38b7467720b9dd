"""Settings that are lists, pairs or addresses in one text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urldefrag, urlsplit

MODEL_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_NAMED = re.compile(rf"({MODEL_NAME})=(.*)", re.DOTALL)


def listed(value: str) -> tuple[str, ...]:
    """The parts between commas, in lower case and without blanks around them."""
    return tuple(part.strip().lower() for part in value.split(",") if part.strip())


def pairs(value: str, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    """The pairs of ``key=model,key=model``. ValueError for another form, and for keys that are not among ``keys``."""
    found = []
    for part in filter(None, (each.strip() for each in value.split(","))):
        key, equals, named = (text.strip() for text in part.partition("="))
        if not equals or key not in keys or not re.fullmatch(MODEL_NAME, named):
            raise ValueError(f"{part[:80]!r} is not task=model with a task of {', '.join(keys)}")
        found.append((key, named))
    return found


@dataclass(frozen=True, slots=True)
class WeightsAddress:
    """Where a file of weights is. ``sha256``: its checksum, 64 hexadecimal digits; empty: that of the publisher."""

    url: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class WeightsAddresses:
    """``mirror``: address of a folder with the published files, empty for none; ``by_name``: of single models."""

    mirror: str = ""
    by_name: dict[str, WeightsAddress] = field(default_factory=dict)


def weights_addresses(value: str) -> WeightsAddresses:
    """What ``address,name=address#sha256=...`` says: at most one address without a name. ValueError."""
    mirror, by_name = "", {}
    for part in filter(None, (each.strip() for each in value.split(","))):
        named = _NAMED.fullmatch(part)
        url, fragment = urldefrag(named[2] if named else part)
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"{part[:80]!r} is no http(s) address")
        if named is None:
            if mirror or fragment:
                raise ValueError("one mirror is named, without #; other addresses are given as name=address")
            mirror = url.rstrip("/")
            continue
        digest = _SHA256.fullmatch(fragment)
        if fragment and digest is None:
            raise ValueError(f"what follows # in the address of {named[1]} is not sha256= and 64 hexadecimal digits")
        if not urlsplit(url).path.rsplit("/", 1)[-1]:
            raise ValueError(f"the address of {named[1]} names no file")
        by_name[named[1]] = WeightsAddress(url, digest[1].lower() if digest else "")
    return WeightsAddresses(mirror, by_name)
