"""ZIP files of images and datasets, and ONNX files, whose structure is valid and whose numbers are hostile."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.fuzz import hostile, medical_files, raster_files

NAMES = (
    "a.png",
    "b.jpg",
    "../a.png",
    "/etc/a.png",
    "a\\b.png",
    "images/a.png",
    "masks/a.png",
    "é.png",
    "e\u0301.png",
    "a" * 250 + ".png",
)
NAMES += (
    "CON.png",
    ".hidden.png",
    "__MACOSX/._a.png",
    "dir/",
    "a.png/b.png",
    "a.nii.gz",
    "x.dcm",
    "\x01.png",
    "a.png ",
    "labels.txt",
)


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


@cache
def dataset() -> bytes:
    """Six images with masks."""
    entries = []
    for number in range(6):
        grey = raster_files.pixels(32, 32, 1, number)
        mask = np.where(grey > 127, 255, 0).astype(np.uint8)
        for folder, values in (("images", grey), ("masks", mask)):
            out = io.BytesIO()
            Image.fromarray(values).save(out, "PNG")
            entries.append((f"{folder}/{number}.png", out.getvalue()))
    return zipped(entries)


def image_file(rng: random.Random) -> bytes:
    """A valid or a hostile image of any format."""
    if rng.random() < 0.5:
        return raster_files.any_valid(rng)
    makers = {**raster_files.MAKERS, **medical_files.MAKERS}
    return makers[rng.choice(sorted(makers))](rng)


def archive(rng: random.Random, images: bool = True) -> bytes:
    """Images, or a dataset with one or two files changed; then numbers of the directory."""
    if images:
        entries = [
            (rng.choice(NAMES) if rng.random() < 0.3 else f"{n}.png", image_file(rng))
            for n in range(rng.choice((1, 2, 3)))
        ]
    else:
        with zipfile.ZipFile(io.BytesIO(dataset())) as opened:
            entries = [(info.filename, opened.read(info)) for info in opened.infolist()]
        for _ in range(rng.choice((0, 1, 2))):
            at = rng.randrange(len(entries))
            name = entries[at][0] if rng.random() < 0.7 else rng.choice(NAMES)
            entries[at] = (name, image_file(rng))
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    )
    data = bytearray(zipped(entries, method))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        mark = rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
        at = data.find(mark)
        if at >= 0:
            size = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}[mark]
            code = rng.choice("HI")
            field = rng.randrange(4, size - 3)
            value = rng.choice(raster_files.SIDES) % (1 << (8 * struct.calcsize(code)))
            struct.pack_into("<" + code, data, at + field, value)
    return bytes(data)


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


SHAPES: tuple[list[Any], ...] = (
    ["n", 3, 8, 8], [1, 3, 8, 8], ["n", 3, "h", "w"], ["n", 8, 8, 3], ["n", 1, 8, 8], ["n", 3, 0, 8], ["n", 3, -1, 8],
    [3, 8, 8], [],
    ["n", 3, 2**31, 8], ["n", 3, 2**62, 2**62], ["n", 3, 100000, 100000], [0, 3, 8, 8], ["", 3, 8, 8],
    ["n", 3, 8, 8, 1],
)  # fmt: skip


def onnx(rng: random.Random) -> bytes:
    """A classifier of 8 x 8 pixels with one or two things changed."""
    classes = 3
    shape = list(SHAPES[0])
    weight = numpy_helper.from_array(np.ones((3, classes), np.float32), "w")
    bias = numpy_helper.from_array(np.zeros(classes, np.float32), "b")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w", "b"], ["scores"]),
    ]
    inputs, outputs = [_value("input", shape)], [_value("scores", ["n", classes])]
    constants = [weight, bias]
    opset, ir = 17, 8
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.randrange(11)
        if kind == 0:
            inputs = [_value("input", list(rng.choice(SHAPES)), rng.choice((1, 1, 2, 7, 10, 8, 0, 16, 99)))]
        elif kind == 1:
            outputs = [
                _value(rng.choice(("scores", "other", "")), list(rng.choice(SHAPES)), rng.choice((1, 1, 7, 8, 0)))
            ]
        elif kind == 2:
            weight.dims[rng.randrange(2)] = rng.choice((0, -1, 2**31, 2**62, 1, 4, 10**9))
        elif kind == 3:
            weight.raw_data = weight.raw_data[: rng.choice((0, 1, 8))]
        elif kind == 4:
            opset = rng.choice((0, 1, 6, 7, 21, 99, 2**31, -1))
        elif kind == 5:
            ir = rng.choice((0, 1, 3, 11, 99, 2**40))
        elif kind == 6:
            weight.data_type = rng.choice((0, 2, 7, 8, 10, 11, 16, 99))
        elif kind == 7:
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", rng.choice(("../../../etc/passwd", "/dev/zero", "w.bin", ""))),
                ("length", "9" * 18),
            ):
                entry = weight.external_data.add()
                entry.key, entry.value = key, value
        elif kind == 8:
            names = ("Relu", "Gemm", "Loop", "NoSuchOp", "Reshape", "ConstantOfShape", "Identity", "Softmax", "Conv")
            nodes.insert(
                rng.randrange(3),
                helper.make_node(rng.choice(names), [rng.choice(("input", "pooled", "w", "x"))], ["x"]),
            )
        elif kind == 9:
            big = numpy_helper.from_array(np.array([rng.choice((10**5, 10**9, -1, 2**40)), 10], np.int64), "size")
            constants.append(big)
            nodes.append(helper.make_node("ConstantOfShape", ["size"], ["huge"]))
            nodes.append(helper.make_node("ReduceSum", ["huge"], ["all"], keepdims=0))
        else:
            nodes.append(helper.make_node("Identity", ["scores"], [rng.choice(("scores", "input", "again"))]))
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(rng.choice(("", "", "", "ai.x")), 17)], ir_version=8
    )
    model.ir_version = ir
    model.opset_import[0].version = opset
    data = model.SerializeToString()
    return data[: rng.randrange(len(data))] if rng.random() < 0.05 else data


def unused(rng: random.Random) -> str:
    """A name for a model."""
    return f"made{rng.randrange(20)}" if rng.random() < 0.98 else hostile.word(rng)[:40]
