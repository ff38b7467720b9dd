"""Masks: the transport-free core of Segment Anything's operations, beside Vision."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import numpy as np

from ekiben.errors import BadInput, NotFound
from ekiben.ids import LOCAL_OWNER
from models.inference_requests import AutoMaskRequest, AutoMaskResponse, EmbeddingUse, MaskRequest, MaskResponse
from models.masks.cutouts import CutStyle
from models.masks.predicted_masks import AutoMask, PromptMask
from models.results import ImageInfo, Timing
from models.sam.auto_options import AutoOptions
from models.sam.graphs import SIDE, Floats
from models.sam.prompts import Prompt, read_prompts
from services.concurrency.cpu_executor import CheckCancelled, run_cpu_bound
from services.inference import mask_encoding
from services.inference.pipeline import ImageSource, InferencePipeline, PendingAnswer
from services.inference.recording import NewFile
from services.inference.vision import head, urls
from services.model_registry.index import ModelIndex, ServableModel
from services.runners.interface import Runner
from services.schemas import default_models
from services.schemas.inference import timing
from services.schemas.masks import MaskFormat

MAX_MASK_INPUTS = 64
"""Different earlier masks that one request may start from, 256 KB each."""

MAX_KEPT_LOGITS = 256
"""Masks of one answer whose logits are kept, 256 KB each; the masks of a larger answer have no id to refine from."""

_INLINE_RUNS = 20_000
_INLINE_PROMPTS = 100
"""What takes about a millisecond on the event loop. More goes to a thread."""


class Masks:
    """Prompted masks, automatic masks and cut-outs. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self, index: ModelIndex, runner: Runner, requests: InferencePipeline, timeout_s: float, auto_timeout_s: float
    ) -> None:
        self._index = index
        self._runner = runner
        self._requests = requests
        self._timeout_s = timeout_s
        self._auto_timeout_s = auto_timeout_s

    async def prompted(
        self,
        source: ImageSource,
        prompts: Any = None,
        *,
        model: str | None = None,
        version: int | None = None,
        multimask: bool = True,
        format: MaskFormat = "rle",
        logits: bool = True,
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> dict[str, Any]:
        """Masks of ``prompts`` (parsed JSON), of the whole image's box without any (see mask_wire.MasksBody)."""
        body, _ = await self.answered(
            source,
            prompts,
            model=model,
            version=version,
            multimask=multimask,
            format=format,
            logits=logits,
            store=store,
            owner=owner,
        )
        return body

    async def answered(
        self,
        source: ImageSource,
        prompts: Any = None,
        *,
        model: str | None = None,
        version: int | None = None,
        multimask: bool = True,
        format: MaskFormat = "rle",
        logits: bool = True,
        give_logits: bool = False,
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> tuple[dict[str, Any], MaskResponse]:
        """The same, and the masks themselves. ``prompts`` may be a tuple of Prompt; ``give_logits``: with theirs."""
        served = await self.served(owner, model or default_models.MASKS, version)
        keep_logits = _keeps_logits(prompts, multimask) and store and logits
        request = MaskRequest(b"", (), multimask, keep_logits=keep_logits or give_logits)
        given, spent, pending = await self._ask(source, served, prompts, request, store, owner)
        answer = given if keep_logits or not give_logits else _without_logits(given)
        files: list[NewFile] = []
        runs = sum(len(mask.rle.counts) for row in answer.results for mask in row)
        try:
            if runs < _INLINE_RUNS and format in ("rle", "coco"):
                results = mask_encoding.results(answer, format, files, store=store)
            else:
                results = await run_cpu_bound(
                    pending.deadline,
                    lambda check: mask_encoding.results(answer, format, files, store=store, check=check),
                )
        except BaseException:
            await self._requests.abandon(pending)
            raise
        best = max((mask.predicted_iou for row in answer.results for mask in row), default=None)
        body = await self._requests.record(
            pending,
            served,
            answer.image,
            spent,
            lambda ids: {
                **head(ids, served, answer.image),
                "results": results,
                "embedding": _embedding(answer.embedding),
                "timing": timing(spent),
            },
            parameters={"prompts": _worded(prompts), "multimask": multimask, "format": format},
            result={"results": results},
            files=files,
            top=(None, best),
        )
        return body, given

    async def automatic(
        self,
        source: ImageSource,
        options: AutoOptions,
        *,
        model: str | None = None,
        version: int | None = None,
        format: MaskFormat = "rle",
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> dict[str, Any]:
        """Masks of everything, the largest first (see mask_wire.AutoMasksBody)."""
        body, _ = await self.all_masks(
            source, options, model=model, version=version, format=format, store=store, owner=owner
        )
        return body

    async def all_masks(
        self,
        source: ImageSource,
        options: AutoOptions,
        *,
        model: str | None = None,
        version: int | None = None,
        format: MaskFormat = "rle",
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> tuple[dict[str, Any], AutoMaskResponse]:
        """The same, and the masks themselves."""
        served = await self.served(owner, model or default_models.MASKS, version)
        answer, spent, pending = await self._ask_auto(source, served, options, store, owner)
        files: list[NewFile] = []

        def bodies(check: CheckCancelled) -> tuple[list[dict[str, Any]], list[NewFile]]:
            masks = mask_encoding.auto_masks(answer, format, files, check, store=store)
            return masks, mask_encoding.auto_images(answer, pending.data, check) if store else []

        try:
            masks, images = await run_cpu_bound(pending.deadline, bodies)
        except BaseException:
            await self._requests.abandon(pending)
            raise
        body = await self._requests.record(
            pending,
            served,
            answer.image,
            spent,
            lambda ids: {
                **head(ids, served, answer.image),
                "masks": masks,
                "parameters": options.parameters,
                "artifacts": urls({file.kind: file.id for file in images}) or None,
                "embedding": _embedding(answer.embedding),
                "timing": timing(spent),
            },
            task="auto_masks",
            parameters={**options.parameters, "format": format},
            result={"masks": masks},
            files=[*files, *images],
            top=(None, max((mask.predicted_iou for mask in answer.masks), default=None)),
        )
        return body, answer

    async def cutouts(
        self,
        source: ImageSource,
        prompts: Any = None,
        options: AutoOptions | None = None,
        *,
        style: CutStyle | None = None,
        min_pixels: int = 0,
        limit: int = 100,
        multimask: bool = False,
        model: str | None = None,
        version: int | None = None,
        store: bool = True,
        owner: str = LOCAL_OWNER,
    ) -> tuple[dict[str, Any], list[mask_encoding.CutOut]]:
        """Objects of the prompts in their order, else of the automatic masks, the largest first.

        With ``multimask`` the mask of a prompt with the best predicted IoU is cut.
        """
        served = await self.served(owner, model or default_models.MASKS, version)
        style = style or CutStyle()
        objects: list[tuple[int | None, PromptMask | AutoMask]]
        answer: MaskResponse | AutoMaskResponse
        if prompts:
            request = MaskRequest(b"", (), multimask)
            answer, spent, pending = await self._ask(source, served, prompts, request, store, owner)
            best = (max(row, key=lambda mask: mask.predicted_iou) for row in answer.results)
            objects = list(enumerate(best))
        else:
            answer, spent, pending = await self._ask_auto(source, served, options or AutoOptions(), store, owner)
            objects = [(None, mask) for mask in answer.masks]
        objects = [(prompt, mask) for prompt, mask in objects if mask.rle.area >= max(1, min_pixels)][:limit]
        try:
            cuts, files = await run_cpu_bound(
                pending.deadline, lambda check: mask_encoding.cut_all(pending.data, objects, style, check, store=store)
            )
        except BaseException:
            await self._requests.abandon(pending)
            raise
        bodies = [one.body for one in cuts]
        parameters: dict[str, Any] = {"min_pixels": min_pixels, "limit": limit, "frame": style.frame}
        parameters |= {"padding_px": style.padding_px, "feather_px": style.feather_px}
        if prompts:
            parameters |= {"prompts": prompts, "multimask": multimask}
        else:
            parameters |= (options or AutoOptions()).parameters
        body = await self._requests.record(
            pending,
            served,
            answer.image,
            spent,
            lambda ids: {
                **head(ids, served, answer.image),
                "cutouts": bodies,
                "embedding": _embedding(answer.embedding),
                "timing": timing(spent),
            },
            task="cutouts",
            parameters=parameters,
            result={"cutouts": bodies},
            files=files,
            top=(None, max((mask.predicted_iou for _, mask in objects), default=None)),
        )
        return body, cuts

    async def served(self, owner: str, model: str, version: int | None) -> ServableModel:
        """The version meant. NotFound, Unavailable, BadInput as ``ModelIndex.resolve``."""
        try:
            return await self._index.resolve(owner, model, version, "masks")
        except NotFound as error:
            if model == default_models.MASKS and version is None:  # `make serve` does not bring it
                raise NotFound(f"{error.message}; `python -m export {model}` makes it") from None
            raise

    async def _ask(
        self, source: ImageSource, served: ServableModel, prompts: Any, request: MaskRequest, store: bool, owner: str
    ) -> tuple[MaskResponse, Timing, PendingAnswer]:
        read: list[Prompt] = []
        idents: list[str | None] = []
        if isinstance(prompts, tuple):
            read, idents = list(prompts), [None] * len(prompts)
        elif prompts is not None:
            many = isinstance(prompts, list) and len(prompts) > _INLINE_PROMPTS
            read, idents = await asyncio.to_thread(read_prompts, prompts) if many else read_prompts(prompts)

        async def infer(image: bytes, deadline: float) -> tuple[MaskResponse, Timing]:
            sizes = await self._fill_in(read, idents, owner)
            answer, spent = await self._runner.masks(
                served.key, replace(request, image=image, prompts=tuple(read)), deadline
            )
            _check_sizes(sizes, answer.image)
            return answer, spent

        return await self._requests.infer(source, served, infer, store=store, owner=owner, timeout_s=self._timeout_s)

    async def _fill_in(self, prompts: list[Prompt], idents: list[str | None], owner: str) -> dict[int, tuple[int, int]]:
        """Give the prompts their mask inputs; the size of the image each is of, by number of the prompt."""
        if len(set(idents)) > MAX_MASK_INPUTS:
            raise BadInput(f"at most {MAX_MASK_INPUTS} different masks are refined at once")
        known: dict[str, tuple[Floats, tuple[int, int]]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for number, ident in enumerate(idents):
            if ident is not None:
                if ident not in known:
                    known[ident] = await self._earlier(number, ident, owner)
                logits, sizes[number] = known[ident]
                prompts[number] = replace(prompts[number], mask_input=logits)
        return sizes

    async def _ask_auto(
        self, source: ImageSource, served: ServableModel, options: AutoOptions, store: bool, owner: str
    ) -> tuple[AutoMaskResponse, Timing, PendingAnswer]:
        async def infer(image: bytes, deadline: float) -> tuple[AutoMaskResponse, Timing]:
            return await self._runner.auto_masks(served.key, AutoMaskRequest(image, options), deadline)

        return await self._requests.infer(
            source, served, infer, store=store, owner=owner, timeout_s=self._auto_timeout_s
        )

    async def _earlier(self, number: int, ident: str, owner: str) -> tuple[Floats, tuple[int, int]]:
        """The logits of a mask that was answered before, and the size of its image. NotFound says which prompt."""
        records = self._requests.records
        try:
            artifact = await asyncio.to_thread(records.artifact, owner, ident)
            if artifact.kind != "logits" or artifact.prediction_id is None:
                raise NotFound("it is another artifact")
            data = await self._requests.recorder.read(artifact.storage_key)
            image = await asyncio.to_thread(records.image_of, owner, artifact.prediction_id)
        except NotFound:
            raise NotFound(
                f"prompt {number}: there is no mask {ident[:40]!r} to refine; the id of a mask whose answer is stored "
                "is needed"
            ) from None
        logits = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
        return logits.reshape(SIDE, SIDE), (image.width, image.height)


def _keeps_logits(prompts: Any, multimask: bool) -> bool:
    count = len(prompts) if isinstance(prompts, (list, tuple)) and prompts else 1
    return count * (3 if multimask else 1) <= MAX_KEPT_LOGITS


def _without_logits(answer: MaskResponse) -> MaskResponse:
    results = tuple(tuple(replace(mask, logits=None) for mask in row) for row in answer.results)
    return replace(answer, results=results)


def _worded(prompts: Any) -> Any:
    """Prompts as JSON; a mask that came as an array is not repeated."""
    if not isinstance(prompts, tuple):
        return prompts
    return [
        {"points": [list(point) for point in one.points], "box": list(one.box) if one.box is not None else None}
        for one in prompts
    ]


def _check_sizes(sizes: dict[int, tuple[int, int]], image: ImageInfo) -> None:
    for number, size in sizes.items():
        if size != (image.width, image.height):
            raise BadInput(
                f"prompt {number}: mask_input is of an image of {size[0]} x {size[1]}, not {image.width} x "
                f"{image.height}"
            )


def _embedding(use: EmbeddingUse) -> dict[str, Any]:
    return {"cached": use.cached, "encode_ms": round(use.encode_ms, 3)}
