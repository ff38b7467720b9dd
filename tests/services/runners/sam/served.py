"""A runner on the toy Segment Anything whose graph runs are counted and can be blocked."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ekiben.settings import Settings
from models.inference_requests import AutoMaskRequest, MaskRequest, MaskResponse
from models.model_key import ModelKey
from models.sam.auto_options import AutoOptions
from models.sam.graphs import Decoded, Features
from models.sam.loader import LoadedSam
from models.sam.prompts import Prompt
from services.runners.local import LocalRunner
from tests import toy_sam

SAM, AREAS = ModelKey("local", "sam_toy", 1), ModelKey("local", "areas", 1)
SIZE = (320, 200)
BOXES = toy_sam.boxes_of(*SIZE)
CLICK = Prompt(((*toy_sam.middle(BOXES[0]), 1),))


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


IMAGE = encoded(toy_sam.shapes(*SIZE))
SAME_PIXELS = encoded(toy_sam.shapes(*SIZE), "BMP")


class Served:
    """A runner on the toys, of which every run of a graph is counted and can be held at a gate."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.encoded = self.decoded = self.prompts = 0
        self.encode_gate, self.decode_gate = threading.Event(), threading.Event()
        self.encode_gate.set()
        self.decode_gate.set()
        self.entered = threading.Semaphore(0)
        self.closed: list[LoadedSam] = []
        given = {"home": folder, "threads": 2, "device": "cpu"} | settings
        self.runner = LocalRunner(Settings(**given), lambda key: folder / key.name)

    async def load(self) -> LoadedSam:
        await self.runner.load(SAM)
        sam = self.runner.engine.lease(SAM)
        self.runner.engine.release(sam)
        assert isinstance(sam, LoadedSam)
        self._spy(sam)
        return sam

    def _spy(self, sam: LoadedSam) -> None:
        graphs = sam.graphs
        encode_, decode_, close = graphs.encode, graphs.decode, graphs.close

        def spied_encode(pixels: Any, cancellation: Any = None) -> list[Features]:
            self.encoded += 1
            self.entered.release()
            assert self.encode_gate.wait(20)
            return encode_(pixels, cancellation)

        def spied_decode(features: Features, coords: Any, labels: Any, **more: Any) -> Decoded:
            self.decoded += 1
            self.prompts += len(coords)
            self.entered.release()
            assert self.decode_gate.wait(20)
            return decode_(features, coords, labels, **more)

        def spied_close() -> None:
            self.closed.append(sam)
            close()

        graphs.encode, graphs.decode, graphs.close = (  # type: ignore[method-assign]
            spied_encode,
            spied_decode,
            spied_close,
        )

    @property
    def users(self) -> int:
        entry = self.runner.engine._entries[SAM]
        return entry.users

    async def masks(self, *prompts: Prompt, image: bytes = IMAGE, timeout_s: float = 20, **more: Any) -> MaskResponse:
        answer, _ = await self.runner.masks(SAM, MaskRequest(image, prompts, **more), time.monotonic() + timeout_s)
        return answer

    async def auto(self, points: int = 8, image: bytes = IMAGE, timeout_s: float = 20, **options: Any) -> Any:
        request = AutoMaskRequest(image, AutoOptions(points_per_side=points, **options))
        answer, _ = await self.runner.auto_masks(SAM, request, time.monotonic() + timeout_s)
        return answer

    async def in_a_graph(self) -> None:
        """Until one more run has begun."""
        assert await asyncio.to_thread(self.entered.acquire, True, 10)


Run = Callable[..., None]
