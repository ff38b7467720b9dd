"""Batch steps of Segment Anything: images to embeddings, prompts to masks, grid points to candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.engine.cancellation import RunCancellation
from models.engine.memory import trim
from models.images import DecodedImage, decode
from models.masks.predicted_masks import PromptMask
from models.results import ImageInfo
from models.sam.auto_masks import Candidate, Crop, Points, candidates, grid_tokens
from models.sam.auto_options import AutoOptions
from models.sam.embedding_cache import Embedding, EmbeddingCache, FileKey, pixels_hash
from models.sam.graphs import Decoded, Features, Floats
from models.sam.grids import longest_side_shape, to_input_coordinates
from models.sam.loader import LoadedSam
from models.sam.mask_decoding import decode_prompts, read_masks, refuse_strip
from models.sam.prompts import Prompt
from models.sam.upsampling import Upsampler


@dataclass(frozen=True, slots=True)
class EncodeInput:
    """An image to encode: ``image``, encoded bytes that are cached under ``key``; or ``crop``, pixels that are not."""

    image: bytes = b""
    key: FileKey | None = None
    crop: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image before the encoder: ``pixels``, the graph's input float32 [3, 1024, 1024], or ``found`` in the cache.

    ``hash``: see ``pixels_hash``; empty for a crop.
    """

    info: ImageInfo
    hash: str
    pixels: Floats | None
    found: Embedding | None


class EncodeSteps:
    """Decodes and encodes images. Pixels are looked up in the cache first: another file may decode to equal ones.

    ``decoded``: called after each image that was decoded; ``ran``: after each run of the encoder.
    """

    def __init__(
        self, sam: LoadedSam, cache: EmbeddingCache, decoded: Callable[[], None], ran: Callable[[], None]
    ) -> None:
        self._sam = sam
        self._cache = cache
        self._decoded = decoded
        self._ran = ran

    def prepare(self, payload: EncodeInput) -> tuple[Hashable, PreparedImage]:
        """Decode, look up, else resize and normalise. Raises as ``decode``; TooLarge for a strip."""
        if payload.crop is not None:
            image, name = DecodedImage(payload.crop, "image/png"), ""
        else:
            image = decode(payload.image)
            self._decoded()
            refuse_strip(image.width, image.height)
            name = pixels_hash(image)
        if payload.key is not None:
            found = self._cache.by_pixels(payload.key, name, image.info)
            if found is not None:
                return "held", PreparedImage(image.info, name, None, found)
        pixels = np.asarray(self._sam.preprocess(image.rgb), np.float32)
        return "new", PreparedImage(image.info, name, pixels, None)

    def run(
        self, prepared: Sequence[PreparedImage], cancellation: RunCancellation | None = None
    ) -> Sequence[tuple[Features, float] | None]:
        """Features and milliseconds of the run for each image; None for what the cache held."""
        new = [one.pixels for one in prepared if one.pixels is not None]
        if not new:
            return [None] * len(prepared)
        started = time.perf_counter()
        features = self._sam.graphs.encode(np.stack(new), cancellation)
        spent = (time.perf_counter() - started) * 1e3
        self._ran()
        if self._sam.graphs.device == "cpu":
            trim()  # glibc would keep half a gigabyte of a run's memory; takes 3 % of its time
        return [(one, spent) for one in features]

    def finish(
        self, output: tuple[Features, float] | None, prepared: PreparedImage, payload: EncodeInput
    ) -> tuple[Embedding, bool]:
        """The embedding, and whether the cache held it already."""
        if output is None:
            if prepared.found is None:
                raise RuntimeError("an image was neither found nor encoded")
            return prepared.found, True
        embedding = Embedding(prepared.info, output[0], output[1], prepared.hash)
        if payload.key is not None:
            self._cache.put(payload.key, embedding)
        return embedding, False


@dataclass(frozen=True, slots=True)
class DecodeInput:
    """Prompts on one image. ``wide``: run on one thread, beside other calls; else on all threads."""

    embedding: Embedding
    prompts: Sequence[Prompt]
    upsampler: Upsampler
    multimask: bool
    keep_logits: bool
    wide: bool


class DecodeSteps:
    """Computes the masks of prompts, one call per run: a run has the features of one image.

    ``ran``: called after each run with its number of prompts.
    """

    def __init__(self, sam: LoadedSam, ran: Callable[[int], None]) -> None:
        self._sam = sam
        self._ran = ran

    def prepare(self, payload: DecodeInput) -> tuple[Hashable, DecodeInput]:
        """The call as it is, under a key of its own: no two calls share a run."""
        return id(payload), payload

    def run(self, prepared: Sequence[DecodeInput], cancellation: RunCancellation | None = None) -> Sequence[Decoded]:
        """Run the decoder on the only call."""
        (call,) = prepared
        decoded = decode_prompts(
            self._sam.graphs, call.embedding, call.prompts, wide=call.wide, cancellation=cancellation
        )
        self._ran(len(call.prompts))
        return [decoded]

    def finish(self, output: Decoded, prepared: DecodeInput, payload: DecodeInput) -> list[tuple[PromptMask, ...]]:
        """The masks of each prompt, in order, at the size of the image."""
        return read_masks(output, payload.upsampler, multimask=payload.multimask, keep_logits=payload.keep_logits)


@dataclass(frozen=True, slots=True)
class GridInput:
    """Some ``points`` [B, 2] of the grid on one ``crop``, in its pixels. ``size``: height and width of the image."""

    features: Features
    points: Points
    crop: Crop
    size: tuple[int, int]
    upsampler: Upsampler
    options: AutoOptions


class GridSteps:
    """Computes the masks of grid points, one call per run.

    ``ran``: called after each run with its number of points.
    """

    def __init__(self, sam: LoadedSam, ran: Callable[[int], None]) -> None:
        self._sam = sam
        self._ran = ran

    def prepare(self, payload: GridInput) -> tuple[Hashable, GridInput]:
        """The call as it is, under a key of its own: no two calls share a run."""
        return id(payload), payload

    def run(self, prepared: Sequence[GridInput], cancellation: RunCancellation | None = None) -> Sequence[Decoded]:
        """Run the decoder on the only call; masks below ``pred_iou_thresh`` are not made."""
        (call,) = prepared
        size = call.upsampler.height, call.upsampler.width
        coords, labels = grid_tokens(call.points, to_input_coordinates(call.points, size, longest_side_shape(*size)))
        threshold = call.options.pred_iou_thresh
        decoded = self._sam.graphs.decode(
            call.features,
            coords,
            labels,
            min_iou=threshold if threshold > 0 else -np.inf,
            wide=True,
            cancellation=cancellation,
        )
        self._ran(len(call.points))
        return [decoded]

    def finish(self, output: Decoded, prepared: GridInput, payload: GridInput) -> list[Candidate]:
        """The masks that pass the thresholds, in pixels of the crop."""
        return candidates(output, payload.points, payload.crop, payload.size, payload.upsampler, payload.options)
