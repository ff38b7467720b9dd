"""Reading a batch: whatever the chunks, every image comes once and in order, and nothing fills the memory."""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.requests import Request

from ekiben.errors import BadInput, CallerLeft, Refusal, TooLarge, TooSlow
from services.archives import zip_reader
from services.rest.middleware import RequestMiddleware
from services.rest.uploads import batch_upload, multipart, request_body
from services.rest.uploads.batch_upload import read_batch

Taken = list[tuple[bytes | Refusal, str | None]]
MANY = 10**9
FOLDER = Path(tempfile.gettempdir())


def limit_images(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    for module in (multipart, batch_upload, zip_reader):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", limit)


def request(
    chunks: Sequence[bytes], content_type: str, *, declared: int | None = None, cut: bool = False, **scope: Any
) -> Request:
    """A request whose body comes in ``chunks``; ``cut``: after them the caller is gone."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if cut else {"type": "http.request", "body": b"", "more_body": False})
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return next(left)

    headers = [(b"content-type", content_type.encode())]
    if declared is not None:
        headers.append((b"content-length", str(declared).encode()))
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, **scope}, receive)


def read(requested: Request, limit: int = MANY) -> tuple[dict[str, Any], Taken]:
    """The fields, and what was taken."""
    taken: Taken = []

    async def take(data: bytes | Refusal, filename: str | None) -> None:
        taken.append((data, filename))

    form = asyncio.run(read_batch(requested, limit, take, FOLDER))
    return form.fields, taken


def form(*parts: tuple[str, Any], boundary: str | None = None) -> tuple[bytes, str]:
    """A form as a real client builds it, its parts in their order, and its content type."""
    headers = {} if boundary is None else {"content-type": f"multipart/form-data; boundary={boundary}"}
    built = httpx.Request("POST", "http://x", files=list(parts), headers=headers)
    return built.read(), built.headers["content-type"]


def read_form(*parts: tuple[str, Any], limit: int = MANY) -> tuple[dict[str, Any], Taken]:
    body, kind = form(*parts)
    return read(request([body], kind), limit)


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def text(value: str) -> tuple[None, bytes]:
    return None, value.encode()


# ---- forms ----

FILES = [("a.png", b"first"), ("b.png", b"\r\n--" + bytes(range(256)) * 3), ("c.png", b""), ("d.png", b"-\r\n" * 50)]
PARTS = [
    ("operation", text("classify")),
    ("files", FILES[0]),
    ("files", FILES[1]),
    ("parameters", text('{"top_k": 2}')),
    ("files", FILES[2]),
    ("files", FILES[3]),
    ("store", text("false")),
]
FIELDS = {"operation": "classify", "parameters": '{"top_k": 2}', "store": "false"}
WANTED = [(data, name) for name, data in FILES]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 300, 10**6])
def test_the_chunks_of_a_form_may_end_anywhere(size: int) -> None:
    body, kind = form(*PARTS)
    assert read(request(pieces(body, size), kind)) == (FIELDS, WANTED)


@examples(max_examples=25)
@given(cuts=st.lists(st.integers(0, 3000), max_size=30), files=st.lists(st.binary(max_size=300), max_size=6))
def test_any_files_in_any_chunks(cuts: list[int], files: list[bytes]) -> None:
    body, kind = form(("operation", text("x")), *(("files", (f"{n}", data)) for n, data in enumerate(files)))
    ends = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    chunks = [body[start:end] for start, end in pairwise(ends)]
    fields, taken = read(request(chunks, kind))
    assert fields == {"operation": "x"}
    assert taken == [(data, str(number)) for number, data in enumerate(files)]


def test_images_are_taken_while_the_rest_is_on_its_way() -> None:
    body, kind = form(*PARTS)
    seen: list[int] = []
    taken: list[int] = []

    async def main() -> None:
        plain = request(pieces(body, 50), kind)
        receive = plain.receive

        async def counted() -> Any:
            seen.append(len(taken))
            return await receive()

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            taken.append(1)

        await read_batch(Request(plain.scope, counted), MANY, take, FOLDER)

    asyncio.run(main())
    assert seen[0] == 0 and {1, 2, 3, 4} <= set(seen)


def test_an_image_that_is_too_large_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 100)
    parts = [("files", ("a", b"x" * 100)), ("files", ("big", b"y" * 101)), ("files", ("c", b"z"))]
    body, kind = form(*parts)
    for size in (1, 33, 10**6):
        _, taken = read(request(pieces(body, size), kind))
        assert [name for _, name in taken] == ["a", "big", "c"]
        assert taken[0][0] == b"x" * 100 and taken[2][0] == b"z"
        assert isinstance(taken[1][0], TooLarge) and "100 bytes" in taken[1][0].message


def test_what_is_too_large_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 100_000)
    chunk = b"y" * 50_000
    head, kind = form(("files", ("big", b"@")), boundary="end")
    start, tail = head.split(b"@")

    async def main() -> tuple[Taken, int]:
        taken: Taken = []
        chunks = iter([start, *([chunk] * 400), tail])

        async def receive() -> dict[str, Any]:
            part = next(chunks, b"")
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            taken.append((data, filename))

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
        tracemalloc.start()
        try:
            await read_batch(Request(scope, receive), MANY, take, FOLDER)
            return taken, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    taken, peak = asyncio.run(main())
    assert len(taken) == 1 and isinstance(taken[0][0], TooLarge)
    assert peak < 2_000_000  # of 20 MB


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("photo.png", "photo.png"),
        ("C:\\Users\\me\\photo.png", "photo.png"),
        ("../../etc/passwd", "passwd"),
        ("größe 1.png", "größe 1.png"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_file_name_is_its_last_part(name: str, kept: str) -> None:
    _, [(data, filename)] = read_form(("files", (name, b"1")))
    assert (data, filename) == (b"1", kept)


def test_forms_that_are_refused() -> None:
    with pytest.raises(BadInput, match="twice"):
        read_form(("operation", text("a")), ("operation", text("b")))
    with pytest.raises(BadInput, match=r"'photos'.*'files'"):
        read_form(("photos", ("a.png", b"1")))
    with pytest.raises(BadInput, match="more than one 'archive'"):
        read_form(("archive", ("a.zip", zipped(("a", b"1")))), ("archive", ("b.zip", zipped(("b", b"1")))))
    with pytest.raises(BadInput, match="UTF-8"):
        read_form(("operation", (None, b"\xff\xfe")))


def test_a_long_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_FIELD", 1000)
    assert read_form(("parameters", text("x" * 1000)))[0] == {"parameters": "x" * 1000}
    with pytest.raises(TooLarge, match="'parameters'"):
        read_form(("parameters", text("x" * 1001)))


def test_fields_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in memory: many of them must not add up to the limit of a batch, which is gigabytes."""
    monkeypatch.setattr(multipart, "MAX_FIELD", 1000)
    body, kind = form(*((f"field{number}", text("x" * 1000)) for number in range(1000)))
    with pytest.raises(BadInput):
        read(request([body], kind))


def test_a_form_that_is_cut_off() -> None:
    body, kind = form(*PARTS)
    for end in (0, 1, 60, len(body) // 2, len(body) - 60, len(body) - 5):
        with pytest.raises(BadInput, match=r"cut off|malformed"):
            read(request([body[:end]], kind))
    with pytest.raises(CallerLeft):
        read(request([body[:200]], kind, cut=True))


@examples(max_examples=40)
@given(garbage=st.binary(max_size=400), head=st.integers(0, 400))
def test_a_malformed_form_is_a_refusal(garbage: bytes, head: int) -> None:
    body, _ = form(*PARTS, boundary="end")
    try:
        fields, _ = read(request([body[:head] + garbage], "multipart/form-data; boundary=end"))
    except Refusal:
        return
    assert set(fields) <= {"operation", "parameters", "store"} or garbage


def test_other_bodies() -> None:
    for kind in ("image/png", "text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded"):
        with pytest.raises(BadInput, match="send a multipart form"):
            read(request([b"x"], kind))


# ---- JSON ----


def test_json() -> None:
    requested = {"operation": "classify", "image_ids": ["a", "b"], "parameters": {"top_k": 1}}
    body = orjson.dumps(requested)
    for kind in ("application/json", "application/json; charset=utf-8"):
        assert read(request(pieces(body, 5), kind)) == (requested, [])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"1", b'"x"', b"null", b"\xff", b"[" * 5000])
