"""Jobs: submit, read, cancel, and get results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from ekiben._client.decoding import read
from ekiben._client.errors import JobFailed
from ekiben._client.image_inputs import ImageLike, image_files
from ekiben._client.inference_operations import read_segmentation
from ekiben._client.masks import AutoMasks, Cutouts, Masks
from ekiben._client.operations import ROUTES, artifact_request, form_fields, message, prompts_of, source_of
from ekiben._client.records import Dataset, Item, Job, Model, Page, Training
from ekiben._client.requests import ClientRequest, Rpc, Steps, given, one_id
from ekiben._client.results import Classification, Segmentation

T = TypeVar("T")

JobLike: TypeAlias = Job | Dataset | Training | str
"""A job or its id; a dataset stands for its import, a training for itself."""

Result: TypeAlias = Any
"""Classification, Segmentation, Masks, AutoMasks, Cutouts, Dataset, Training, Model or a tuple of Item."""

_ANSWERS: dict[str, Any] = {
    "classify": Classification,
    "segment": Segmentation,
    "masks": Masks,
    "auto_masks": AutoMasks,
    "cutouts": Cutouts,
}
_PAGE = 200


def submit(
    operation: str,
    image: ImageLike | None = None,
    *,
    image_id: str | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
    **options: Any,
) -> Steps[Job]:
    """An operation on one image as a job: ``classify``, ``segment``, ``masks``, ``auto_masks`` or ``cutouts``.

    ``options``: those of the method of that name. ``priority``: from 9, the first, to 0; 5 by default. ``timeout_s``:
    of the job. ``webhook``: a URL that gets a POST when the job is over. A repeated ``idempotency_key`` returns the
    first job.
    """
    if operation not in ROUTES:
        raise ValueError(f"there is no operation {operation!r}; there are {', '.join(ROUTES)}")
    prompt = {name: options.pop(name, None) for name in ("points", "labels", "box", "boxes", "mask_input")}
    options = given(**{**options, "prompts": prompts_of(options.pop("prompts", None), **prompt)})
    source, own = source_of(image, image_id), given(priority=priority, timeout_s=timeout_s, webhook=webhook)
    key = idempotency_key or str(uuid4())  # makes the request repeatable after a lost connection
    reply = yield ClientRequest(
        "POST",
        ROUTES[operation][0],
        fields={**form_fields(source, options), **own},
        files=() if isinstance(source, str) else (("file", source),),
        headers={"Prefer": "respond-async", "Idempotency-Key": key},
        rpc=Rpc("Jobs", "SubmitJob", {operation: message(source, options), **own, "idempotency_key": key}),
        repeatable=True,
    )
    return (yield from job(reply["job_id"]))


def batch(
    operation: str,
    images: ImageLike | Iterable[ImageLike] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    image_ids: Iterable[str] | None = None,
    store: bool | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    items_at_once: int | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
) -> Steps[Job]:
    """An operation on many images, as one job. Over HTTP.

    ``images``: a list of images, a folder, or a ZIP; or ``image_ids`` of stored ones. ``parameters``: the options of
    the operation. ``items_at_once``: largest number of images processed at a time, over all workers.
    """
    if (images is None) == (image_ids is None):
        raise ValueError("give images, or image_ids of stored ones")
    parameters = dict(parameters or {})
    fields = given(operation=operation, store=store, priority=priority, timeout_s=timeout_s, webhook=webhook)
    fields |= given(items_at_once=items_at_once, parameters=given(**parameters))
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    if images is None:
        fields["image_ids"] = [one_id(each) for each in image_ids or ()]
        reply = yield ClientRequest("POST", "/v1/batches", json=fields, headers=headers, repeatable=True)
    else:
        found, archive = image_files(images)
        files = tuple(("files", file) for file in found) if archive is None else (("archive", archive),)
        reply = yield ClientRequest("POST", "/v1/batches", fields=fields, files=files, headers=headers, repeatable=True)
    return (yield from job(reply["job_id"]))


def job(job: JobLike) -> Steps[Job]:
    """A job as it is now."""
    ident = job_id(job)
    return read(Job, (yield ClientRequest(path=f"/v1/jobs/{ident}", rpc=Rpc("Jobs", "GetJob", {"id": ident}))))


def jobs(
    *, state: str | None = None, kind: str | None = None, page: int | None = None, limit: int | None = None
) -> Steps[Page[Job]]:
    """Jobs, newest first. ``kind``: request, batch, import, training or provision."""
    query = given(state=state, kind=kind, page=page, limit=limit)
    return page_of(Job, (yield ClientRequest(path="/v1/jobs", query=query, rpc=Rpc("Jobs", "ListJobs", query))))


def items(
    job: JobLike, *, state: str | None = None, page: int | None = None, limit: int | None = None
) -> Steps[Page[Item]]:
    """The items of a job in the order of its images, with their results so far.

    Class maps and the images of cut-outs are not fetched (see ``artifact``).
    """
    operation = (yield from _job(job)).operation
    ident, query = job_id(job), given(state=state, page=page, limit=limit)
    rpc = Rpc("Jobs", "ListJobItems", {"id": ident, **query})
    reply = yield ClientRequest(path=f"/v1/jobs/{ident}/items", query=query, rpc=rpc)
    found = tuple(_item(each, operation) for each in reply["items"])
    return Page(found, reply["total"], reply["page"], reply["limit"])


def result(job: JobLike) -> Steps[Result]:
    """The result of a job that is over: a request's result, a batch's items, an import's dataset, the training, or the
    model that was provided.

    Raises JobFailed when it has none, ValueError while the job runs.
    """
    known = yield from _job(job)
    if not known.over:
        raise ValueError(f"job {known.id} is {known.state}: wait for it first")
    if known.kind == "batch":
        return (yield from _all_items(known))
    if known.state != "succeeded":
        raise JobFailed(known)
    if known.kind == "training":
        return read(Training, (yield ClientRequest(path=f"/v1/trainings/{known.id}")))
    if known.kind == "import":
        return read(Dataset, (yield ClientRequest(path=f"/v1/datasets/{known.parameters['dataset_id']}")))
    if known.kind == "provision":
        return read(Model, (yield ClientRequest(path=f"/v1/models/{known.parameters['name']}")))
    rpc = Rpc("Jobs", "ListJobItems", {"id": known.id}, lambda reply: reply["items"][0]["result"])
    reply = yield ClientRequest(path=f"/v1/jobs/{known.id}/result", rpc=rpc)
    if known.operation == "segment":
        return (yield from read_segmentation(reply, class_map=True))
    if known.operation == "cutouts":
        for cut in reply["cutouts"]:
            if cut.get("url"):
                cut["png"] = yield artifact_request(cut["url"])
    answer: Result = read(_ANSWERS[known.operation], reply)
    return answer


def download_result(job: JobLike, path: str | Path) -> Steps[Path]:
    """Write the results of a job with all their files to ``path``, as a ZIP; return the path. Over HTTP."""
    address = f"/v1/jobs/{job_id(job)}/result"
    target: Path = yield ClientRequest(path=address, headers={"Accept": "application/zip"}, into=Path(path))
    return target


def cancel(job: JobLike) -> Steps[Job]:
    """Cancel a job; results of finished items are kept."""
    ident = job_id(job)
    rpc = Rpc("Jobs", "CancelJob", {"id": ident})
    return read(Job, (yield ClientRequest("POST", f"/v1/jobs/{ident}/cancel", rpc=rpc)))


def retry(job: JobLike) -> Steps[Job]:
    """Run the items that did not succeed again. Over HTTP."""
    return read(Job, (yield ClientRequest("POST", f"/v1/jobs/{job_id(job)}/retry")))


def delete_job(job: JobLike) -> Steps[None]:
    """Delete a job that is over, with its results and files. Over HTTP."""
    yield ClientRequest("DELETE", f"/v1/jobs/{job_id(job)}")


def job_id(job: JobLike) -> str:
    """The id of a job; for a dataset that of its import."""
    return job.job_id if isinstance(job, Dataset) else one_id(job)


def page_of(kind: type[T], reply: Mapping[str, Any]) -> Page[T]:
    """A page of instances of the dataclass ``kind`` from a list response."""
    found = tuple(read(kind, each) for each in reply["items"])
    return Page(found, int(reply["total"]), int(reply["page"]), int(reply["limit"]))


def _job(given: JobLike) -> Steps[Job]:
    """The current job; without a request when ``given`` is over."""
    return given if isinstance(given, Job) and given.over else (yield from job(given))


def _all_items(known: Job) -> Steps[tuple[Item, ...]]:
    found: list[Item] = []
    while True:
        page = yield from items(known, page=len(found) // _PAGE + 1, limit=_PAGE)
        found += page.items
        if len(found) >= page.total or not page.items:
            return tuple(found)


def _item(reply: Mapping[str, Any], operation: str) -> Item:
    result, kind = reply["result"], _ANSWERS.get(operation)
    # Imports and trainings have no answer, and neither have items whose prediction was deleted.
    answer = read(kind, result) if kind is not None and result else None
    return read(Item, {**reply, "result": result or None}, answer=answer)
