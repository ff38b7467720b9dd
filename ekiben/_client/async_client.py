"""``AsyncClient``, the client for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ekiben._client import inference_operations, jobs_operations, library_operations, training_operations
from ekiben._client.binding import awaited, iterated_async
from ekiben._client.connect import URL, connect_async
from ekiben._client.errors import EkibenError, JobFailed
from ekiben._client.inference_operations import read_event, stream_request
from ekiben._client.job_watch import JobWatch
from ekiben._client.jobs_operations import JobLike
from ekiben._client.progress_bar import bar_of
from ekiben._client.records import Job, JobEvent
from ekiben._client.requests import AsyncTransport, ClientRequest, Done, RetryPolicy, Steps, advance

T = TypeVar("T")


class AsyncClient:
    """``Client`` for event loops: its methods are awaited, or iterated with ``async for``.

    Arguments as for ``Client``.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout_s: float = 60.0,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        ca: str | Path | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        self.url = url
        self._retries = retries
        self._transport = transport or connect_async(url, timeout_s, headers or {}, ca)

    classify = awaited(inference_operations.classify)
    segment = awaited(inference_operations.segment)
    segment_volume = awaited(inference_operations.segment_volume)
    render = awaited(inference_operations.render)
    masks = awaited(inference_operations.masks)
    auto_masks = awaited(inference_operations.auto_masks)
    stream_auto_masks = iterated_async(stream_request, read_event)
    cutouts = awaited(inference_operations.cutouts)

    submit = awaited(jobs_operations.submit)
    batch = awaited(jobs_operations.batch)
    job = awaited(jobs_operations.job)
    jobs = awaited(jobs_operations.jobs)
    items = awaited(jobs_operations.items)
    result = awaited(jobs_operations.result)
    download_result = awaited(jobs_operations.download_result)
    cancel = awaited(jobs_operations.cancel)
    retry = awaited(jobs_operations.retry)
    delete_job = awaited(jobs_operations.delete_job)

    models = awaited(library_operations.models)
    model = awaited(library_operations.model)
    provision_model = awaited(library_operations.provision_model)
    load_model = awaited(library_operations.load_model)
    unload_model = awaited(library_operations.unload_model)
    activate = awaited(library_operations.activate)
    import_model = awaited(library_operations.import_model)
    download_version = awaited(library_operations.download_version)
    delete_version = awaited(library_operations.delete_version)

    upload_image = awaited(library_operations.upload_image)
    images = awaited(library_operations.images)
    image = awaited(library_operations.image)
    image_content = awaited(library_operations.image_content)
    delete_image = awaited(library_operations.delete_image)
    predictions = awaited(library_operations.predictions)
    prediction = awaited(library_operations.prediction)
    delete_prediction = awaited(library_operations.delete_prediction)
    artifact = awaited(library_operations.artifact)

    upload_dataset = awaited(training_operations.upload_dataset)
    dataset = awaited(training_operations.dataset)
    datasets = awaited(training_operations.datasets)
    dataset_preview = awaited(training_operations.dataset_preview)
    delete_dataset = awaited(training_operations.delete_dataset)
    train = awaited(training_operations.train)
    training = awaited(training_operations.training)
    trainings = awaited(training_operations.trainings)
    compare_trainings = awaited(training_operations.compare_trainings)

    def watch(self, job: JobLike, *, after: int = 0, timeout_s: float | None = None) -> AsyncIterator[JobEvent]:
        """The events of a job until it is over; see ``Client.watch``."""
        return self._follow(JobWatch(job, after, timeout_s))

    async def wait(self, job: JobLike, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait for a job and return it; see ``Client.wait``."""
        watch, known = JobWatch(job, timeout_s=timeout_s), await self.job(job)
        with bar_of(known, progress) as bar:
            while not known.over:
                async for event in self._follow(watch):
                    bar.show(event)
                known = await self.job(job)
        if known.state != "succeeded":
            raise JobFailed(known)
        return known

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _run(self, steps: Steps[T]) -> T:
        reply: object = None
        try:
            while True:
                step = await asyncio.to_thread(advance, steps, reply)
                if isinstance(step, Done):
                    return step.answer
                reply = await self._send(step)
        finally:
            with suppress(ValueError):  # cancelled while a thread runs the generator, which ends it there
                steps.close()

    async def _send(self, request: ClientRequest) -> object:
        policy = RetryPolicy(request, self._retries)
        while True:
            try:
                return await self._transport.send(request)
            except EkibenError as error:
                await asyncio.sleep(policy.pause_s(error))

    async def _follow(self, watch: JobWatch) -> AsyncIterator[JobEvent]:
        while True:
            try:
                async with aclosing(self._transport.stream(watch.request())) as messages:
                    async for message in messages:
                        if message is not None:
                            yield watch.take(message)
                        if watch.stale:
                            break
                if watch.over or (await self.job(watch.id)).over:
                    return
                pause_s = watch.pause_s()
            except EkibenError as error:
                pause_s = watch.pause_s(error)
            await asyncio.sleep(pause_s)
