"""The memory-mapped files of prometheus_client, with their blocks on the disk from the start."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from prometheus_client import mmap_dict, values

log = logging.getLogger(__name__)

_FIRST_BYTES = 1 << 16  # as prometheus_client's own
_MORE_BYTES = 4096


class AllocatedDict(mmap_dict.MmapedDict):
    """prometheus_client maps files with holes. Where the disk is full, writing into a hole kills the process (SIGBUS):
    here a file has its blocks before it is mapped. Without space the values stay in memory: the process goes on
    counting, and others see what it had counted until then."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode and not _allocated(Path(filename)):
            filename = f"/proc/self/fd/{os.memfd_create('metrics')}"
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + _MORE_BYTES > self._capacity:
            self._capacity *= 2
            try:
                os.posix_fallocate(self._f.fileno(), 0, self._capacity)
                self._m = mmap.mmap(self._f.fileno(), self._capacity)
            except OSError as error:
                log.warning("metrics are kept in memory: %s", error)
                larger = mmap.mmap(-1, self._capacity)
                larger[: len(self._m)] = self._m[:]
                self._m = larger
        super()._init_value(key)  # type: ignore[no-untyped-call]


def install() -> None:
    """Let the metrics of this process use such files. To be called before any metric is made."""
    values.MmapedDict = AllocatedDict  # type: ignore[attr-defined]


def _allocated(path: Path) -> bool:
    try:
        with path.open("ab") as file:
            if os.fstat(file.fileno()).st_size < _FIRST_BYTES:
                os.posix_fallocate(file.fileno(), 0, _FIRST_BYTES)
    except OSError as error:
        log.warning("metrics are kept in memory: %s", error)
        return False
    return True