def test_bad_json(body: bytes) -> None:
    with pytest.raises(BadInput, match="JSON"):
        read(request([body], "application/json"))


# ---- limits ----


def test_the_limit_of_all_bytes() -> None:
    body, kind = form(*PARTS)
    assert len(read(request([body], kind, declared=len(body)), limit=len(body))[1]) == 4
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request(pieces(body, 10), kind), limit=len(body) - 1)
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request([], kind, declared=len(body)), limit=len(body) - 1)
    archive = zipped(("a", random.Random(0).randbytes(1000)))
    with pytest.raises(TooLarge):
        read(request([archive], "application/zip"), limit=1000)


def test_a_body_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", 0.1)
    monkeypatch.setattr(request_body, "SLOWEST_BYTES_PER_S", 1_000_000)
    body, kind = form(*PARTS)

    async def main(work_s: float, pause_s: float) -> int:
        chunks = iter(pieces(body, 400))
        taken = 0

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            part = next(chunks, b"")
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            nonlocal taken
            await asyncio.sleep(work_s)
            taken += 1

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
        await read_batch(Request(scope, receive), MANY, take, FOLDER)
        return taken

    with pytest.raises(TooSlow):
        asyncio.run(main(0, 0.08))
    assert asyncio.run(main(0.08, 0.001)) == 4  # it was not the caller who was waited for


