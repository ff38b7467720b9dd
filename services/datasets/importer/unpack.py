"""Unpacks a ZIP archive of a user, file by file, under names of our own; what the archive states is not trusted.

The fields are those of PKWARE's APPNOTE.TXT (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from ekiben.errors import BadInput, TooLarge
from services.archives.zip_reader import DAMAGED, MAX_DIRECTORY, METHODS, directory_bytes

_CHUNK: Final = 1 << 20
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000  # an entry; strongly; the list of entries too (APPNOTE 4.4.4)
_MOST_TAIL: Final = 65_557 + 76  # behind the list of entries: its end with a comment, and the ZIP64 records
_LOCAL_HEADER: Final = 30
_SHOWN: Final = 80  # characters of a name in a message


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Bounds on what an archive unpacks to.

    Above ``ratio_from_bytes``, a file, and all files together, may not unpack to more than ``ratio`` bytes for each
    byte in the archive. Below, the ratio is free: an empty uncompressed mask would exceed it.
    """

    entries: int = 100_000
    file_bytes: int = 2 * 1024**3
    total_bytes: int = 20 * 1024**3
    ratio: int = 200
    ratio_from_bytes: int = 256 * 1024**2
    depth: int = 16
    name_bytes: int = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: ``name``, its path in the archive, with slashes; ``path`` of its bytes, named by number."""

    name: str
    path: Path


def unpack(
    archive: Path, folder: Path, limits: UnpackLimits | None = None, progress: Callable[[float], None] | None = None
) -> list[Entry]:
    """The files of ``archive`` in its order, their bytes in ``folder``, which must be empty or missing.

    Folders and files that macOS and Windows add are skipped. ``progress`` is called with the share done, 0-1. BadInput
    or TooLarge with a code ``archive_...``; then nothing is left in ``folder``.
    """
    limits = limits or UnpackLimits()
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open("rb") as file:
            return _unpack(file, folder, limits, progress)
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(
    file: IO[bytes], folder: Path, limits: UnpackLimits, progress: Callable[[float], None] | None
) -> list[Entry]:
    _check_entries(file, limits)
    try:
        opened = zipfile.ZipFile(file)
        listed = opened.infolist()
    except DAMAGED:
        raise BadInput("the archive is damaged: its list of entries cannot be read", code="archive_damaged") from None
    _check_overlaps(listed)
    wanted = [(name, info) for info in listed if (name := _checked_name(info, limits)) is not None]
    _check_names(name for name, _ in wanted)
    _check_sizes([info for _, info in wanted], limits)
    total = sum(info.file_size for _, info in wanted) or 1
    done = 0
    entries: list[Entry] = []
    for number, (name, info) in enumerate(wanted):
        path = folder / f"{number:06d}"
        done += _write(opened, info, name, path)
        entries.append(Entry(name, path))
        if progress is not None:
            progress(min(1.0, done / total))
    return entries


def _check_entries(file: IO[bytes], limits: UnpackLimits) -> None:
    """Bound the number of entries before zipfile makes an object of each."""
    size = file.seek(0, 2)
    file.seek(0)
    if size < 22 or file.read(2) != b"PK":
        raise BadInput("the file is no ZIP archive", code="archive_not_zip")
    listed = directory_bytes(file)
    count = 0
    if listed <= MAX_DIRECTORY:
        file.seek(max(0, size - listed - _MOST_TAIL))
        count = file.read().count(b"PK\x01\x02")
    if count > limits.entries or listed > MAX_DIRECTORY:
        raise TooLarge(f"the archive has more than {limits.entries:,} entries", code="archive_entries")
    file.seek(0)


def _check_overlaps(listed: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: they unpack to many times what the archive holds. https://www.bamsoftware.com/hacks/zipbomb/"""
    end = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise BadInput(
                f"the archive is damaged or a bomb: {_shown(info.filename)} overlaps another entry",
                code="archive_bomb",
            )
        end = info.header_offset + _LOCAL_HEADER + info.compress_size


