"""Inference by the Open Inference Protocol: named tensors in, named tensors out. HTTP and gRPC call this."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput, DeadlineExceeded, Overloaded, TooLarge, Unsupported
from ekiben.ids import LOCAL_OWNER
from models.inference_requests import InferenceRequest, InferenceResponse, PreparedTensor
from models.results import Timing
from services.concurrency.bounded_gather import gather_bounded
from services.concurrency.shielded import shielded
from services.inference import classify, segment
from services.inference.context import InferenceCore, RequestContext
from services.inference.pipeline import ImageSource
from services.model_registry.index import ServableModel
from services.open_inference import image_inputs, sam_inputs
from services.open_inference.metadata import output_info
from services.open_inference.parameters import Parameters, RequestedOutput, read_parameters
from services.open_inference.tensors import MAX_BYTES, Tensor, texts
from services.schemas.inference import ClassifyOptions, SegmentOptions
from services.schemas.validation import short

_AT_ONCE = 64
"""Images of one request that are computed at a time."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An infer request.

    ``version``: "" for the active one. No ``outputs``: the usual ones. ``timeout_s``: of the caller.
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[RequestedOutput] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The outputs of an infer request. ``parameters``: the ids of the predictions that were stored."""

    model: str
    version: str
    outputs: Sequence[Tensor]
    parameters: dict[str, str] = field(default_factory=dict)


class OpenInference:
    """Runs infer requests on every model. All methods take ``owner``."""

    def __init__(self, core: InferenceCore) -> None:
        self._core = core

    async def infer(self, request: InferRequest, *, owner: str = LOCAL_OWNER) -> InferAnswer:
        """The requested outputs. BadInput names the tensor or parameter that is wrong; NotFound, Unavailable, TooLarge.

        When it fails, or the caller leaves, the predictions that it has stored are removed.
        """
        served = await self._core.index.find_to_run(owner, request.model, read_version(request.version))
        inputs = {tensor.name: tensor for tensor in request.inputs}
        if len(inputs) != len(request.inputs):
            raise BadInput("an input is given twice")
        wanted = _checked_outputs(served, request.outputs)
        parameters = read_parameters(served, request.parameters, request.timeout_s)
        stored: list[str] = []
        context = RequestContext(self._core, owner=owner, on_recorded=stored.append)
        try:
            if served.family == "sam":
                outputs = await sam_inputs.infer(context, served, inputs, wanted, parameters)
            else:
                outputs = await self._images(context, served, inputs, wanted, parameters, stored)
            if (size := sum(tensor.nbytes for tensor in outputs)) > MAX_BYTES:
                raise TooLarge(f"the answer has {size} bytes; at most {MAX_BYTES} are sent: ask for less at once")
        except BaseException:
            if stored:
                await shielded(self._core.pipeline.forget(stored, owner=owner))
            raise
        name = "prediction_id" if len(stored) == 1 else "prediction_ids"
        info = {name: ",".join(stored)} if stored else {}
        return InferAnswer(served.key.name, str(served.key.version), outputs, info)

    async def forget(self, answer: InferAnswer, *, owner: str = LOCAL_OWNER) -> None:
        """Remove the predictions of an answer that could not be sent."""
        for ids in answer.parameters.values():
            await self._core.pipeline.forget(ids.split(","), owner=owner)

    async def find(self, model: str, version: str, *, owner: str = LOCAL_OWNER) -> ServableModel:
        """The model version; ``version`` is text, "" for the active one. NotFound, Unavailable, BadInput."""
        return await self._core.index.find(owner, model, read_version(version))

    async def _images(
        self,
        context: RequestContext,
        served: ServableModel,
        inputs: Mapping[str, Tensor],
        wanted: Sequence[RequestedOutput],
        parameters: Parameters,
        stored: list[str],
    ) -> list[Tensor]:
        images, single = image_inputs.read(served, inputs)
        names = tuple(dict.fromkeys(one.name for one in wanted if not one.class_count))
        # As Triton does: a model with fewer classes returns all.
        counts = {one.name: min(one.class_count, served.classes) for one in wanted}
        top_k = max(counts.values(), default=0)

        limit_s = self._core.timeout_s
        if parameters.timeout_s is not None:
            limit_s = min(limit_s, parameters.timeout_s)
        end = time.monotonic() + limit_s  # of all images: each gets what is left when it begins
        ids: dict[int, str] = {}

        async def run_image(number: int) -> _Answered:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1)
            try:
                own = replace(context, timeout_s=left_s, arrays=names, on_recorded=lambda id: ids.update({number: id}))
                return await self._one(own, served, images[number], top_k, parameters)
            except Overloaded:
                if number == 0:
                    raise
                # The queue, most of it this request's own images, would take it past the deadline.
                raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
            except BadInput as error:
                if len(images) > 1:
                    raise type(error)(f"image {number}: {error.message}", code=error.code) from None
                raise

        try:
            answered = await gather_bounded(run_image, range(len(images)), _AT_ONCE)
        finally:
            stored.extend(ids[number] for number in sorted(ids))
        stacked = {name: _stack(name, [one.tensors[name] for one in answered], single) for name in names}
        outputs = []
        for one in wanted:
            if count := counts[one.name]:
                rows = [f"{p}:{i}:{label}" for each in answered for p, i, label in each.scores[:count]]
                shape = (count,) if single else (len(answered), count)
                outputs.append(Tensor(one.name, texts(rows, shape)))
            else:
                outputs.append(Tensor(one.name, stacked[one.name]))
        return outputs

    async def _one(
        self,
        context: RequestContext,
        served: ServableModel,
        image: bytes | NDArray[np.uint8] | PreparedTensor,
        top_k: int,
        parameters: Parameters,
    ) -> _Answered:
        if not isinstance(image, bytes):
            if parameters.given("store"):
                raise BadInput("store is for encoded images: of pixels and prepared tensors nothing is kept")
            if not isinstance(image, PreparedTensor):
                self._core.pipeline.limits.check_size(image.shape[1], image.shape[0])
            request = InferenceRequest(image, top_k=top_k or 1, flips=parameters.flips, tensors=context.arrays)
            answer = await self._unrecorded(context, served, request)
            return _Answered(
                answer.tensors, [(row.confidence, row.class_index, row.class_name) for row in answer.scores]
            )
        source = ImageSource(image)
        version = {"model": served.key.name, "version": served.key.version, "store": parameters.store}
        if served.task == "classify":
            classified = await classify.run(context, source, ClassifyOptions(**version, top_k=top_k or None))
            rows = classified.body.predictions
            return _Answered(classified.arrays, [(row.confidence, row.class_index, row.class_name) for row in rows])
        segmented = await segment.run(context, source, SegmentOptions(**version, flips=parameters.flips))
        return _Answered(segmented.arrays, [])

    async def _unrecorded(
        self, context: RequestContext, served: ServableModel, request: InferenceRequest
    ) -> InferenceResponse:
        """The response for pixels or a prepared tensor, of which there is no file to store."""
        core = self._core

        async def infer(deadline: float) -> tuple[InferenceResponse, Timing]:
            return await core.runner.infer(served.key, request, deadline)

        limit_s = core.timeout_s if context.timeout_s is None else min(context.timeout_s, core.timeout_s)
        answer, _ = await core.pipeline.compute(served, infer, limit_s)
        return answer


def read_version(version: str) -> int | None:
    """The version that a text names; None for "", the active one. BadInput."""
    if version and not (version.isascii() and version.isdigit() and 0 < len(version) < 10 and int(version) > 0):
        raise BadInput(f"the version of a model is a number from 1, not {short(version)!r}")
    return int(version) if version else None


@dataclass(frozen=True, slots=True)
class _Answered:
    """The result for one image. ``scores``: confidence, index and name of the best classes."""

    tensors: Mapping[str, NDArray[np.generic]]
    scores: list[tuple[float, int, str]]


def _checked_outputs(served: ServableModel, outputs: Sequence[RequestedOutput]) -> Sequence[RequestedOutput]:
    known = output_info(served)
    if not outputs:
        return [RequestedOutput(one.name) for one in known.values() if one.usual]
    for one in outputs:
        if one.name not in known:
            raise BadInput(f"model {served.key.name} has no output {short(one.name)!r}; there are {', '.join(known)}")
        if one.class_count < 0:
            raise BadInput(f"the class count of output {one.name!r} is negative")
        if one.class_count and not (served.task == "classify" and one.name == "probs"):
            raise Unsupported(f"classes are counted for the output probs of a classifier, not for {one.name}")
    if len({one.name for one in outputs}) != len(outputs):
        raise BadInput("an output is asked for twice")
    return outputs


def _stack(name: str, rows: Sequence[NDArray[np.generic]], single: bool) -> NDArray[np.generic]:
    """The arrays stacked, [images, ...]; where ``single``, the array of the only image. BadInput, TooLarge."""
    if single:
        return rows[0]
    if len({row.shape for row in rows}) > 1:
        raise BadInput(f"the images differ in size, and so does {name}: ask about them one by one")
    if math.prod(rows[0].shape) * len(rows) * rows[0].itemsize > MAX_BYTES:
        raise TooLarge(f"{name} of {len(rows)} images has more than {MAX_BYTES} bytes: ask about fewer at once")
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
