"""Segment Anything in this process: the runs of encoder and decoder that a request needs, and their order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from ekiben.errors import DeadlineExceeded, Overloaded
from models.engine.batcher import ModelQueue
from models.image_cost import RGB_BYTES
from models.images import decode
from models.inference_requests import AutoMaskRequest, AutoMaskResponse, EmbeddingUse, MaskRequest, MaskResponse
from models.masks.predicted_masks import AutoMask, MaskUpdate, PromptMask
from models.model_key import ModelKey
from models.results import Timing
from models.sam.auto_masks import Candidate, Crop, IncrementalNms, Points, best_of_crop, merge, plan
from models.sam.auto_options import AutoOptions
from models.sam.batch_steps import DecodeInput, DecodeSteps, EncodeInput, EncodeSteps, GridInput, GridSteps
from models.sam.embedding_cache import Embedding, EmbeddingCache, FileKey, file_hash
from models.sam.graphs import Features
from models.sam.loader import LoadedSam
from models.sam.prompts import Prompt, check_prompts, whole_image
from models.sam.upsampling import Upsampler
from services.concurrency.bounded_gather import gather_bounded
from services.concurrency.cpu_executor import run_cpu_bound
from services.concurrency.memory_budget import MemoryBudget
from services.concurrency.single_flight import SingleFlight
from services.runners import metrics as gauges
from services.runners.async_batcher import AsyncBatcher
from services.runners.image_cost import cost_of
from services.runners.mask_runs import MaskRunBound
from services.runners.progress import NO_PROGRESS, ProgressSink

P = TypeVar("P")
T = TypeVar("T")

_HASH_IN_THREAD = 1 << 20  # bytes: a larger file is hashed in a thread
_ENCODED = 0.1
"""Progress (0-1) of automatic masks when their image is encoded."""


@dataclass(frozen=True, slots=True)
class _SamQueues:
    """The queues of one loaded model. Grids have their own, so that a click does not wait behind a whole grid."""

    sam: LoadedSam
    encode: ModelQueue[EncodeInput, tuple[Embedding, bool]]
    decode: ModelQueue[DecodeInput, list[tuple[PromptMask, ...]]]
    grid: ModelQueue[GridInput, list[Candidate]]


class SamRunner:
    """Computes masks with the batcher of this process and one cache of embeddings.

    ``share`` adds a lease on a model; ``memory``: what all images may take together.
    """

    def __init__(
        self,
        async_batcher: AsyncBatcher,
        share: Callable[[LoadedSam], None],
        cache: EmbeddingCache,
        memory: MemoryBudget,
    ) -> None:
        self._batcher = async_batcher
        self._share = share
        self.cache = cache
        self._memory = memory
        self._single_flight: SingleFlight[tuple[Embedding, bool, Timing]] = SingleFlight()
        self._open: dict[ModelKey, _SamQueues] = {}
        self.counts: Counter[tuple[ModelKey, str]] = Counter()

    async def masks(self, sam: LoadedSam, request: MaskRequest, deadline: float) -> tuple[MaskResponse, Timing]:
        """The masks of every prompt. The caller holds a lease on ``sam`` meanwhile. TooLarge, DeadlineExceeded."""
        queues = self._queues_of(sam)
        embedding, cached, spent = await self._embedding(queues, request.image, deadline)
        info = embedding.info
        check_prompts(request.prompts, info.width, info.height)
        prompts = request.prompts or (whole_image(info.width, info.height),)
        upsampler = Upsampler(info.height, info.width)
        # Each prompt with a mask input needs its own copy of the features: fewer at a time.
        step = sam.prompts_per_run // (1 if all(prompt.mask_input is None for prompt in prompts) else 4)
        parts = [prompts[first : first + step] for first in range(0, len(prompts), step)]

        runs = MaskRunBound()

        async def decode_part(part: Sequence[Prompt]) -> tuple[list[tuple[PromptMask, ...]], Timing]:
            call = DecodeInput(embedding, part, upsampler, request.multimask, request.keep_logits, wide=len(parts) > 1)
            decoded: tuple[list[tuple[PromptMask, ...]], Timing] = await self._submit(
                queues.decode, sam, call, 0, deadline
            )
            runs.add(mask.rle for row in decoded[0] for mask in row)
            return decoded

        decoded_parts = await gather_bounded(decode_part, parts, sam.threads + 1)
        results = tuple(row for rows, _ in decoded_parts for row in rows)
        timing = _together(spent, [timing for _, timing in decoded_parts], len(prompts))
        return MaskResponse(info, EmbeddingUse(cached, embedding.encode_ms), results), timing

    async def auto_masks(
        self, sam: LoadedSam, request: AutoMaskRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> tuple[AutoMaskResponse, Timing]:
        """The masks of everything. Once the call is cancelled or its deadline passed nothing more is computed."""
        started = time.perf_counter()
        queues = self._queues_of(sam)
        embedding, cached, spent = await self._embedding(queues, request.image, deadline)
        info = embedding.info
        size = info.height, info.width
        crops = plan(*size, request.options)
        kept: list[list[AutoMask]] = []
        points_total = sum(len(points) for _, points in crops)
        points_done = 0
        progress.advance(_ENCODED)
        nms, one_at_a_time = IncrementalNms(size, request.options), asyncio.Lock()

        async def done(crop: Crop, points: int, found: list[Candidate]) -> None:
            nonlocal points_done
            points_done += points
            share = _ENCODED + (1 - _ENCODED) * points_done / points_total
            progress.advance(share)
            if progress.on_masks is not None:
                async with one_at_a_time:
                    new, dropped = await asyncio.to_thread(nms.add, crop, found)
                progress.on_masks(MaskUpdate(tuple(new), tuple(dropped), share))

        async with contextlib.AsyncExitStack() as stack:
            rgb = await stack.enter_async_context(self._pixels(request.image, deadline)) if len(crops) > 1 else None
            for number, (crop, points) in enumerate(crops):
                features = embedding.features
                if number and rgb is not None:
                    features = await self._crop_features(queues, rgb, crop, deadline)
                found = await self._grid(queues, features, crop, points, size, request.options, deadline, done)
                kept.append(await asyncio.to_thread(best_of_crop, found, crop, size, request.options))
        masks = await run_cpu_bound(deadline, lambda check: merge(kept, request.options, check))
        timing = Timing(spent.queue_ms, (time.perf_counter() - started) * 1e3 - spent.queue_ms, points_total)
        return AutoMaskResponse(info, EmbeddingUse(cached, embedding.encode_ms), tuple(masks)), timing

    def close_queues(self, sam: LoadedSam) -> None:
        """Close the queues of an unloaded model, and drop its embeddings."""
        known = self._open.get(sam.key)
        if known is not None and known.sam is sam:
            del self._open[sam.key]
            for queue in self.queue_keys(sam.key):
                self._batcher.batcher.close_queue(queue)
            self.cache.drop(sam.key)

    def queue_keys(self, key: ModelKey) -> tuple[tuple[ModelKey, str], ...]:
        """The keys of a model's queues in the batcher."""
        return tuple((key, step) for step in ("encode", "decode", "grid"))

    def depth(self, key: ModelKey) -> int:
        """How many items of this model wait."""
        known = self._open.get(key)
        return 0 if known is None else sum(len(queue.items) for queue in (known.encode, known.decode, known.grid))

    async def _grid(
        self,
        queues: _SamQueues,
        features: Features,
        crop: Crop,
        points: Points,
        size: tuple[int, int],
        options: AutoOptions,
        deadline: float,
        done: Callable[[Crop, int, list[Candidate]], Awaitable[None]],
    ) -> list[Candidate]:
        """The candidates of one crop, in the order of its points. One chunk more is queued than can run at once."""
        upsampler = Upsampler(crop[3] - crop[1], crop[2] - crop[0])
        step = min(options.points_per_batch, queues.sam.points_per_run)
        calls = [
            GridInput(features, points[first : first + step], crop, size, upsampler, options)
            for first in range(0, len(points), step)
        ]

        runs = MaskRunBound()

        async def run_chunk(call: GridInput) -> tuple[list[Candidate], Timing]:
            try:
                found: tuple[list[Candidate], Timing] = await self._submit(queues.grid, queues.sam, call, 0, deadline)
                runs.add(one.rle for one in found[0])
                await done(crop, len(call.points), found[0])
                return found
            except Overloaded:  # the queue before this chunk would take it past the deadline: so the grid is late
                raise DeadlineExceeded("the automatic masks took longer than their deadline", retry_after_s=1) from None

        chunks = await gather_bounded(run_chunk, calls, queues.sam.threads + 1)
        return [one for candidates, _ in chunks for one in candidates]

    @contextlib.asynccontextmanager
    async def _pixels(self, image: bytes, deadline: float) -> AsyncIterator[Image.Image]:
        """The decoded image, for as long as its crops are encoded."""
        cost = await cost_of(image)
        async with self._memory.lease(cost.bytes, deadline) as memory:
            rgb = (await self._batcher.slow_threads.run(lambda: decode(image), deadline, memory)).rgb
            memory.shrink(RGB_BYTES * rgb.width * rgb.height)
            yield rgb

    async def _crop_features(self, queues: _SamQueues, rgb: Image.Image, crop: Crop, deadline: float) -> Features:
        pixels = await asyncio.to_thread(rgb.crop, crop)
        (embedding, _), _ = await self._submit(queues.encode, queues.sam, EncodeInput(crop=pixels), 0, deadline)
        return embedding.features

    async def _embedding(self, queues: _SamQueues, image: bytes, deadline: float) -> tuple[Embedding, bool, Timing]:
        """The embedding of a file, whether it was cached, and what this request waited for it."""
        if len(image) < _HASH_IN_THREAD:
            sha256 = file_hash(image)
        else:
            sha256 = await asyncio.to_thread(file_hash, image)
        key = FileKey(queues.sam.key.owner, queues.sam.key, sha256)
        found = self.cache.by_file(key)
        if found is not None:
            return found, True, Timing(0.0, 0.0, 1)

        async def encode() -> tuple[Embedding, bool, Timing]:
            call = EncodeInput(image, key)
            cost = await cost_of(image)
            if not cost.slow:
                (embedding, held), timing = await self._submit(queues.encode, queues.sam, call, len(image), deadline)
                return embedding, held, timing
            async with self._memory.lease(cost.bytes, deadline) as memory:
                self._share(queues.sam)
                (embedding, held), timing = await self._batcher.submit_slow(
                    queues.encode, queues.sam, call, deadline, memory
                )
            return embedding, held, timing

        while True:
            # The loaded model is part of it: who waits holds a lease on the one that computes.
            flight = queues.sam, key
            mine = not self._single_flight.running(flight)
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                    return await self._single_flight.do(flight, encode)
            except TimeoutError:
                raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
            except DeadlineExceeded:
                if mine or time.monotonic() > deadline:
                    raise  # else it was the deadline of the caller that began it: begin anew

    async def _submit(
        self, queue: ModelQueue[Any, T], sam: LoadedSam, call: Any, size: int, deadline: float
    ) -> tuple[T, Timing]:
        self._share(sam)
        return await self._batcher.submit(queue, sam, call, size, deadline)

    def _queues_of(self, sam: LoadedSam) -> _SamQueues:
        known = self._open.get(sam.key)
        if known is not None and known.sam is sam:
            return known
        name = sam.key.name
        batcher = self._batcher.batcher

        def encoded() -> None:
            gauges.encoder_runs.labels(name).inc()
            self.counts[sam.key, "batches"] += 1

        def decoded(prompts: int) -> None:
            gauges.decoder_prompts.labels(name).inc(prompts)

        encode = EncodeSteps(sam, self.cache, gauges.decoded_images.labels(name).inc, encoded)
        queues = _SamQueues(
            sam,
            batcher.open_queue(
                (sam.key, "encode"), encode, max_concurrency=sam.max_concurrency, max_batch=sam.encode_batch
            ),
            batcher.open_queue(
                (sam.key, "decode"), DecodeSteps(sam, decoded), max_concurrency=sam.decode_concurrency, max_batch=1
            ),
            batcher.open_queue(
                (sam.key, "grid"), GridSteps(sam, decoded), max_concurrency=sam.decode_concurrency, max_batch=1
            ),
        )
        self._open[sam.key] = queues
        return queues


def _together(encoding: Timing, decoding: Sequence[Timing], prompts: int) -> Timing:
    """The timing of one response: ``inference_ms`` is the sum of its runs, ``batch_size`` the number of its prompts."""
    return Timing(
        encoding.queue_ms + max(timing.queue_ms for timing in decoding),
        encoding.inference_ms + sum(timing.inference_ms for timing in decoding),
        prompts,
    )