class Upload:
    """A request through the front, whose body comes as the test sends it."""

    def __init__(self, front: RequestMiddleware, path: str, kind: str) -> None:
        self.status = 0
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        headers = [(b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        self.task = asyncio.ensure_future(front(scope, self._receive, self._send))

    async def send(self, chunk: bytes | None) -> None:
        """None: the end. Returns when it was read as far as it will be."""
        self._chunks.put_nowait(chunk)
        await asyncio.sleep(0.01)

    async def _receive(self) -> dict[str, Any]:
        chunk = await self._chunks.get()
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


async def batch_app(scope: Any, receive: Any, send: Any) -> None:
    """A batch, or at /plain a route that holds its body."""

    async def take(data: bytes | Refusal, filename: str | None) -> None:
        pass

    if scope["path"] == "/plain":
        await Request(scope, receive).body()
    else:
        await read_batch(Request(scope, receive), MANY, take, FOLDER)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_what_was_taken_over_does_not_count_at_the_front() -> None:
    """Two bodies at once, each larger than what the front lets all requests hold together."""
    body, kind = form(*(("files", (f"{n}", bytes(1000))) for n in range(20)))
    chunks = pieces(body, 2500)

    async def both(path: str) -> list[int]:
        front = RequestMiddleware(batch_app, batch_app, None, max_body_bytes=10_000)
        uploads = [Upload(front, path, kind) for _ in range(2)]
        for chunk in (*chunks, None):
            for upload in uploads:
                await upload.send(chunk)
        await asyncio.gather(*(upload.task for upload in uploads))
        return sorted(upload.status for upload in uploads)

    async def main() -> None:
        assert await both("/batch") == [200, 200]
        assert await both("/plain") == [200, 503]  # whoever holds its body does count

    asyncio.run(main())


@pytest.mark.parametrize("what", ["file", "field", "json"])
def test_what_is_still_in_memory_counts_at_the_front(what: str) -> None:
    """Two callers who send most of something and then stall: together more than may be held."""
    body, kind = form(
        ("files" if what == "file" else "parameters", ("a", bytes(9000)) if what == "file" else text("x" * 9000))
    )
    if what == "json":
        body, kind = b'{"parameters": "' + b"x" * 9000 + b'"}', "application/json"

    async def main() -> None:
        front = RequestMiddleware(batch_app, batch_app, None, max_body_bytes=10_000)
        first, second = Upload(front, "/batch", kind), Upload(front, "/batch", kind)
        for upload in (first, second):
            for chunk in pieces(body[:8000], 1000):
                await upload.send(chunk)
        assert second.status == 503
        await first.send(body[8000:])
        await first.send(None)
        await first.task
        assert first.status == 200
        second.task.cancel()

    asyncio.run(main())


# ---- archives ----

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


def test_an_error_of_whoever_takes_ends_the_reading() -> None:
    body, kind = form(("files", ("a", b"1")), ("files", ("b", b"2")), ("archive", ("z", zipped(("c", b"3")))))
    stop_at: list[Callable[[int], bool]] = [lambda n: n == 1, lambda n: n == 3]
    for stop in stop_at:
        count = 0

        async def take(data: bytes | Refusal, filename: str | None, stop: Callable[[int], bool] = stop) -> None:
            nonlocal count
            count += 1
            if stop(count):
                raise BadInput("enough")

        with pytest.raises(BadInput, match="enough"):
            asyncio.run(read_batch(request([body], kind), MANY, take, FOLDER))
        assert stop(count)
