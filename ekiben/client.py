"""The Python client: ``Client`` for scripts and notebooks, ``AsyncClient`` for event loops, over HTTP and gRPC.

::

    from ekiben.client import Client

    client = Client("http://localhost:3000")  # or grpc://localhost:3001
    print(client.classify("bird.jpg").top)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ekiben._client import inference_operations, jobs_operations, library_operations, training_operations
from ekiben._client.async_client import AsyncClient
from ekiben._client.binding import iterated, threaded
from ekiben._client.connect import URL, connect
from ekiben._client.errors import EkibenError, JobFailed, TimedOut, Unreachable
from ekiben._client.inference_operations import read_event, stream_request
from ekiben._client.job_watch import JobWatch
from ekiben._client.jobs_operations import JobLike
from ekiben._client.progress_bar import bar_of
from ekiben._client.records import Job, JobEvent
from ekiben._client.requests import ClientRequest, Done, RetryPolicy, Steps, Transport, advance

__all__ = ["AsyncClient", "Client", "EkibenError", "JobFailed", "TimedOut", "Unreachable"]

T = TypeVar("T")


class Client:
    """A client of one server whose methods wait for the response. Thread-safe; a context manager that closes it.

    ``url``: http://, https://, grpc:// or grpcs:// (TLS); ``ca``: a file of the certificates to trust. ``timeout_s``:
    the longest wait for a response; over HTTP, for the next bytes. ``retries``: further attempts when the server was
    too busy to begin or no connection was made; an inference that may have been computed is never sent twice.
    ``headers``: sent with every request, over gRPC as metadata.

    Methods raise EkibenError; ValueError or TypeError for arguments that cannot be sent.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout_s: float = 60.0,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        ca: str | Path | None = None,
        transport: Transport | None = None,
    ) -> None:
        """``transport``: sends the requests instead of one made for ``url``, as in tests."""
        self.url = url
        self._retries = retries
        self._transport = transport or connect(url, timeout_s, headers or {}, ca)

    classify = threaded(inference_operations.classify)
    segment = threaded(inference_operations.segment)
    segment_volume = threaded(inference_operations.segment_volume)
    render = threaded(inference_operations.render)
    masks = threaded(inference_operations.masks)
    auto_masks = threaded(inference_operations.auto_masks)
    stream_auto_masks = iterated(stream_request, read_event)
    cutouts = threaded(inference_operations.cutouts)

    submit = threaded(jobs_operations.submit)
    batch = threaded(jobs_operations.batch)
    job = threaded(jobs_operations.job)
    jobs = threaded(jobs_operations.jobs)
    items = threaded(jobs_operations.items)
    result = threaded(jobs_operations.result)
    download_result = threaded(jobs_operations.download_result)
    cancel = threaded(jobs_operations.cancel)
    retry = threaded(jobs_operations.retry)
    delete_job = threaded(jobs_operations.delete_job)

    models = threaded(library_operations.models)
    model = threaded(library_operations.model)
    provision_model = threaded(library_operations.provision_model)
    load_model = threaded(library_operations.load_model)
    unload_model = threaded(library_operations.unload_model)
    activate = threaded(library_operations.activate)
    import_model = threaded(library_operations.import_model)
    download_version = threaded(library_operations.download_version)
    delete_version = threaded(library_operations.delete_version)

    upload_image = threaded(library_operations.upload_image)
    images = threaded(library_operations.images)
    image = threaded(library_operations.image)
    image_content = threaded(library_operations.image_content)
    delete_image = threaded(library_operations.delete_image)
    predictions = threaded(library_operations.predictions)
    prediction = threaded(library_operations.prediction)
    delete_prediction = threaded(library_operations.delete_prediction)
    artifact = threaded(library_operations.artifact)

    upload_dataset = threaded(training_operations.upload_dataset)
    dataset = threaded(training_operations.dataset)
    datasets = threaded(training_operations.datasets)
    dataset_preview = threaded(training_operations.dataset_preview)
    delete_dataset = threaded(training_operations.delete_dataset)
    train = threaded(training_operations.train)
    training = threaded(training_operations.training)
    trainings = threaded(training_operations.trainings)
    compare_trainings = threaded(training_operations.compare_trainings)

    def watch(self, job: JobLike, *, after: int = 0, timeout_s: float | None = None) -> Iterator[JobEvent]:
        """The events of a job until it is over, each once; broken connections are made again.

        ``after``: start after the event of that number. ``timeout_s``: raises TimedOut when the job is not over by
        then.
        """
        return self._follow(JobWatch(job, after, timeout_s))

    def wait(self, job: JobLike, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait for a job and return it. Raises JobFailed when it failed or was cancelled, TimedOut after ``timeout_s``.

        ``progress``: show a progress bar on stderr. A dataset stands for its import.
        """
        watch, known = JobWatch(job, timeout_s=timeout_s), self.job(job)
        with bar_of(known, progress) as bar:
            while not known.over:
                for event in self._follow(watch):
                    bar.show(event)
                known = self.job(job)
        if known.state != "succeeded":
            raise JobFailed(known)
        return known

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def _run(self, steps: Steps[T]) -> T:
        reply: object = None
        try:
            while True:
                step = advance(steps, reply)
                if isinstance(step, Done):
                    return step.answer
                reply = self._send(step)
        finally:
            steps.close()

    def _send(self, request: ClientRequest) -> object:
        policy = RetryPolicy(request, self._retries)
        while True:
            try:
                return self._transport.send(request)
            except EkibenError as error:
                time.sleep(policy.pause_s(error))

    def _follow(self, watch: JobWatch) -> Iterator[JobEvent]:
        while True:
            try:
                with closing(self._transport.stream(watch.request())) as messages:
                    for message in messages:
                        if message is not None:
                            yield watch.take(message)
                        if watch.stale:
                            break
                if watch.over or self.job(watch.id).over:
                    return
                pause_s = watch.pause_s()
            except EkibenError as error:
                pause_s = watch.pause_s(error)
            time.sleep(pause_s)
