"""Asks ``/livez`` every 200 ms over one connection, in a process of its own. Arguments: host, port, the server's pid.

Writes a JSON line for each answer: when (monotonic seconds), how long it took, how late the probe itself woke up, and
how long a thread of the server waited for a processor meanwhile: what of the time is the machine's.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

EVERY_S = 0.2


def waited_s(pid: int) -> dict[str, float]:
    """Thread -> seconds that it was ready to run and did not, since it was started."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, IndexError):
            found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
    return found


def main(host: str, port: int, pid: int) -> None:
    connection: http.client.HTTPConnection | None = None
    due = time.monotonic()
    while True:
        due = max(due + EVERY_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        start = time.monotonic()
        late, status, waited = start - due, 0, waited_s(pid)
        for _ in range(2):  # a kept connection may be closed for its age
            try:
                connection = connection or http.client.HTTPConnection(host, port, timeout=30)
                connection.request("GET", "/livez")
                answer = connection.getresponse()
                answer.read()
                status = answer.status
                break
            except (OSError, http.client.HTTPException):
                connection = None
        line = {"at": start, "seconds": time.monotonic() - start, "late": late, "status": status}
        now = waited_s(pid)
        # The longest of any thread: one that holds the interpreter lock holds up the main thread, too.
        line["waited"] = max((now[tid] - waited.get(tid, now[tid]) for tid in now), default=0.0)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
