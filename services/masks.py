"""Masks: the transport-free core of Segment Anything's operations, beside Vision."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ekiben.errors import BadInput, NotFound, TooLarge
from models.asks import AutoAnswer, AutoAsk, EmbeddingUse, MaskAnswer, MaskAsk
from models.auto_options import AutoOptions
from models.cutouts import CutStyle, cut, place
from models.images import decode, encode_png
from models.mask_pictures import color_picture, overlay_picture, paint
from models.mask_results import AutoMask, PromptMask
from models.prompts import read_prompts
from models.results import PictureFacts, Timing
from models.sam_graphs import SIDE, Floats
from services import defaults
from services.mask_formats import Format, segmentation
from services.model_index import ModelIndex, Served
from services.recording import NPY, NewFile
from services.requests import Asked, Requests, Source
from services.runner import Runner
from services.vision import LOCAL, head
from services.wire import timing

MAX_CUT_PIXELS = 512_000_000
"""Of all cut-outs of one answer."""

_INLINE_RUNS = 20_000
"""Runs that are put into JSON on the event loop: about a millisecond. More go to a thread."""


@dataclass(frozen=True, slots=True)
class CutOut:
    """One object's PNG. ``body``: what the answer says of it."""

    body: dict[str, Any]
    png: bytes


class Masks:
    """Prompted masks, automatic masks and cut-outs. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self, index: ModelIndex, runner: Runner, requests: Requests, timeout_s: float, auto_timeout_s: float
    ) -> None:
        self._index = index
        self._runner = runner
        self._requests = requests
        self._timeout_s = timeout_s
        self._auto_timeout_s = auto_timeout_s

    async def prompted(
        self,
        source: Source,
        prompts: Any = None,
        *,
        model: str | None = None,
        version: int | None = None,
        multimask: bool = True,
        format: Format = "rle",
        logits: bool = True,
        store: bool = True,
        owner: str = LOCAL,
    ) -> dict[str, Any]:
        """Masks of ``prompts`` (parsed JSON), of the whole picture's box without any (see wire.MasksBody)."""
        served = await self._index.resolve(owner, model or defaults.MASKS, version, "masks")
        ask = MaskAsk(b"", (), multimask, keep_logits=store and logits)
        answer, spent, asked = await self._ask(source, served, prompts, ask, store, owner)
        try:
            files: list[NewFile] = []
            runs = sum(len(mask.rle.counts) for row in answer.results for mask in row)
            if runs < _INLINE_RUNS and format in ("rle", "coco"):
                results = self._results(answer, format, files, store)
            else:
                results = await asyncio.to_thread(self._results, answer, format, files, store)
        except BaseException:
            await self._requests.abandon(asked)
            raise
        best = max((mask.predicted_iou for row in answer.results for mask in row), default=None)
        ids = await self._requests.record(
            asked,
            served,
            answer.picture,
            spent,
            parameters={"prompts": prompts, "multimask": multimask, "format": format},
            result={"results": results},
            files=files,
            top=(None, best),
        )
        return {
            **head(ids, served, answer.picture),
            "results": results,
            "embedding": _embedding(answer.embedding),
            "timing": timing(spent),
        }

    async def automatic(
        self,
        source: Source,
        options: AutoOptions,
        *,
        model: str | None = None,
        version: int | None = None,
        format: Format = "rle",
        store: bool = True,
        owner: str = LOCAL,
    ) -> dict[str, Any]:
        """Masks of everything, the largest first (see wire.AutoMasksBody)."""
        served = await self._index.resolve(owner, model or defaults.MASKS, version, "masks")
        answer, spent, asked = await self._ask_auto(source, served, options, store, owner)
        try:
            files: list[NewFile] = []
            masks, pictures = await asyncio.to_thread(self._auto_masks, answer, format, files, asked, store)
        except BaseException:
            await self._requests.abandon(asked)
            raise
        ids = await self._requests.record(
            asked,
            served,
            answer.picture,
            spent,
            task="auto_masks",
            parameters={**options.parameters, "format": format},
            result={"masks": masks},
            files=[*files, *pictures],
            top=(None, max((mask.predicted_iou for mask in answer.masks), default=None)),
        )
        return {
            **head(ids, served, answer.picture),
            "masks": masks,
            "parameters": options.parameters,
            "artifacts": {file.kind: f"/v1/artifacts/{file.id}" for file in pictures} or None,
            "embedding": _embedding(answer.embedding),
            "timing": timing(spent),
        }

    async def cutouts(
        self,
        source: Source,
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
        owner: str = LOCAL,
    ) -> tuple[dict[str, Any], list[CutOut]]:
        """Objects of the prompts in their order, else of the automatic masks, the largest first (wire.CutoutsBody).

        With ``multimask`` the mask of a prompt with the best predicted IoU is cut.
        """
        served = await self._index.resolve(owner, model or defaults.MASKS, version, "masks")
        style = style or CutStyle()
        objects: list[tuple[int | None, PromptMask | AutoMask]]
        answer: MaskAnswer | AutoAnswer
        if prompts is not None:
            ask = MaskAsk(b"", (), multimask)
            answer, spent, asked = await self._ask(source, served, prompts, ask, store, owner)
            best = (max(row, key=lambda mask: mask.predicted_iou) for row in answer.results)
            objects = list(enumerate(best))
        else:
            answer, spent, asked = await self._ask_auto(source, served, options or AutoOptions(), store, owner)
            objects = [(None, mask) for mask in answer.masks]
        objects = [(prompt, mask) for prompt, mask in objects if mask.rle.area >= max(1, min_pixels)][:limit]
        try:
            cuts, files = await asyncio.to_thread(_cut_all, asked.data, objects, style, store)
        except BaseException:
            await self._requests.abandon(asked)
            raise
        bodies = [one.body for one in cuts]
        parameters: dict[str, Any] = {"min_pixels": min_pixels, "limit": limit, "frame": style.frame}
        parameters |= {"padding_px": style.padding_px, "feather_px": style.feather_px}
        if prompts is not None:
            parameters |= {"prompts": prompts, "multimask": multimask}
        else:
            parameters |= (options or AutoOptions()).parameters
        ids = await self._requests.record(
            asked,
            served,
            answer.picture,
            spent,
            task="cutouts",
            parameters=parameters,
            result={"cutouts": bodies},
            files=files,
            top=(None, max((mask.predicted_iou for _, mask in objects), default=None)),
        )
        body = {
            **head(ids, served, answer.picture),
            "cutouts": bodies,
            "embedding": _embedding(answer.embedding),
            "timing": timing(spent),
        }
        return body, cuts

    async def _ask(
        self, source: Source, served: Served, prompts: Any, ask: MaskAsk, store: bool, owner: str
    ) -> tuple[MaskAnswer, Timing, Asked]:
        read, idents = read_prompts(prompts) if prompts is not None else ([], [])
        sizes: dict[int, tuple[int, int]] = {}
        for number, ident in enumerate(idents):
            if ident is not None:
                logits, sizes[number] = await self._earlier(number, ident, owner)
                read[number] = replace(read[number], mask_input=logits)

        async def infer(image: bytes, deadline: float) -> tuple[MaskAnswer, Timing]:
            answer, spent = await self._runner.masks(
                served.key, replace(ask, image=image, prompts=tuple(read)), deadline
            )
            _check_sizes(sizes, answer.picture)
            return answer, spent

        return await self._requests.infer(source, served, infer, store=store, owner=owner, timeout_s=self._timeout_s)

    async def _ask_auto(
        self, source: Source, served: Served, options: AutoOptions, store: bool, owner: str
    ) -> tuple[AutoAnswer, Timing, Asked]:
        async def infer(image: bytes, deadline: float) -> tuple[AutoAnswer, Timing]:
            return await self._runner.auto_masks(served.key, AutoAsk(image, options), deadline)

        return await self._requests.infer(
            source, served, infer, store=store, owner=owner, timeout_s=self._auto_timeout_s
        )

    async def _earlier(self, number: int, ident: str, owner: str) -> tuple[Floats, tuple[int, int]]:
        """The logits of a mask that was answered before, and the size of its picture. NotFound says which prompt."""
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

    def _results(self, answer: MaskAnswer, format: Format, files: list[NewFile], store: bool) -> list[dict[str, Any]]:
        results = []
        for number, row in enumerate(answer.results):
            masks = []
            for mask in row:
                ident = None
                if mask.logits is not None:
                    file = NewFile("logits", _npy(mask.logits), NPY)
                    files.append(file)
                    ident = file.id
                masks.append({"id": ident, **_facts(mask, segmentation(mask.rle, format, files, store=store))})
            results.append({"prompt": number, "masks": masks})
        return results

    def _auto_masks(
        self, answer: AutoAnswer, format: Format, files: list[NewFile], asked: Asked, store: bool
    ) -> tuple[list[dict[str, Any]], list[NewFile]]:
        masks = []
        for mask in answer.masks:
            drawn = segmentation(mask.rle, format, files, store=store)
            masks.append({**_facts(mask, drawn), "point_coords": [list(mask.point)], "crop_box": list(mask.crop_box)})
        if not store:
            return masks, []
        picture = answer.picture
        painted = paint([mask.rle for mask in answer.masks], picture.height, picture.width)
        color = color_picture(painted, len(masks))
        overlay = overlay_picture(painted, len(masks), decode(asked.data).rgb)
        return masks, [NewFile("color", encode_png(color)), NewFile("overlay", encode_png(overlay))]


