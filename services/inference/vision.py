"""Vision: the transport-free core. Every door calls it; it finds the model, asks the runner and records the answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from db.tables import Image
from ekiben.errors import BadInput, NotFound
from ekiben.ids import LOCAL_OWNER
from models.classifier import check_top_k
from models.images import decode, sniff
from models.inference_requests import PROBABILITY, RENDERS, InferenceRequest, InferenceResponse
from models.results import ImageInfo, Timing
from services.inference import volumes
from services.inference.pipeline import ImageSource, InferencePipeline, PendingAnswer
from services.inference.recording import NewFile, RecordIds
from services.model_registry.index import ModelIndex, ServableModel
from services.runners.interface import Runner
from services.schemas import default_models
from services.schemas.inference import area, score, timing


@dataclass(frozen=True, slots=True)
class Outcome:
    """``body``: the answer as JSON-ready values; ``renders``: PNG bytes by name; ``tensors``: arrays by name."""

    body: dict[str, Any]
    renders: dict[str, bytes]
    tensors: Mapping[str, NDArray[np.generic]]


class Vision:
    """Classify and segment. All methods take ``owner``; nothing is found across owners."""

    def __init__(self, index: ModelIndex, runner: Runner, requests: InferencePipeline, timeout_s: float) -> None:
        self._index = index
        self._runner = runner
        self._requests = requests
        self._timeout_s = timeout_s

    async def classify(
        self,
        source: ImageSource,
        *,
        model: str | None = None,
        version: int | None = None,
        top_k: int | None = None,
        tensors: tuple[str, ...] = (),
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> Outcome:
        """The ``top_k`` best classes, 5 or all where there are fewer (see wire.ClassifyBody), and ``tensors``."""
        served = await self._index.resolve(owner, model or default_models.CLASSIFY, version, "classify")
        if top_k is None:
            top_k = min(5, served.classes)
        check_top_k(top_k, served.classes)
        request = InferenceRequest(b"", top_k=top_k, tensors=tensors)
        answer, spent, pending = await self._infer(source, served, request, store, owner)
        scores = [score(row) for row in answer.scores]
        body = await self._requests.record(
            pending,
            served,
            answer.image,
            spent,
            lambda ids: {**head(ids, served, answer.image), "predictions": scores, "timing": timing(spent)},
            parameters={"top_k": top_k},
            result={"predictions": scores},
            top=(scores[0]["class_name"], scores[0]["confidence"]),
        )
        return Outcome(body, {}, answer.tensors)

    async def segment(
        self,
        source: ImageSource,
        *,
        model: str | None = None,
        version: int | None = None,
        render: str | None = None,
        flips: bool = False,
        probability: bool = False,
        tensors: tuple[str, ...] = (),
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> Outcome:
        """The classes that occur (see wire.SegmentBody).

        ``render`` asks for that image's bytes besides, ``tensors`` for arrays; a volume has none.
        """
        if render is not None and render not in (known := (*RENDERS, PROBABILITY, *volumes.MIME_TYPES)):
            raise BadInput(f"render is {render!r}; it is one of {', '.join(known)}")
        probability = probability or render == PROBABILITY
        served = await self.segmenter(owner, model, version)
        check_segment(served, flips=flips, probability=probability)
        renders = (*RENDERS, *((PROBABILITY,) if probability else ())) if store else ((render,) if render else ())
        if render in volumes.MIME_TYPES and not store:
            renders = ("mask",)

        async def infer(image: bytes, deadline: float) -> tuple[InferenceResponse, Timing]:
            request = InferenceRequest(image, renders=renders, flips=flips, tensors=tensors)
            return await self._segment(served, request, image, deadline, render, probability=probability)

        answer, spent, pending = await self._requests.infer(
            source, served, infer, store=store, owner=owner, timeout_s=self._timeout_s, sniff=volumes.sniff_any
        )
        areas = [area(row) for row in answer.areas]
        body = await self._requests.record(
            pending,
            served,
            answer.image,
            spent,
            lambda ids: {
                **head(ids, served, answer.image),
                "classes": areas,
                "artifacts": urls(ids.artifacts) if ids.artifacts else _inline(render, answer.renders),
                "timing": timing(spent),
            },
            files=[
                NewFile(kind, data, volumes.MIME_TYPES.get(kind, "image/png")) for kind, data in answer.renders.items()
            ],
            parameters={name: True for name, given in (("flips", flips), ("probability", probability)) if given},
            result={"classes": areas},
            top=(areas[0]["class_name"], areas[0]["share"]),
        )
        return Outcome(body, dict(answer.renders), answer.tensors)

    async def unrecorded(
        self, served: ServableModel, request: InferenceRequest, *, timeout_s: float | None = None
    ) -> tuple[InferenceResponse, Timing]:
        """The answer to pixels, or to what was prepared elsewhere: there is no file of it that could be kept."""

        async def infer(deadline: float) -> tuple[InferenceResponse, Timing]:
            return await self._runner.infer(served.key, request, deadline)

        return await self._requests.compute(
            served, infer, self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        )

    async def forget(self, predictions: Sequence[str], *, owner: str = LOCAL_OWNER) -> None:
        """Remove answers that were recorded, for what they were part of has failed."""
        for id in predictions:
            with contextlib.suppress(NotFound):
                keys = await asyncio.to_thread(self._requests.records.delete_prediction, owner, id)
                await self._requests.recorder.delete(keys)

    async def _segment(
        self,
        served: ServableModel,
        request: InferenceRequest,
        image: bytes,
        deadline: float,
        render: str | None,
        *,
        probability: bool,
    ) -> tuple[InferenceResponse, Timing]:
        """Of an image; of a volume slice by slice; of a DICOM image DICOM segments besides."""

        async def infer(one: InferenceRequest) -> tuple[InferenceResponse, Timing]:
            return await self._runner.infer(served.key, one, deadline)

        kind = volumes.medical_type(image)
        if kind is not None and (slices := await asyncio.to_thread(volumes.open_slices, image)) is not None:
            own = volumes.DICOM_SEG if kind == volumes.DICOM else volumes.NIFTI
            try:
                if probability or render not in (None, own):
                    raise BadInput(f"the answer for this volume is drawn as {own} only")
                if request.tensors:
                    raise BadInput("a volume is not answered as an array; POST /v1/segment gives it as a file")
                return await volumes.segment_slices(slices, image, request, infer, required=render == own)
            finally:
                await asyncio.to_thread(slices.close)
        answer, spent = await infer(request)
        if render == volumes.NIFTI or (render == volumes.DICOM_SEG and kind != volumes.DICOM):
            raise BadInput(f"{render} is drawn for files of that format only; this is a {answer.image.mime_type}")
        if kind == volumes.DICOM and "mask" in answer.renders:
            made = await asyncio.to_thread(
                volumes.dicom_seg,
                image,
                answer.renders["mask"],
                answer.areas,
                required=render == volumes.DICOM_SEG,
            )
            if made is not None:
                answer = replace(answer, renders={**answer.renders, volumes.DICOM_SEG: made})
        return answer, spent

    async def segmenter(self, owner: str, model: str | None, version: int | None) -> ServableModel:
        """The version that is asked; without ``model`` that of the first of defaults.SEGMENT that there is."""
        if model is None:
            return await self._index.resolve_first(owner, default_models.SEGMENT, version, "segment")
        return await self._index.resolve(owner, model, version, "segment")

    async def keep_image(self, source: ImageSource, *, owner: str = LOCAL_OWNER) -> Image:
        """Store an image for itself; it stays until it is deleted. Decoded once to be sure that it can be."""
        if source.data is None:
            raise BadInput("send an image: a multipart field 'file' or the raw bytes as body")
        data = source.data
        mime_type = sniff(data)
        image = await asyncio.to_thread(decode, data)
        recorder = self._requests.recorder
        record = recorder.begin(data, mime_type, source.filename, owner)
        ids = await recorder.finish(record, image.info, [], None, kept=True)
        return await asyncio.to_thread(self._requests.records.image, owner, str(ids.image))

    async def _infer(
        self, source: ImageSource, served: ServableModel, request: InferenceRequest, store: bool, owner: str
    ) -> tuple[InferenceResponse, Timing, PendingAnswer]:
        async def infer(image: bytes, deadline: float) -> tuple[InferenceResponse, Timing]:
            return await self._runner.infer(served.key, replace(request, image=image), deadline)

        return await self._requests.infer(source, served, infer, store=store, owner=owner, timeout_s=self._timeout_s)


def check_segment(served: ServableModel, *, flips: bool, probability: bool) -> None:
    """BadInput for what the model cannot be asked."""
    name = served.key.name
    if flips and served.family != "unet":
        raise BadInput(f"flips are averaged by a unet; model {name} is a {served.family}")
    if probability and (served.family != "unet" or served.classes != 2):
        what = f"a {served.family}" + (f" of {served.classes} classes" if served.family == "unet" else "")
        raise BadInput(f"a probability is given by a unet of two classes; model {name} is {what}")


def _inline(render: str | None, renders: Mapping[str, bytes]) -> dict[str, str] | None:
    """What was asked for and is not stored, as a data: URL."""
    if render is None or render not in renders:
        return None
    text = base64.b64encode(renders[render]).decode()
    return {render: f"data:{volumes.MIME_TYPES.get(render, 'image/png')};base64,{text}"}


def urls(artifacts: Mapping[str, str]) -> dict[str, str]:
    """Where the files of an answer are, by their kind."""
    return {kind: f"/v1/artifacts/{ident}" for kind, ident in artifacts.items()}


def head(ids: RecordIds, served: ServableModel, image: ImageInfo) -> dict[str, Any]:
    """How every answer begins."""
    return {
        "id": ids.prediction,
        "model": {"name": served.key.name, "version": served.key.version},
        "image": {"id": ids.image, "width": image.width, "height": image.height},
    }
