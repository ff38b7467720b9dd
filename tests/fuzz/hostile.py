"""Values at the edges of types, and mutations of JSON trees, all from a ``random.Random``: a seed repeats them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

INTEGERS = (0, -1, 1, 2, 3, 7, 255, 256, 257, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1)
LARGE = (2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e-9, 0.999999, 1.000001, 1e308, -1e308, 3.4e38, 1e19, 0.1 + 0.2)
NOT_FINITE = (math.nan, math.inf, -math.inf)
WORDS = (
    "", " ", "0", "-1", "null", "true", "None", "NaN", "Infinity", "-Infinity", "1e308", "1e999", "0x10", "1_000", "٣",
    "\uff11",
    "9223372036854775808", "18446744073709551616", "9" * 400, "-" * 50, "a" * 5000, "é" * 300, "\u202e\u0000",
    "\ud83d\ude00", "\x00",
    "\x1b[31m", "a\nb", "a\r\nX-Injected: 1", "../../etc/passwd", "..%2f..%2f", "%00", "%", "%zz", "C:\\x", "//", ".",
    "..",
    "<script>", "' OR 1=1 --", "{{7*7}}", "${x}", "\ufeff", "e\u0301", "ﷺ" * 40, "\ufffe", "[]", "{}", '"', "[[[[",
    ",", ";", ",,,,", "*",
    "classify", "areas", "sam_toy", "nope", "00000000-0000-0000-0000-000000000000", "a,b", "0,255", "0,0", "255,0",
    "nan,nan", "1e308,-1e308",
    "data:image/png;base64,AAAA", "file:///etc/passwd", "http://127.0.0.1:1/", "2026-11-29T00:00:00Z",
)  # fmt: skip


def integer(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(INTEGERS)
    if kind < 0.75:
        return rng.choice(LARGE)
    return rng.choice((1, -1)) * rng.getrandbits(rng.choice((3, 8, 16, 31)))


def number(rng: random.Random) -> float | int:
    kind = rng.random()
    if kind < 0.4:
        return integer(rng)
    return rng.choice(NOT_FINITE) if kind > 0.9 else rng.choice(FLOATS)


def word(rng: random.Random) -> str:
    text = rng.choice(WORDS)
    if rng.random() < 0.1:
        text = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xA0, 0x2FF), 0x1F600))) for _ in range(9))
    return text


def scalar(rng: random.Random) -> Any:
    return rng.choice((integer, number, word, lambda r: r.choice((None, True, False))))(rng)


def deep(rng: random.Random) -> Any:
    tree: Any = scalar(rng)
    for _ in range(rng.choice((3, 40, 300))):
        tree = [tree] if rng.random() < 0.5 else {"a": tree}
    return tree


def anything(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.75:
        return scalar(rng)
    if kind < 0.85:
        return [scalar(rng) for _ in range(rng.choice((0, 1, 2, 3, 100)))]
    if kind < 0.95:
        return {word(rng)[:20]: scalar(rng) for _ in range(rng.choice((0, 1, 4)))}
    return deep(rng)


def changed(tree: Any, rng: random.Random) -> Any:
    """``tree`` with one node replaced, removed, doubled, wrapped or renamed. Numbers mostly become other numbers."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places or rng.random() < 0.03:
        return anything(rng)
    node, key = rng.choice(places)
    old, kind = node[key], rng.random()
    if kind < 0.45:
        near = isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.8
        node[key] = number(rng) if near else word(rng) if isinstance(old, str) and rng.random() < 0.5 else anything(rng)
    elif kind < 0.6:
        del node[key]
    elif kind < 0.75 and isinstance(node, list):
        node.extend([old] * rng.choice((1, 1, 2, 50, 1000)))
    elif kind < 0.75:
        node[word(rng)[:60]] = old
    elif kind < 0.85:
        node[key] = [old]
    elif isinstance(node, list):
        rng.shuffle(node)
    else:
        node[key] = scalar(rng)
    return tree


def text_of(tree: Any, rng: random.Random) -> bytes:
    """JSON; sometimes of another spelling, or with numbers that JSON does not have."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, None, None, 1)))
    if rng.random() < 0.02:
        text = rng.choice(("\ufeff" + text, text + text, text[:-1], text.replace('"', "'"), text + "\x00", "[" * 2000))
    return text.encode("utf-8", "surrogatepass")
