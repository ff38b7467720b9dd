"""What the server stores besides jobs: models and their versions, images, predictions, artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from ekiben._client.decoding import read, read_all
from ekiben._client.image_inputs import ImageLike, image_file, stored_file
from ekiben._client.jobs_operations import job, page_of
from ekiben._client.operations import artifact_request
from ekiben._client.records import Job, Model, Page, Prediction, StoredImage
from ekiben._client.requests import ClientRequest, Rpc, Steps, given, one_id

_IMPORT_TIMEOUT_S = 600.0


class ModelImportOptions(TypedDict, total=False):
    """Properties of a model that its ONNX file lacks; see docs/howto/import-onnx.md.

    ``mean``, ``std``: of pixels 0-1.
    """

    output: Literal["logits", "probabilities", "sigmoid"]
    mean: float | Sequence[float]
    std: float | Sequence[float]
    crop: float
    shorter_side: int
    size: int | Sequence[int]
    interpolation: Literal["bilinear", "bilinear_no_antialias", "bicubic", "nearest", "lanczos"]
    range: tuple[float, float]
    layout: Literal["NCHW", "NHWC"]
    color: Literal["RGB", "BGR"]
    output_name: str
    palette: Sequence[Sequence[int]]
    licence: str
    source: str


def models() -> Steps[tuple[Model, ...]]:
    """All models: their state, versions, memory, weights and licence."""
    reply = yield ClientRequest(path="/v1/models", rpc=Rpc("Models", "ListModels"))
    return read_all(Model, reply["items"])


def model(name: str) -> Steps[Model]:
    """A model by its name."""
    return read(Model, (yield ClientRequest(path=f"/v1/models/{name}", rpc=Rpc("Models", "GetModel", {"name": name}))))


def load_model(name: str) -> Steps[Model]:
    """Load a model in every process and keep it loaded. Returns when the process that responds has loaded it."""
    rpc = Rpc("Models", "LoadModel", {"name": name})
    return read(Model, (yield ClientRequest("POST", f"/v1/models/{name}/load", rpc=rpc, repeatable=True)))


def unload_model(name: str) -> Steps[Model]:
    """Remove a model from memory; the next request for it loads it again."""
    rpc = Rpc("Models", "UnloadModel", {"name": name})
    return read(Model, (yield ClientRequest("POST", f"/v1/models/{name}/unload", rpc=rpc, repeatable=True)))


def provision_model(
    name: str, *, priority: int | None = None, timeout_s: float | None = None, webhook: str | None = None
) -> Steps[Job]:
    """Download and export a model that Ekiben knows and that has no version yet, as a job. Over HTTP.

    While such a job waits or runs, it is that one. After ``wait(job, progress=True)`` the model can be used.
    """
    body = given(priority=priority, timeout_s=timeout_s, webhook=webhook)
    reply = yield ClientRequest("POST", f"/v1/models/{name}/provision", json=body, repeatable=True)
    return (yield from job(reply["job_id"]))


def activate(name: str, version: int) -> Steps[Model]:
    """Make a version the active one, which requests without a version use. Over HTTP."""
    address = f"/v1/models/{name}/activate"
    return read(Model, (yield ClientRequest("POST", address, json={"version": version}, repeatable=True)))


def import_model(
    path: str | Path,
    name: str,
    *,
    task: Literal["classify", "segment"],
    labels: Sequence[str] | str | Path,
    **options: Unpack[ModelImportOptions],
) -> Steps[Model]:
    """Import an ONNX file as a new version of a model. Over HTTP.

    ``labels``: class names by index, or a file with one name per line.
    """
    names = Path(labels).read_text("utf-8-sig") if isinstance(labels, str | Path) else "\n".join(labels)
    fields = {"name": name, "task": task, "labels": names}
    fields |= {option: _text(option, value) for option, value in options.items() if value is not None}
    files = (("file", stored_file(path)),)
    return read(
        Model, (yield ClientRequest("POST", "/v1/models", fields=fields, files=files, timeout_s=_IMPORT_TIMEOUT_S))
    )


def download_version(name: str, version: int, path: str | Path) -> Steps[Path]:
    """Write all files of a version to ``path``, as a ZIP; return the path. Over HTTP."""
    target: Path = yield ClientRequest(path=f"/v1/models/{name}/versions/{version}/files", into=Path(path))
    return target


def delete_version(name: str, version: int) -> Steps[None]:
    """Delete a version with its files. Over HTTP."""
    yield ClientRequest("DELETE", f"/v1/models/{name}/versions/{version}")


def upload_image(image: ImageLike) -> Steps[StoredImage]:
    """Store an image, for requests by ``image_id``. Over HTTP."""
    return read(
        StoredImage, (yield ClientRequest("POST", "/v1/images", fields={}, files=(("file", image_file(image)),)))
    )


def images(*, page: int | None = None, limit: int | None = None) -> Steps[Page[StoredImage]]:
    """Stored images, newest first. Over HTTP."""
    return page_of(StoredImage, (yield ClientRequest(path="/v1/images", query=given(page=page, limit=limit))))


def image(image_id: str) -> Steps[StoredImage]:
    """A stored image: its size, type and checksum. Over HTTP."""
    return read(StoredImage, (yield ClientRequest(path=f"/v1/images/{one_id(image_id)}")))


def image_content(image: StoredImage | str) -> Steps[bytes]:
    """The bytes of a stored image, as they were uploaded. Over HTTP."""
    data: bytes = yield ClientRequest(path=f"/v1/images/{one_id(image)}/content", read=bytes)
    return data


def delete_image(image: StoredImage | str, *, cascade: bool = False) -> Steps[None]:
    """Delete a stored image; with ``cascade`` also the predictions that refer to it. Over HTTP."""
    yield ClientRequest("DELETE", f"/v1/images/{one_id(image)}", query={"cascade": cascade})


def predictions(
    *,
    task: str | None = None,
    model: str | None = None,
    job_id: str | None = None,
    page: int | None = None,
    limit: int | None = None,
) -> Steps[Page[Prediction]]:
    """Stored predictions, newest first. Over HTTP."""
    query = given(task=task, model=model, job_id=job_id, page=page, limit=limit)
    return page_of(Prediction, (yield ClientRequest(path="/v1/predictions", query=query)))


def prediction(prediction_id: str) -> Steps[Prediction]:
    """A prediction with its whole result. Over HTTP."""
    return read(Prediction, (yield ClientRequest(path=f"/v1/predictions/{one_id(prediction_id)}")))


def delete_prediction(prediction: Prediction | str) -> Steps[None]:
    """Delete a prediction, its files and, unless something else refers to it, its image. Over HTTP."""
    yield ClientRequest("DELETE", f"/v1/predictions/{one_id(prediction)}")


def artifact(artifact: Any) -> Steps[bytes]:
    """The bytes of a file of a prediction, by its Artifact, id or URL."""
    data: bytes = yield artifact_request(artifact)
    return data


def _text(name: str, value: Any) -> str:
    """An option as the value of a form field."""
    if name == "palette" and not isinstance(value, str):
        return "\n".join(",".join(map(str, colour)) for colour in value)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
