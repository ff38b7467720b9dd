"""Preprocessing: from a decoded image to the input tensor of a graph, as its manifest says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import TooLarge
from models.artifact import Manifest
from models.sam.grids import longest_side_shape

# Where only the shorter side is fixed, the memory of a run grows with the ratio of the sides.
MAX_ASPECT = 16

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear_no_antialias": Image.Resampling.BILINEAR,
}


class Preprocessor:
    """Resizes, crops and normalises images. Thread-safe: holds constants only."""

    def __init__(self, manifest: Manifest) -> None:
        steps, graph = manifest.preprocess, manifest.input
        self._steps = steps
        self._size = (graph.width, graph.height)
        self._filter = _FILTERS[steps.interpolation]
        self._antialias = steps.interpolation != "bilinear_no_antialias"
        self._channels_first = graph.layout == "NCHW"
        self._bgr = graph.color == "BGR"
        self._dtype = np.dtype(graph.dtype)
        # (pixel / 255 - mean) / std == (pixel - 255 mean) / (255 std): one subtraction, one multiplication.
        shape = (3, 1, 1) if self._channels_first else (1, 1, 3)
        self._offset = (np.array(steps.mean) * 255.0).astype(np.float32).reshape(shape)
        self._scale = (1.0 / (np.array(steps.std) * 255.0)).astype(np.float32).reshape(shape)

    def __call__(self, rgb: Image.Image) -> NDArray[np.generic]:
        """The input [C, H, W] or [H, W, C], by the graph's layout and dtype: normalised, but pixels for a uint8 graph.

        TooLarge as for ``resize``.
        """
        pixels = np.asarray(self.resize(rgb))
        if self._bgr:
            pixels = pixels[:, :, ::-1]
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        if self._dtype == np.uint8:
            return np.ascontiguousarray(pixels)
        tensor = np.empty(pixels.shape, np.float32)
        np.subtract(pixels, self._offset, out=tensor)
        np.multiply(tensor, self._scale, out=tensor)
        if self._steps.longer_side is not None:
            tensor = self._padded(tensor)
        return tensor.astype(self._dtype, copy=False)

    def _padded(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        width, height = self._fixed_size()
        if not self._channels_first:
            raise ValueError("longer_side needs a graph that takes NCHW")
        return np.pad(tensor, ((0, 0), (0, height - tensor.shape[1]), (0, width - tensor.shape[2])))

    def resize(self, rgb: Image.Image) -> Image.Image:
        """The image at the graph's size. TooLarge where one side is fixed and the ratio of sides above MAX_ASPECT."""
        steps = self._steps
        width, height = rgb.size
        if steps.crop_share is not None:
            side = max(1, int(steps.crop_share * min(width, height)))
            left, top = (width - side) // 2, (height - side) // 2
            # Cropped first: what lies outside the square does not bleed into its edge.
            return self._scaled(rgb.crop((left, top, left + side, top + side)), self._fixed_size())
        if steps.longer_side is not None:
            rows, columns = longest_side_shape(height, width, steps.longer_side)
            return self._scaled(rgb, (columns, rows))
        if steps.shorter_side is None:
            return self._scaled(rgb, self._fixed_size())
        # torchvision.transforms.functional.resize with one number: the longer side is truncated to an integer.
        if width <= height:
            resized = (steps.shorter_side, int(steps.shorter_side * height / width))
        else:
            resized = (int(steps.shorter_side * width / height), steps.shorter_side)
        if steps.center_crop is None:
            _refuse_strips(width, height)
            return self._scaled(rgb, resized)
        crop = steps.center_crop
        # torchvision pads what is smaller than the crop; no shipped model needs it.
        if resized[0] < crop or resized[1] < crop or not self._antialias:
            _refuse_strips(width, height)
            return _center_crop(self._scaled(rgb, resized), crop)
        return self._resize_and_crop(rgb, resized, crop)

    def _scaled(self, rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The whole image at ``size``, which is width and height."""
        if rgb.size == size:
            return rgb
        if self._antialias:
            return rgb.resize(size, self._filter)
        # Centres of pixels at halves, as tf.image.resize; within one level of it, which Pillow rounds down.
        whole = (0, 0, rgb.width, rgb.height)
        return rgb.transform(size, Image.Transform.EXTENT, whole, resample=self._filter)

    def _resize_and_crop(self, rgb: Image.Image, resized: tuple[int, int], crop: int) -> Image.Image:
        """Resize to ``resized`` and keep a central square of side ``crop``, without computing what is cropped away.

        Pillow's ``box`` samples the same positions with the same filter as resizing everything and cropping
        afterwards would. Horizontally first, then vertically, which is Pillow's order for whole images: for some boxes
        it would choose the other order, and the rounding between the passes would change a quarter of the values by 1.
        """
        width, height = rgb.size
        # torchvision.transforms.functional.center_crop rounds half to even, as Python's round does.
        left, top = round((resized[0] - crop) / 2.0), round((resized[1] - crop) / 2.0)
        if 2 * width < height <= MAX_ASPECT * width:  # Pillow 13 resizes these down first; older ones do not
            return rgb.resize(resized, self._filter).crop((left, top, left + crop, top + crop))
        x_scale, y_scale = width / resized[0], height / resized[1]
        above, below, first = top * y_scale, (top + crop) * y_scale, 0
        if height > width:
            reach = 3 * max(1.0, y_scale) + 1  # of Lanczos, the widest filter
            first = max(0, int(above - reach))
            rgb = rgb.crop((0, first, width, min(height, int(below + reach) + 1)))
        # min: rounding may bring a product past the edge.
        across = (left * x_scale, 0, min((left + crop) * x_scale, width), rgb.height)
        narrow = rgb.resize((crop, rgb.height), self._filter, box=across)
        down = (0, above - first, crop, min(below - first, rgb.height))
        return narrow.resize((crop, crop), self._filter, box=down)

    def _fixed_size(self) -> tuple[int, int]:
        width, height = self._size
        if width is None or height is None:
            raise ValueError("the manifest gives neither a fixed size nor shorter_side")
        return width, height


def _refuse_strips(width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLarge(f"the image is {width} x {height}; this model takes sides of 1 : {MAX_ASPECT} at most")


def _center_crop(image: Image.Image, side: int) -> Image.Image:
    canvas = Image.new("RGB", (max(side, image.width), max(side, image.height)))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    left, top = round((canvas.width - side) / 2.0), round((canvas.height - side) / 2.0)
    return canvas.crop((left, top, left + side, top + side))
