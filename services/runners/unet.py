"""U-Nets in this process, where one image is several inputs: the tiles of a sliding window, and mirrored copies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from ekiben.errors import BadInput, DeadlineExceeded, Overloaded
from models.engine.batcher import ModelQueue
from models.engine.loader import LoadedNetwork
from models.image_batch_steps import TileInput
from models.images import DecodedImage, open_image
from models.inference_requests import InferenceRequest, InferenceResponse, PreparedTensor
from models.results import ImageInfo, Timing
from models.unet import PredictionMap, TiledImage, Unet
from services.concurrency.cpu_executor import CheckCancelled, run_cpu_bound
from services.concurrency.memory_budget import MemoryBudget
from services.runners.async_batcher import AsyncBatcher
from services.runners.image_cost import cost_of
from services.runners.progress import NO_PROGRESS, ProgressSink

UnetQueue = ModelQueue[InferenceRequest | TileInput, InferenceResponse | int]

_JUDGED_AFTER_S = 2.0  # before that the estimate of the rest is too uncertain
_TOO_SLOW = 1.5  # the estimate has to be this many times the time left


@dataclass(frozen=True, slots=True)
class _Opened:
    """A decoded image. ``rgb`` is None where ``tiled_image`` has its pixels: a copy of the largest takes 0.25 GB."""

    info: ImageInfo
    tiled_image: TiledImage
    prediction_map: PredictionMap
    rgb: Image.Image | None

    @property
    def image(self) -> DecodedImage:
        rgb = self.rgb if self.rgb is not None else Image.fromarray(self.tiled_image.pixels)
        return DecodedImage(rgb, self.info.mime_type, self.info.value_range)


class UnetRunner:
    """Computes images tile by tile.

    ``share`` adds a lease on a model; ``memory``: what all images may take together.
    """

    def __init__(self, batcher: AsyncBatcher, share: Callable[[LoadedNetwork], None], memory: MemoryBudget) -> None:
        self._batcher = batcher
        self._share = share
        self._memory = memory

    async def segment(
        self,
        loaded: LoadedNetwork,
        unet: Unet,
        queue: UnetQueue,
        request: InferenceRequest,
        deadline: float,
        progress: ProgressSink = NO_PROGRESS,
    ) -> tuple[InferenceResponse, Timing]:
        """The response, and its time from the first tile to the last. The caller holds a lease on ``loaded`` meanwhile.

        DeadlineExceeded once ``deadline`` has passed, or as soon as the tiles so far show that it will; nothing more is
        computed then, nor when the call is cancelled.
        """
        arrived = time.perf_counter()
        cost = await cost_of(request.image)
        async with self._memory.lease(cost.bytes, deadline) as memory:
            opened = await self._batcher.slow_threads.run(lambda: _decoded(unet, request), deadline, memory)
            began = time.perf_counter()
            waited = await self._read(loaded, queue, opened.tiled_image, deadline, progress)
            took = time.perf_counter() - began - waited
            response = await run_cpu_bound(deadline, lambda check: _response(unet, opened, request, check))
        return response, Timing((began - arrived + waited) * 1e3, took * 1e3, opened.tiled_image.pieces)

    async def _read(
        self, loaded: LoadedNetwork, queue: UnetQueue, tiled_image: TiledImage, deadline: float, progress: ProgressSink
    ) -> float:
        """Run all tiles; the seconds that the first one was queued. An error, or a cancellation, ends the others."""
        numbers = iter(range(tiled_image.pieces))
        under_way: set[asyncio.Task[tuple[InferenceResponse | int, Timing]]] = set()
        ended: set[asyncio.Task[tuple[InferenceResponse | int, Timing]]] = set()
        waited, done, began = 0.0, 0, time.monotonic()
        try:
            while True:
                while len(under_way) < self._bound(queue) and (number := next(numbers, None)) is not None:
                    under_way.add(
                        asyncio.create_task(self._submit(loaded, queue, TileInput(tiled_image, number), deadline))
                    )
                if not under_way:
                    return waited
                ended, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                if errors := [error for task in ended if (error := task.exception()) is not None]:
                    # Overloaded of the first tile tells more than DeadlineExceeded of the others.
                    raise next((error for error in errors if isinstance(error, Overloaded)), errors[0])
                for task in ended:
                    number_done, timing = task.result()
                    if number_done == 0:
                        waited = timing.queue_ms / 1e3
                done += len(ended)
                progress.advance(done / tiled_image.pieces)
                _judge(done, tiled_image.pieces, began, deadline)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*ended, *under_way, return_exceptions=True)

    def _bound(self, queue: UnetQueue) -> int:
        """How many tiles of one image are queued at once.

        As many as run, and two batches more, which the batcher needs to try a batch of twice the size; not all, so that
        other requests for this model do not wait for a whole image.
        """
        return (queue.max_concurrency + 2) * self._batcher.batcher.batch_size(queue.key)

    async def _submit(
        self, loaded: LoadedNetwork, queue: UnetQueue, piece: TileInput, deadline: float
    ) -> tuple[InferenceResponse | int, Timing]:
        self._share(loaded)
        try:
            return await self._batcher.submit(queue, loaded, piece, 0, deadline)
        except Overloaded:
            if piece.number == 0:
                raise
            # The queue before this tile would take it past the deadline: so the image is late.
            raise DeadlineExceeded("the image took longer than its deadline", retry_after_s=1) from None


def _decoded(unet: Unet, request: InferenceRequest) -> _Opened:
    if isinstance(request.image, PreparedTensor):
        raise BadInput("flips are made of an image, not of a tensor that was prepared elsewhere")
    image = open_image(request.image)
    prediction_map = unet.prediction_map(image.height, image.width, request)
    tiled_image = TiledImage(unet, image.rgb, prediction_map.paint, flips=request.flips)
    return _Opened(image.info, tiled_image, prediction_map, None if unet.tiled else image.rgb)


def _response(unet: Unet, opened: _Opened, request: InferenceRequest, check: CheckCancelled) -> InferenceResponse:
    return unet.answer(opened.prediction_map, opened.image, request, check)


def _judge(done: int, pieces: int, began: float, deadline: float) -> None:
    """DeadlineExceeded when the rest, at the speed of the tiles so far, would take far longer than the time left."""
    now = time.monotonic()
    needed = (now - began) / done * (pieces - done)
    if now - began > _JUDGED_AFTER_S and needed > _TOO_SLOW * (deadline - now):
        raise DeadlineExceeded(
            f"{done} of {pieces} tiles took {now - began:.1f} s: the rest, about {needed:.0f} s, would pass the "
            "deadline; send it as a job, which has more time",
            retry_after_s=1,
        )
