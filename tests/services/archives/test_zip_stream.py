"""A ZIP archive that is sent while it is written."""

from __future__ import annotations

import io
import zipfile

from services.archives.zip_stream import GrowingBuffer


def test_bytes_are_taken_once_and_in_order() -> None:
    buffer = GrowingBuffer()
    assert buffer.taken() == b""
    assert (buffer.write(b"one"), buffer.write(memoryview(b"two!"))) == (3, 4)
    assert (buffer.taken(), buffer.taken()) == (b"onetwo!", b"")


def test_what_is_written_later_does_not_change_what_was_written() -> None:
    buffer, data = GrowingBuffer(), bytearray(b"one")
    buffer.write(data)
    data[:] = b"two"
    assert buffer.taken() == b"one"


def test_zipfile_writes_an_archive_into_it_in_parts() -> None:
    buffer = GrowingBuffer()
    parts = []
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("a.txt", "folder/b.txt"):
            archive.writestr(name, name * 100)
            parts.append(buffer.taken())
    parts.append(buffer.taken())
    assert all(parts)
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a.txt": b"a.txt" * 100,
            "folder/b.txt": b"folder/b.txt" * 100,
        }
