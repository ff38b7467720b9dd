"""The unet family: images cut into tiles, or resized whole, to a class and a probability per pixel."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadModelFile
from models.artifact import Manifest
from models.images import DecodedImage, encode_png
from models.inference_requests import PROBABILITY, InferenceRequest, InferenceResponse
from models.results import ImageInfo, Segmentation, TensorInfo
from models.segmenter import BAND_PIXELS, Segmenter, band, render
from models.sliding_window import PaintRegion, Tile, TileBlender, TileGrid, cut_tile

FloatArray = NDArray[np.floating[Any]]

_FLIPS: Final = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Steps along rows and columns: unchanged, mirrored left to right, top to bottom, both. Each is its own inverse."""


class Unet(Segmenter):
    """Reads logits [C, side, side] of tiles [3, side, side], which have the graph's size.

    With two labels there is one channel, the logit of label 1: class 1 is where its probability is at least the
    manifest's threshold. Else there is one channel per label: the largest logit is the class, of equal ones the lower.
    BadModelFile where the manifest describes another kind of graph.
    """

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        graph, output = manifest.input, manifest.only_output
        if graph.height is None or graph.height != graph.width:
            raise BadModelFile("a unet takes squares of a fixed size: the manifest's input has height equal to width")
        if output.activation != "logits" or output.layout != "NCHW":
            raise BadModelFile("a unet gives logits [N, C, H, W]: its activation is logits, its layout NCHW")
        self.side: int = graph.height
        self.channels = 1 if len(manifest.labels) == 2 else len(manifest.labels)
        self.overlap = None if manifest.tiling is None else manifest.tiling.overlap
        self._least_logit = np.float32(math.log(output.threshold / (1 - output.threshold)))

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """``class_map``: the class of every pixel; with two labels also ``probability``, of label 1, in 65535ths."""
        sure = TensorInfo(PROBABILITY, "float32", (-1, -1), usual=False)
        return (TensorInfo("class_map", "uint8", (-1, -1)), *((sure,) if self.channels == 1 else ()))

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles at their own size; else they are resized to one."""
        return self.overlap is not None

    def grid(self, height: int, width: int) -> TileGrid:
        """The grid of tiles of an image; of the resized image, which is one tile, where it is not tiled."""
        if self.overlap is None:
            return TileGrid(self.side, self.side, self.side, 0)
        return TileGrid(height, width, self.side, self.overlap)

    def tiles(self, height: int, width: int) -> tuple[Tile, ...]:
        """The tiles of an image of this size, in the order of blending; corners are of the padded image."""
        return self.grid(height, width).tiles

    def cut(self, pixels: NDArray[np.uint8], tile: Tile) -> NDArray[np.generic]:
        """One tile of ``pixels`` uint8 [H, W, 3] as the graph's input: normalised, in its layout and dtype."""
        return self.normalised(cut_tile(pixels, tile, self.side))

    def predict(
        self, rgb: Image.Image, run: Callable[[NDArray[Any]], FloatArray], *, flips: bool = False, batch: int = 1
    ) -> NDArray[np.float32]:
        """Logits float32 [C, H, W] of a whole image. ``run``: [N, 3, side, side] to [N, C, side, side], N <= batch.

        ``flips``: the logits are the mean over every tile and its three mirror images. Blocks.
        """
        logits = np.empty((self.channels, rgb.height, rgb.width), np.float32)

        def paint(rows: slice, columns: slice, part: NDArray[np.float32]) -> None:
            logits[:, rows, columns] = part

        tiled_image = TiledImage(self, rgb, paint, flips=flips)
        for first in range(0, tiled_image.pieces, batch):
            numbers = range(first, min(first + batch, tiled_image.pieces))
            for number, row in zip(numbers, run(np.stack([tiled_image.tensor(n) for n in numbers])), strict=True):
                tiled_image.add(number, row)
        return logits

    def probabilities(self, logits: FloatArray) -> NDArray[np.float32]:
        """float32 [C, H, W] in 0-1 from ``logits`` [C, H, W]: of label 1 for one channel, else of every label."""
        logits = logits.astype(np.float32, copy=False)
        if len(logits) == 1:
            # exp of negative values only: it cannot overflow.
            small = np.exp(-np.abs(logits))
            return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), np.float32)
        powers = np.exp(logits - logits.max(axis=0))
        return np.asarray(powers / powers.sum(axis=0), np.float32)

    def class_map(self, logits: FloatArray) -> NDArray[np.uint8]:
        """uint8 [H, W]: the class of each pixel, from ``logits`` [C, H, W]."""
        if len(logits) == 1:
            return np.asarray(logits[0] >= self._least_logit, np.uint8)
        best, classes = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
        for channel in range(1, len(logits)):  # several times faster than argmax over the first axis
            better = logits[channel] > best
            np.copyto(best, logits[channel], where=better)
            classes[better] = channel
        return classes

    def preprocess(self, image: DecodedImage) -> NDArray[np.generic]:
        """The whole image as one input: resized where it is not tiled. ValueError for a tiled one of another size."""
        if self.tiled and image.rgb.size != (self.side, self.side):
            raise ValueError("an image that is cut into tiles has no single input: see TiledImage")
        return super().preprocess(image)

    def postprocess(
        self, output: FloatArray, image: DecodedImage | None, request: InferenceRequest
    ) -> InferenceResponse:
        """The response for an image that was one input, from its logits ``output`` [C, side, side]."""
        height, width = (image.height, image.width) if image is not None else output.shape[1:]
        prediction_map = self.prediction_map(height, width, request)
        for rows, logits in self.enlarged(output, height, width):
            prediction_map.paint(rows, slice(0, width), logits)
        return self.answer(prediction_map, image, request)

    def prediction_map(self, height: int, width: int, request: InferenceRequest) -> PredictionMap:
        """An empty map for an image of this size, with probabilities if ``request`` needs them."""
        return PredictionMap(self, height, width, probability=PROBABILITY in (*request.renders, *request.tensors))

    def answer(
        self,
        prediction_map: PredictionMap,
        image: DecodedImage | None,
        request: InferenceRequest,
        check: Callable[[], None] = lambda: None,
    ) -> InferenceResponse:
        """The response from a complete map. ``check`` is called before each render and may raise to stop."""
        segmentation = Segmentation(prediction_map.class_map, self._areas(prediction_map.class_map), self._palette)
        renders = {}
        for name in request.renders if image is not None else ():
            check()
            if name == PROBABILITY and prediction_map.probability is not None:
                renders[name] = encode_png(Image.fromarray(prediction_map.probability))
            elif image is not None:
                renders[name] = encode_png(render(name, segmentation, image))
        height, width = prediction_map.class_map.shape
        info = image.info if image is not None else ImageInfo(width, height, "")
        tensors = {name: prediction_map.tensor(name) for name in request.tensors}
        return InferenceResponse(info, areas=segmentation.classes, renders=renders, tensors=tensors)

    def enlarged(self, output: FloatArray, height: int, width: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """``output`` [C, h, w] resized bilinearly to ``height`` x ``width``, some rows at a time.

        Yields slices of rows, each with its logits float32 [C, rows, width].
        """
        planes = np.ascontiguousarray(output, np.float32)
        step = max(1, BAND_PIXELS // width)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            yield slice(top, bottom), np.stack([band(plane, top, bottom, height, width) for plane in planes])

    def resized(self, rgb: Image.Image) -> Image.Image:
        """The image that tiles are cut from: unchanged where it is tiled, else resized to one tile."""
        return rgb if self.tiled else self._preprocess.resize(rgb)

    def normalised(self, square: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The graph's input for a tile uint8 [side, side, 3]."""
        return self._preprocess(Image.fromarray(square))


class PredictionMap:
    """What is kept of the logits: the class of every pixel and, if needed, the probability of class 1.

    ``class_map``: uint8 [height, width]. ``probability``: uint16 [height, width], 65535 is 1; None if not needed.
    """

    def __init__(self, unet: Unet, height: int, width: int, *, probability: bool) -> None:
        self._unet = unet
        self.class_map = np.zeros((height, width), np.uint8)
        self.probability = np.zeros((height, width), np.uint16) if probability else None

    def tensor(self, name: str) -> NDArray[np.generic]:
        """The array called ``name``: ``class_map``, or ``probability`` as float32 in 0-1."""
        if name == PROBABILITY and self.probability is not None:
            return self.probability.astype(np.float32) / np.float32(65535)
        return self.class_map

    def paint(self, rows: slice, columns: slice, logits: NDArray[np.float32]) -> None:
        """Fill a part of the map from its ``logits`` [C, rows, columns]."""
        self.class_map[rows, columns] = self._unet.class_map(logits)
        if self.probability is not None:
            self.probability[rows, columns] = np.rint(self._unet.probabilities(logits)[0] * np.float32(65535))


class TiledImage:
    """An image in ``pieces`` inputs of the graph, by number, and the blending of their outputs.

    A piece is a tile or, with ``flips``, one of the four mirror images of a tile. Outputs may come in any order and
    from several threads; they are blended in order, so that the result does not depend on timing, and early ones are
    held until then. ``paint`` gets every part of the image once.
    """

    def __init__(self, unet: Unet, rgb: Image.Image, paint: PaintRegion, *, flips: bool) -> None:
        self._unet = unet
        self._size = rgb.height, rgb.width
        self._pixels = np.asarray(unet.resized(rgb))
        self._grid = unet.grid(*self._pixels.shape[:2])
        self._paint = paint
        self._blender = TileBlender(self._grid, unet.channels, paint if unet.tiled else self._paint_enlarged)
        self._flips = _FLIPS if flips else _FLIPS[:1]
        self.pieces = len(self._grid.tiles) * len(self._flips)
        self._early: dict[int, NDArray[np.float32]] = {}
        self._next = 0
        self._sum: NDArray[np.float32] | None = None
        self._lock = threading.Lock()

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]: the image that tiles are cut from."""
        return self._pixels

    def tensor(self, number: int) -> NDArray[np.generic]:
        """The graph's input for piece ``number``, in its layout and dtype."""
        tile, flip = divmod(number, len(self._flips))
        down, across = self._flips[flip]
        square = cut_tile(self._pixels, self._grid.tiles[tile], self._unet.side)[::down, ::across]
        return self._unet.normalised(np.ascontiguousarray(square))

    def add(self, number: int, logits: FloatArray) -> None:
        """Take the graph's output [C, side, side] for piece ``number``. BadModelFile for another shape."""
        expected = (self._unet.channels, self._unet.side, self._unet.side)
        if logits.shape != expected:
            raise BadModelFile(f"the graph gives {list(logits.shape)} for a tile; its manifest says {list(expected)}")
        with self._lock:
            self._early[number] = logits.astype(np.float32, copy=False)
            while (ready := self._early.pop(self._next, None)) is not None:
                self._take(ready)
                self._next += 1

    def _take(self, logits: NDArray[np.float32]) -> None:
        flip = self._next % len(self._flips)
        down, across = self._flips[flip]
        upright = logits[:, ::down, ::across]
        self._sum = upright if self._sum is None else self._sum + upright
        if flip + 1 == len(self._flips):
            self._blender.add(self._sum / np.float32(len(self._flips)))
            self._sum = None

    def _paint_enlarged(self, _rows: slice, _columns: slice, logits: NDArray[np.float32]) -> None:
        height, width = self._size
        for rows, part in self._unet.enlarged(logits, height, width):
            self._paint(rows, slice(0, width), part)
