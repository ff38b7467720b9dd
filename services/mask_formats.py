"""What ``segmentation`` holds, by the format that was asked for."""

from __future__ import annotations

import base64
from typing import Any, Literal

from models.masks.polygons import to_geojson, to_polygons
from models.masks.rle import Rle, to_coco, to_png, to_uncompressed
from services.recording import NewFile

Format = Literal["rle", "coco", "polygons", "geojson", "png"]

_DRAWN = {"coco": to_coco, "geojson": to_geojson, "polygons": to_polygons, "rle": to_uncompressed}


def segmentation(rle: Rle, format: Format, files: list[NewFile], *, store: bool) -> Any:
    """JSON-ready. A PNG becomes one more of ``files`` and is named by its URL; without ``store`` it is a data: URL."""
    if format != "png":
        return _DRAWN[format](rle)
    data = to_png(rle)
    if not store:
        return "data:image/png;base64," + base64.b64encode(data).decode()
    file = NewFile("mask", data)
    files.append(file)
    return f"/v1/artifacts/{file.id}"
