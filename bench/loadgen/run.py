"""One run of LoadGen: its samples, the threads that send its queries, its settings and logs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg  # type: ignore[import-not-found]
import numpy as np

from bench.loadgen.logs import pack
from bench.loadgen.transports import Transport


class Library:
    """LoadGen's QuerySampleLibrary: images by index, prepared for a transport when LoadGen loads them."""

    def __init__(self, images: Sequence[bytes], transport: Transport) -> None:
        self.images, self._transport = images, transport
        self.ready: dict[int, Any] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Prepare the images for requests."""
        self.ready |= {index: self._transport.prepare(self.images[index]) for index in indices}

    def unload(self, indices: Sequence[int]) -> None:
        """Drop what was prepared."""
        for index in indices:
            self.ready.pop(index, None)


class SystemUnderTest:
    """LoadGen's system under test: threads that send requests.

    ``errors``: of requests that failed; they get no answer.
    """

    requested = 0

    def __init__(self, transport: Transport, library: Library, threads: int) -> None:
        self._transport, self._library = transport, library
        self.errors: list[str] = []
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Queue the samples of a query."""
        self.requested += len(samples)
        for each in samples:
            self._waiting.put((each.id, each.index))

    def close(self) -> None:
        """End the threads when the queue is empty."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            id, index = item
            answer = np.frombuffer(self._answer(index), np.uint8)  # LoadGen copies it before the next call returns
            place = answer.ctypes.data if answer.size else 0
            lg.QuerySamplesComplete([lg.QuerySampleResponse(id, place, answer.nbytes)])
        self._transport.leave()

    def _answer(self, index: int) -> bytes:
        # The sample is completed in any case: LoadGen waits for it without a limit.
        try:
            return pack(self._transport.request(self._library.ready[index]))
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}"[:300])
            return b""


def run(
    transport: Transport,
    images: Sequence[bytes],
    threads: int,
    folder: Path,
    scenario: str,
    settings: Mapping[str, float],
    mode: str = "PerformanceOnly",
) -> tuple[int, list[str]]:
    """The number of samples that were requested, and the errors. LoadGen's logs are in ``folder``, which is made.

    ``settings`` are its TestSettings.
    """
    test, output, logs = lg.TestSettings(), lg.LogOutputSettings(), lg.LogSettings()
    test.scenario, test.mode = getattr(lg.TestScenario, scenario), getattr(lg.TestMode, mode)
    test.performance_sample_count_override = len(images)
    for name, value in settings.items():
        setattr(test, name, value)
    folder.mkdir(parents=True)
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs.log_output, logs.enable_trace = output, False
    library = Library(images, transport)
    system = SystemUnderTest(transport, library, threads)
    count = len(images)
    sut = lg.ConstructSUT(system.issue, lambda: None)
    samples = lg.ConstructQSL(count, count, library.load, library.unload)
    try:
        lg.StartTestWithLogSettings(sut, samples, test, logs)
    finally:
        system.close()
        lg.DestroyQSL(samples)
        lg.DestroySUT(sut)
    return system.requested, system.errors
