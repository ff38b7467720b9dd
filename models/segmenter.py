"""The segmenter family: one image in, a class per pixel out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.artifact import Manifest
from models.images import DecodedImage, encode_png
from models.inference_requests import InferenceRequest, InferenceResponse
from models.preprocess import Preprocessor
from models.results import ClassArea, ImageInfo, Segmentation, TensorInfo

FloatArray = NDArray[np.floating[Any]]

_SIGMOID_THRESHOLD = 0.5
BAND_PIXELS = 1 << 20  # pixels computed at a time: 4 MB of one channel


class Segmenter:
    """Reads an output [classes, h, w] or [h, w, classes]; scores are enlarged before the class is chosen.

    With ``sigmoid`` output a pixel is background (class 0) where no channel exceeds 0.5, else 1 + the best channel.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._preprocess = Preprocessor(manifest)
        self._labels = manifest.labels
        self._palette = np.array(manifest.palette, dtype=np.uint8)
        self._sigmoid = manifest.only_output.activation == "sigmoid"
        self._channels_last = manifest.only_output.layout == "NHWC"
        self._output = manifest.only_output.name

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """``class_map``: the class of every pixel; and the raw output of the graph, under its own name."""
        own = TensorInfo(self._output, "float32", (-1, -1, -1), usual=False)
        return (TensorInfo("class_map", "uint8", (-1, -1)), *((own,) if self._output != "class_map" else ()))

    def preprocess(self, image: DecodedImage) -> NDArray[np.generic]:
        """The graph's input for one image, without the batch axis."""
        return self._preprocess(image.rgb)

    def postprocess(
        self, output: FloatArray, image: DecodedImage | None, request: InferenceRequest
    ) -> InferenceResponse:
        """The area of each class, and the images and arrays that the request names."""
        segmentation = self.segmentation(output, image)
        renders = {}
        if image is not None:
            renders = {name: encode_png(render(name, segmentation, image)) for name in request.renders}
        tensors: dict[str, NDArray[np.generic]] = {}
        for name in request.tensors:
            tensors[name] = segmentation.class_map if name == "class_map" else output.astype(np.float32, copy=False)
        info = image.info if image is not None else _size(segmentation.class_map)
        return InferenceResponse(info, areas=segmentation.classes, renders=renders, tensors=tensors)

    def segmentation(self, output: FloatArray, image: DecodedImage | None) -> Segmentation:
        """The class of each pixel at the size of the image (without one, of the output), and the area of each class."""
        scores = output.transpose(2, 0, 1) if self._channels_last else output
        height, width = (image.height, image.width) if image is not None else scores.shape[1:]
        class_map = enlarge_and_choose(
            np.ascontiguousarray(scores, dtype=np.float32), height, width, sigmoid=self._sigmoid
        )
        return Segmentation(class_map, self._areas(class_map), self._palette)

    def _areas(self, class_map: NDArray[np.uint8]) -> tuple[ClassArea, ...]:
        counts = np.zeros(len(self._labels), np.int64)
        for rows in np.array_split(class_map, max(1, class_map.size // BAND_PIXELS)):
            counts += np.bincount(rows.ravel(), minlength=len(self._labels))  # bincount makes 8 bytes of each pixel
        present = sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], i))
        return tuple(
            ClassArea(
                class_index=int(i),
                class_name=self._labels[i],
                color=tuple(int(v) for v in self._palette[i]),  # type: ignore[arg-type]
                pixels=int(counts[i]),
                share=float(counts[i] / class_map.size),
            )
            for i in present
        )


def _size(class_map: NDArray[np.uint8]) -> ImageInfo:
    return ImageInfo(class_map.shape[1], class_map.shape[0], "")


def enlarge_and_choose(scores: FloatArray, height: int, width: int, *, sigmoid: bool = False) -> NDArray[np.uint8]:
    """uint8 [height, width]: the class of each pixel from ``scores`` float32 [C, h, w], enlarged bilinearly first.

    Pillow's bilinear filter, enlarging, is ``torch.nn.functional.interpolate(mode="bilinear",
    align_corners=False)``; where the image is smaller than the scores it averages (antialiasing). Only some rows of one
    channel are held at the image's size at a time: a 64-megapixel image with 21 classes would need 5 GB. Of equal
    scores the lower class wins.
    """
    class_map = np.empty((height, width), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        bands = (band(plane, top, bottom, height, width) for plane in scores)
        _choose(bands, class_map[top:bottom], sigmoid=sigmoid)
    return class_map


def _choose(planes: Iterable[NDArray[np.float32]], class_map: NDArray[np.uint8], *, sigmoid: bool) -> None:
    """Fill ``class_map`` [h, w] with the best of the ``planes``, each [h, w]."""
    best: NDArray[np.float32] | None = None
    for channel, plane in enumerate(planes):
        if best is None:
            best = plane.copy()
            # Without a sigmoid the first channel wins until another is better; with one it must pass the threshold.
            class_map[:] = best > _SIGMOID_THRESHOLD if sigmoid else 0
            continue
        better = plane > best
        np.copyto(best, plane, where=better)
        if sigmoid:
            better &= plane > _SIGMOID_THRESHOLD
        class_map[better] = channel + 1 if sigmoid else channel


def band(plane: FloatArray, top: int, bottom: int, height: int, width: int) -> NDArray[np.float32]:
    """float32 [bottom - top, width]: rows ``top`` to ``bottom`` of ``plane`` resized to ``height`` x ``width``."""
    if plane.shape == (height, width):
        return plane[top:bottom]
    box = (0, top * plane.shape[0] / height, plane.shape[1], bottom * plane.shape[0] / height)
    return np.asarray(Image.fromarray(plane).resize((width, bottom - top), Image.Resampling.BILINEAR, box=box))


def render(name: str, segmentation: Segmentation, image: DecodedImage) -> Image.Image:
    """The image called ``name``, one of inference_requests.RENDERS."""
    if name == "overlay":
        return overlay(segmentation, image.rgb)
    return {"mask": index_mask, "color": color_mask}[name](segmentation)


def color_mask(segmentation: Segmentation) -> Image.Image:
    """An image of mode P: the class indexes, with the colours of the classes as palette."""
    image = Image.fromarray(segmentation.class_map)
    image.putpalette(segmentation.palette.ravel().tolist())
    return image


def index_mask(segmentation: Segmentation) -> Image.Image:
    """A grey image of which the level is the class index."""
    return Image.fromarray(segmentation.class_map)


def overlay(segmentation: Segmentation, rgb: Image.Image, opacity: float = 0.5) -> Image.Image:
    """The RGB image with every class but 0 (background) tinted in its colour."""
    tinted = Image.blend(rgb, color_mask(segmentation).convert("RGB"), opacity)
    return Image.composite(tinted, rgb, Image.fromarray(((segmentation.class_map > 0) * 255).astype(np.uint8)))
