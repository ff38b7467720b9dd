"""How a training speaks to the process that started it: JSON lines on stdout, and the end when that process ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

PARENT_GONE = 3
REFUSED = 2

_SILENCE_S = 1.0
"""A state that is under way is told anew after so long: whoever watches hears at least every 2 s."""


class Speaker:
    """Says one JSON object a line. Thread-safe; a line that cannot be written ends the process: nobody listens."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._progress = 0.0

    def event(self, kind: str, data: dict[str, Any], progress: float | None = None) -> None:
        line: dict[str, Any] = {"event": kind, "data": data}
        if progress is not None:
            # An estimate may fall back, what was told must not.
            self._progress = max(self._progress, min(progress, 1.0))
            line["progress"] = round(self._progress, 4)
        self._say(line)

    def file(self, name: str) -> None:
        """``name``, relative to the folder, was replaced atomically and is worth keeping now."""
        self._say({"file": name})

    def refusal(self, code: str, message: str) -> None:
        self._say({"refusal": {"code": code, "message": message}})

    def result(self, data: dict[str, Any]) -> None:
        self._say({"result": data})

    def _say(self, line: dict[str, Any]) -> None:
        # JSON has no NaN, and a reader that is strict would stop at one.
        text = json.dumps(_finite(line), allow_nan=False)
        with self._lock:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                os._exit(PARENT_GONE)


class Silent(Speaker):
    """Says nothing: the processes beside the first one."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def _say(self, line: dict[str, Any]) -> None:
        return


class ProgressTicker:
    """Tells the state of a long piece of work once a second from a thread of its own, whatever the work waits for."""

    def __init__(self, speaker: Speaker, state: Callable[[], tuple[dict[str, Any], float] | None]) -> None:
        self._speaker, self._state = speaker, state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> ProgressTicker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._stop.wait(_SILENCE_S):
            state = self._state()
            if state is not None:
                self._speaker.event("step", *state)


def claim_stdout() -> IO[str]:
    """The real stdout as a text stream; whatever else writes to file descriptor 1 from now on reaches stderr."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


def end_with_parent() -> None:
    """End this process as soon as stdin ends: the process that holds its other end is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(PARENT_GONE)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_at_sigterm() -> None:
    """SIGTERM ends the process at once: what is worth keeping was written at the last epoch's end.

    A handler of Python's would wait for the operation that runs now, which may be a long one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def log(message: str) -> None:
    """One line on stderr, which the parent keeps."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