def _facts(mask: PromptMask | AutoMask, drawn: Any) -> dict[str, Any]:
    return {
        "segmentation": drawn,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "area": mask.rle.area,
        "bbox": list(mask.rle.bbox_xywh),
    }


def _cut_all(
    data: bytes, objects: Sequence[tuple[int | None, PromptMask | AutoMask]], style: CutStyle, store: bool
) -> tuple[list[CutOut], list[NewFile]]:
    boxes = [place(mask.rle, style) for _, mask in objects]
    if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) > MAX_CUT_PIXELS:
        raise TooLarge(
            f"{len(boxes)} cut-outs of this size have more than {MAX_CUT_PIXELS} pixels; ask for fewer (limit, "
            "min_pixels) or for frame=box"
        )
    rgb = decode(data).rgb
    cuts: list[CutOut] = []
    files: list[NewFile] = []
    for (prompt, mask), (x0, y0, x1, y1) in zip(objects, boxes, strict=True):
        png = encode_png(cut(rgb, mask.rle, style))
        file = NewFile("cutout", png)
        body = {
            "id": file.id if store else None,
            "url": f"/v1/artifacts/{file.id}" if store else None,
            "prompt": prompt,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "width": x1 - x0,
            "height": y1 - y0,
            "area": mask.rle.area,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
        }
        cuts.append(CutOut(body, png))
        if store:
            files.append(file)
    return cuts, files


def _check_sizes(sizes: dict[int, tuple[int, int]], picture: PictureFacts) -> None:
    for number, size in sizes.items():
        if size != (picture.width, picture.height):
            raise BadInput(
                f"prompt {number}: mask_input is of a picture of {size[0]} x {size[1]}, not {picture.width} x "
                f"{picture.height}"
            )


def _embedding(use: EmbeddingUse) -> dict[str, Any]:
    return {"cached": use.cached, "encode_ms": round(use.encode_ms, 3)}


def _npy(logits: Floats) -> bytes:
    out = io.BytesIO()
    np.save(out, logits.astype("<f4"), allow_pickle=False)
    return out.getvalue()
