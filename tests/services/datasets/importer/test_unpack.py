"""Unpacking archives: what comes out, and that each hostile one is refused in words of its own and leaves nothing."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ekiben.errors import BadInput, Refusal, TooLarge
from services.datasets.importer.unpack import Entry, UnpackLimits, unpack
from tests.models.peak import peak_growth_bytes

SMALL = UnpackLimits(
    entries=50,
    file_bytes=4_000_000,
    total_bytes=6_000_000,
    ratio=100,
    ratio_from_bytes=1_000_000,
    depth=4,
    name_bytes=99,
)
NOISE = bytes(i * i * 31 % 251 for i in range(5000))


def zipped(*files: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data, compress_type=method)
    return out.getvalue()


def special(mode: int) -> bytes:
    info = zipfile.ZipInfo("images/a.png")
    info.external_attr = (mode | 0o644) << 16
    return zipped((info, b"/etc/passwd"))


def central(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def patched(data: bytes, *, local: int, listed: int, form: str, value: int) -> bytes:
    """The first entry's field changed in its own header and in the list of entries."""
    out = bytearray(data)
    struct.pack_into(form, out, local, value)
    struct.pack_into(form, out, central(data) + listed, value)
    return bytes(out)


def renamed(name: bytes) -> bytes:
    """An archive whose one entry is called ``name``, which zipfile itself would not write."""
    return zipped(("x" * len(name), NOISE)).replace(b"x" * len(name), name)


def overlapping() -> bytes:
    """Two entries in the list that share one entry's bytes."""
    data = zipped(("a.png", NOISE))
    start, end = central(data), data.rindex(b"PK\x05\x06")
    listed = data[start:end]
    tail = bytearray(data[end:])
    struct.pack_into("<HHLL", tail, 8, 2, 2, 2 * len(listed), start)
    return data[:start] + listed + listed.replace(b"a.png", b"b.png") + bytes(tail)


def unchecked(size: int) -> bytes:
    """An entry that says ``size`` and unpacks to 5000 bytes."""
    return patched(zipped(("a.png", NOISE)), local=22, listed=24, form="<L", value=size)


def duplicate() -> bytes:
    return zipped(("images/a.png", NOISE), ("images/b.png", NOISE)).replace(b"b.png", b"a.png")


def damaged() -> bytes:
    data = bytearray(zipped(("a.png", NOISE), method=zipfile.ZIP_STORED))
    data[1000] ^= 255
    return bytes(data)


def unpacked(data: bytes, folder: Path, limits: UnpackLimits = SMALL) -> dict[str, bytes]:
    archive = folder / "upload"
    archive.write_bytes(data)
    return {entry.name: entry.path.read_bytes() for entry in unpack(archive, folder / "files", limits)}