def _checked_name(info: zipfile.ZipInfo, limits: UnpackLimits) -> str | None:
    """The path of the entry, normalized; None for what is skipped. BadInput."""
    raw = info.orig_filename  # unchanged: ``filename`` is cut at a NUL
    shown = _shown(raw)
    raw = raw.replace("\\", "/")  # Windows PowerShell 5 writes the separator of its system
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if (
        raw.startswith("/")
        or ".." in parts
        or "\0" in raw
        or re.match(r"[A-Za-z]:", raw)
        or any(ord(letter) < 32 for letter in raw)
    ):
        raise BadInput(
            f"the archive has a path that leads out of it or that not every system can hold: {shown}",
            code="archive_path",
        )
    if len(raw.encode("utf-8", "surrogatepass")) > limits.name_bytes:
        raise BadInput(f"the archive has a path of more than {limits.name_bytes} bytes: {shown}", code="archive_path")
    if len(parts) > limits.depth:
        raise BadInput(
            f"the archive has folders within folders, more than {limits.depth} deep: {shown}", code="archive_depth"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise BadInput(f"the archive holds a symbolic link: {shown}", code="archive_link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadInput(f"the archive holds a device or another special file: {shown}", code="archive_link")
    if raw.endswith("/") or not parts or _left_behind(parts):
        return None
    if info.flag_bits & _ENCRYPTED:
        raise BadInput(f"the archive is encrypted: {shown}", code="archive_encrypted")
    if info.compress_type not in METHODS:
        raise BadInput(
            f"the archive is compressed by a method that is not read ({info.compress_type}; deflate is): {shown}",
            code="archive_compression",
        )
    return "/".join(parts)


def _left_behind(parts: list[str]) -> bool:
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"the archive has two files of one name: {_shown(name)}", code="archive_duplicate")
        seen.add(name)


def _check_sizes(wanted: list[zipfile.ZipInfo], limits: UnpackLimits) -> None:
    """Bound the sizes that the archive states; ``_write`` refuses a file that unpacks to more."""
    for info in wanted:
        if info.file_size > limits.file_bytes:
            raise TooLarge(
                f"a file in the archive has {info.file_size} bytes, at most {limits.file_bytes} are accepted: "
                f"{_shown(info.filename)}",
                code="archive_too_large",
            )
        if _is_bomb(info.file_size, info.compress_size, limits):
            raise TooLarge(
                f"the archive looks like a bomb: {_shown(info.filename)} unpacks to more than {limits.ratio} times "
                "its size",
                code="archive_bomb",
            )
    total = sum(info.file_size for info in wanted)
    if total > limits.total_bytes:
        raise TooLarge(
            f"the archive unpacks to {total} bytes; at most {limits.total_bytes} are accepted",
            code="archive_too_large",
        )
    if _is_bomb(total, sum(info.compress_size for info in wanted), limits):
        raise TooLarge(
            f"the archive looks like a bomb: it unpacks to more than {limits.ratio} times its size",
            code="archive_bomb",
        )


def _is_bomb(size: int, packed: int, limits: UnpackLimits) -> bool:
    return size > limits.ratio_from_bytes and size > packed * limits.ratio


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path) -> int:
    """Unpack one file; its size, which is exactly the stated one, as is its checksum. BadInput."""
    written = 0
    with path.open("xb") as out:
        try:
            entry = archive.open(info)
        except DAMAGED:
            raise _damaged(name) from None
        with entry:
            while True:
                try:
                    chunk = entry.read(_CHUNK)  # stops at the stated size, and verifies the checksum there
                except DAMAGED:
                    raise _damaged(name) from None
                if not chunk:
                    break
                written += len(chunk)
                out.write(chunk)
    if written != info.file_size:
        raise _damaged(name)
    return written


def _damaged(name: str) -> BadInput:
    return BadInput(
        f"the archive is damaged: {_shown(name)} is not what its list of entries says", code="archive_damaged"
    )


def _shown(name: str) -> str:
    """A name for a message: printable, and not too long."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
