"""Archives of images as the body of a batch, or inside its form."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile

import pytest

from ekiben.errors import BadInput, Refusal, TooLarge
from services.archives import zip_reader
from tests.services.rest.batch_upload.bodies import (
    Taken,
    form,
    limit_images,
    pieces,
    read,
    read_form,
    request,
    text,
    zipped,
)

ENTRIES = [
    ("z.png", b"last"),
    ("folder/", b""),
    ("folder/a.png", b"in a folder"),
    (".hidden.png", b"hidden"),
    ("folder/.DS_Store", b"hidden"),
    ("__MACOSX/a.png", b"of a Mac"),
    ("folder/__MACOSX/._a.png", b"of a Mac"),
    ("b.png", b""),
    ("a.png", b"first"),
]
UNPACKED: Taken = [(b"first", "a.png"), (b"", "b.png"), (b"in a folder", "a.png"), (b"last", "z.png")]


@pytest.mark.parametrize("kind", ["application/zip", "application/x-zip-compressed", "application/zip; x=y"])
def test_an_archive_as_body(kind: str) -> None:
    archive = zipped(*ENTRIES)
    for size in (1, 100, 10**6):
        assert read(request(pieces(archive, size), kind)) == ({}, UNPACKED)


@pytest.mark.parametrize("size", [1, 13, 10**6])
def test_an_archive_in_a_form(size: int) -> None:
    body, kind = form(("operation", text("x")), ("archive", ("a.zip", zipped(*ENTRIES))), ("store", text("true")))
    assert read(request(pieces(body, size), kind)) == ({"operation": "x", "store": "true"}, UNPACKED)


def test_files_come_before_those_of_an_archive() -> None:
    _, taken = read_form(("archive", ("a.zip", zipped(("a", b"1")))), ("files", ("b", b"2")))
    assert taken == [(b"2", "b"), (b"1", "a")]


def test_names_in_an_archive() -> None:
    archive = zipped(("../../up.png", b"1"), ("/etc/absolute.png", b"2"), ("c:\\x\\back.png", b"3"), ("ü.png", b"4"))
    _, taken = read(request([archive], "application/zip"))
    assert sorted((data, name) for data, name in taken if isinstance(data, bytes)) == [
        (b"1", "up.png"),
        (b"2", "absolute.png"),
        (b"3", "back.png"),
        (b"4", "ü.png"),
    ]


def test_an_empty_archive() -> None:
    assert read(request([zipped()], "application/zip")) == ({}, [])


# Named: an archive holds the time, and two processes that collect the tests have to find the same.
@pytest.mark.parametrize(
    "body",
    [b"", b"PK", b"no archive", zipped(("a", b"1"))[:-10], zipped(("a", b"1"))[4:50]],
    ids=["empty", "two letters", "text", "cut off", "a piece"],
)
def test_what_is_no_archive(body: bytes) -> None:
    with pytest.raises(BadInput, match="no ZIP"):
        read(request([body], "application/zip"))


def test_a_damaged_entry_is_refused_alone() -> None:
    noise = random.Random(1).randbytes(2000)
    archive = bytearray(zipped(("a", b"good"), ("b", noise), ("c", b"good as well")))
    place = archive.index(noise[:50]) if noise[:50] in archive else archive.index(b"b", 40) + 500
    archive[place + 20] ^= 0xFF
    _, taken = read(request([bytes(archive)], "application/zip"))
    assert (taken[0], taken[2]) == ((b"good", "a"), (b"good as well", "c"))
    assert isinstance(taken[1][0], BadInput) and taken[1][1] == "b"


def test_an_encrypted_entry_is_refused_alone() -> None:
    archive = bytearray(zipped(("a", b"secret"), ("b", b"plain"), method=zipfile.ZIP_STORED))
    archive[6] |= 1  # the flag in the entry's own header
    archive[archive.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    _, taken = read(request([bytes(archive)], "application/zip"))
    assert isinstance(taken[0][0], BadInput) and taken[0][1] == "a"
    assert taken[1] == (b"plain", "b")


def test_an_entry_without_a_name() -> None:
    """Only a program that wants to break something writes one."""
    archive = zipped(("a", b"1"), ("b", b"2"), method=zipfile.ZIP_STORED)
    directory = archive.index(b"PK\x01\x02")
    entry = bytearray(archive[directory : directory + 47])
    entry[28:30] = (0).to_bytes(2, "little")
    nameless = archive[:directory] + bytes(entry[:46]) + archive[directory + 47 :]
    end = nameless.index(b"PK\x05\x06")
    size = int.from_bytes(nameless[end + 12 : end + 16], "little") - 1
    nameless = nameless[: end + 12] + size.to_bytes(4, "little") + nameless[end + 16 :]
    _, taken = read(request([nameless], "application/zip"))
    assert (b"2", "b") in taken


METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": 12, "lzma": 14}


@pytest.mark.parametrize("method", list(METHODS))
def test_damage_anywhere_is_a_refusal(method: str) -> None:
    """Single bytes changed, bytes cut out: a refusal of the whole or of an entry, nothing else."""
    chance = random.Random(5)
    archive = zipped(("a.png", b"abc" * 40), ("b/c.png", chance.randbytes(100)), method=METHODS[method])
    for _ in range(200):
        damaged = bytearray(archive)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            start = chance.randrange(len(damaged))
            del damaged[start : start + chance.randint(1, 40)]
        try:
            entries = list(zip_reader.open_archive(io.BytesIO(bytes(damaged))))
        except Refusal:
            continue
        assert all(isinstance(data, bytes | Refusal) for data, _ in entries)


@pytest.mark.parametrize("method", ["deflate", "bzip2", "lzma"])
def test_an_entry_that_unpacks_to_too_much(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 100_000)
    bomb = zipped(("a", b"before"), ("bomb", bytes(32_000_000)), ("c", b"after"), method=METHODS[method])
    assert len(bomb) < 50_000
    tracemalloc.start()
    try:
        _, taken = read(request([bomb], "application/zip"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (taken[1][1], type(taken[1][0])) in (("bomb", TooLarge), ("bomb", BadInput))
    assert taken[2] == (b"after", "c") or isinstance(taken[2][0], BadInput)
    assert peak < 4_000_000


def test_the_limit_holds_for_what_an_archive_unpacks_to() -> None:
    archive = zipped(*((f"{n}", bytes(100_000)) for n in range(20)))
    assert len(archive) < 10_000
    assert len(read(request([archive], "application/zip"), limit=2_000_000)[1]) == 20
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request([archive], "application/zip"), limit=1_999_999)


def test_the_limit_holds_for_entries_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked only to be refused costs as much: a small archive must not keep a server busy for hours."""
    limit_images(monkeypatch, 100_000)
    archive = zipped(*((f"{n}", bytes(200_000)) for n in range(20)))
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request([archive], "application/zip"), limit=500_000)


def test_what_is_said_of_a_size_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory says 10 bytes; the entry holds more than may be."""
    limit_images(monkeypatch, 1000)
    data = bytes(5_000_000)
    archive = bytearray(zipped(("a", data)))
    directory = archive.index(b"PK\x01\x02")
    for place in (22, directory + 24):
        assert archive[place : place + 4] == len(data).to_bytes(4, "little")
        archive[place : place + 4] = (10).to_bytes(4, "little")
    _, [(taken, name)] = read(request([bytes(archive)], "application/zip"))
    assert name == "a" and isinstance(taken, BadInput)