def test_files_lie_under_numbers_in_the_order_of_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "upload"
    archive.write_bytes(zipped(("images/ä b.png", NOISE), ("masks/", b""), ("./masks//ä b.png", b"mask")))
    told: list[float] = []
    entries = unpack(archive, tmp_path / "files", progress=told.append)
    assert entries == [
        Entry("images/ä b.png", tmp_path / "files" / "000000"),
        Entry("masks/ä b.png", tmp_path / "files" / "000001"),
    ]
    assert [entry.path.read_bytes() for entry in entries] == [NOISE, b"mask"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["000000", "000001"]
    assert told == [5000 / 5004, 1.0]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_entries_are_read(method: int, tmp_path: Path) -> None:
    assert unpacked(zipped(("a.png", NOISE), ("b.png", b"")), tmp_path) == {"a.png": NOISE, "b.png": b""}
    assert unpacked(zipped(), tmp_path / ".") == {}


def test_what_systems_leave_behind_is_passed_over(tmp_path: Path) -> None:
    names = ("__MACOSX/images/._a.png", "images/.DS_Store", "images/._a.png", "images/Thumbs.db", "images/desktop.ini")
    files = unpacked(zipped(*((name, b"x") for name in names), ("images/a.png", NOISE)), tmp_path)
    assert files == {"images/a.png": NOISE}


def test_names_with_the_separator_of_windows(tmp_path: Path) -> None:
    """As Windows PowerShell 5 writes them, folders too."""
    names = ("images\\", "images\\a.png", "masks\\left\\a.png", "__MACOSX\\images\\._a.png")

    def windows(*names: str) -> bytes:
        data = zipped(*((name.replace("\\", "/"), b"" if name.endswith("\\") else NOISE) for name in names))
        for name in names:
            data = data.replace(name.replace("\\", "/").encode(), name.encode())
        return data

    assert unpacked(windows(*names), tmp_path) == {"images/a.png": NOISE, "masks/left/a.png": NOISE}
    twice = zipped(("images/a.png", NOISE), ("images/b.png", b"x")).replace(b"images/b.png", rb"images\a.png")
    with pytest.raises(BadInput, match="two files of one name") as refused:
        unpacked(twice, tmp_path / ".")
    assert refused.value.code == "archive_duplicate"


def test_an_archive_with_something_before_it_is_read_where_it_begins_like_one(tmp_path: Path) -> None:
    out = io.BytesIO(b"PK" + bytes(100))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("a.png", NOISE)
    assert unpacked(out.getvalue(), tmp_path) == {"a.png": NOISE}


REFUSED = [
    (
        "text",
        b"hello, I am a text file, and a rather long one",
        BadInput,
        "archive_not_zip",
        "the file is no ZIP archive",
    ),
    ("empty", b"", BadInput, "archive_not_zip", "the file is no ZIP archive"),
    ("cut off", zipped(("a.png", NOISE))[:-60], BadInput, "archive_damaged", "its list of entries cannot be read"),
    ("changed", damaged(), BadInput, "archive_damaged", "'a.png' is not what its list of entries says"),
    (
        "encrypted",
        patched(zipped(("a.png", NOISE)), local=6, listed=8, form="<H", value=1),
        BadInput,
        "archive_encrypted",
        "the archive is encrypted: 'a.png'",
    ),
    (
        "upwards",
        zipped(("../../etc/cron.d/x", b"x")),
        BadInput,
        "archive_path",
        "leads out of it.*'../../etc/cron.d/x'",
    ),
    ("upwards inside", zipped(("images/../../x", b"x")), BadInput, "archive_path", "leads out of it"),
    ("upwards in leftovers", zipped(("__MACOSX/../../x", b"x")), BadInput, "archive_path", "leads out of it"),
    ("a folder upwards", zipped(("../x/", b"")), BadInput, "archive_path", "leads out of it"),
    ("absolute", zipped(("/etc/passwd", b"x")), BadInput, "archive_path", "leads out of it.*'/etc/passwd'"),
    ("drive", zipped(("C:/windows/x", b"x")), BadInput, "archive_path", "leads out of it.*'C:/windows/x'"),
    ("upwards, Windows", renamed(rb"..\x"), BadInput, "archive_path", "leads out of it"),
    ("upwards inside, Windows", renamed(rb"images\..\..\x"), BadInput, "archive_path", "leads out of it"),
    ("upwards, mixed", renamed(rb"images/..\x"), BadInput, "archive_path", "leads out of it"),
    ("drive, Windows", renamed(rb"C:\x"), BadInput, "archive_path", "leads out of it"),
    ("root, Windows", renamed(rb"\x"), BadInput, "archive_path", "leads out of it"),
    ("share, Windows", renamed(rb"\\server\x"), BadInput, "archive_path", "leads out of it"),
    ("deep, Windows", renamed(rb"a\b\c\d\e.png"), BadInput, "archive_depth", "more than 4 deep"),
    ("NUL", renamed(b"a.png\0.exe"), BadInput, "archive_path", "not every system can hold"),
    ("newline", renamed(b"a\npng"), BadInput, "archive_path", "not every system can hold"),
    ("long name", zipped(("x" * 100, b"x")), BadInput, "archive_path", "a path of more than 99 bytes"),
    ("link", special(stat.S_IFLNK), BadInput, "archive_link", "holds a symbolic link: 'images/a.png'"),
    ("device", special(stat.S_IFBLK), BadInput, "archive_link", "a device or another special file"),
    ("pipe", special(stat.S_IFIFO), BadInput, "archive_link", "a device or another special file"),
    (
        "many",
        zipped(*((f"{i}.png", b"") for i in range(51))),
        TooLarge,
        "archive_entries",
        "the archive has more than 50 entries",
    ),
    ("deep", zipped(("a/b/c/d/e.png", b"x")), BadInput, "archive_depth", "folders within folders, more than 4 deep"),
    (
        "bzip2",
        zipped(("a.png", NOISE), method=zipfile.ZIP_BZIP2),
        BadInput,
        "archive_compression",
        r"compressed by a method that is not read \(12; deflate is\): 'a.png'",
    ),
    ("LZMA", zipped(("a.png", NOISE), method=zipfile.ZIP_LZMA), BadInput, "archive_compression", "by a method"),
    ("twice", duplicate(), BadInput, "archive_duplicate", "two files of one name: 'images/a.png'"),
    (
        "twice, written differently",
        zipped(("a.png", b""), ("./a.png", b"")),
        BadInput,
        "archive_duplicate",
        "two files",
    ),
    ("overlapping", overlapping(), BadInput, "archive_bomb", "'b.png' overlaps another entry"),
    ("bomb", zipped(("a.png", bytes(2_000_000))), TooLarge, "archive_bomb", "'a.png' unpacks to more than 100 times"),
    (
        "bomb of many",
        zipped(*((f"{i}.png", bytes(500_000)) for i in range(9))),
        TooLarge,
        "archive_bomb",
        "it unpacks to more than 100 times its size",
    ),
    (
        "large file",
        zipped(("a.png", NOISE * 900), method=zipfile.ZIP_STORED),
        TooLarge,
        "archive_too_large",
        "a file in the archive has 4500000 bytes, at most 4000000",
    ),
    (
        "large in all",
        zipped(*((f"{i}.png", NOISE * 500) for i in range(3)), method=zipfile.ZIP_STORED),
        TooLarge,
        "archive_too_large",
        "the archive unpacks to 7500000 bytes; at most 6000000",
    ),
    ("says less", unchecked(4000), BadInput, "archive_damaged", "'a.png' is not what its list of entries says"),
    ("says more", unchecked(6000), BadInput, "archive_damaged", "'a.png' is not what its list of entries says"),
]


@pytest.mark.parametrize(
    ("data", "refusal", "code", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_each_hostile_archive_is_refused_in_its_own_words(
    data: bytes, refusal: type[Refusal], code: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(refusal, match=sentence) as caught:
        unpacked(data, tmp_path)
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


def test_what_was_written_before_the_refusal_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    archive = tmp_path / "upload"
    data = bytearray(zipped(("a.png", NOISE), ("b.png", NOISE), method=zipfile.ZIP_STORED))
    data[data.rindex(NOISE) + 9] ^= 255
    archive.write_bytes(data)
    seen: list[list[str]] = []

    def look(share: float) -> None:
        seen.append([path.name for path in folder.iterdir()])

    with pytest.raises(BadInput, match=r"'b\.png' is not what"):
        unpack(archive, folder, SMALL, look)
    assert seen == [["000000"]]
    assert list(folder.iterdir()) == []


def test_no_more_is_written_than_the_archive_admits(tmp_path: Path) -> None:
    """Says 10 bytes, holds a thousand times as many: the read ends where the size does, whatever the limits."""
    data = patched(zipped(("a.png", bytes(10_000_000))), local=22, listed=24, form="<L", value=10)
    written: list[int] = []
    real: Callable[..., bytes] = zipfile.ZipExtFile.read

    def read(self: zipfile.ZipExtFile, n: int = -1) -> bytes:
        chunk = real(self, n)
        written.append(len(chunk))
        return chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", read)
        with pytest.raises(BadInput, match="is not what its list"):
            unpacked(data, tmp_path, replace(SMALL, ratio_from_bytes=10**9))
    assert sum(written) <= 10


def test_a_list_of_a_million_entries_costs_little(tmp_path: Path) -> None:
    header = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, count * len(header), 0, 0)
    data = header * count + end

    def refused() -> None:
        with pytest.raises(TooLarge, match="more than 100,000 entries"):
            unpacked(data, tmp_path, UnpackLimits())

    assert peak_growth_bytes(refused) < 150 << 20
