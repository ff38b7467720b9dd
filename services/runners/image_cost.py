"""What decoding an image takes, on an event loop."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from models.image_cost import ImageCost, image_cost, needs_thread
from models.inference_requests import PreparedTensor


async def cost_of(image: bytes | NDArray[np.uint8] | PreparedTensor) -> ImageCost:
    """``image_cost``, in a thread for the formats whose headers take long to read."""
    return await asyncio.to_thread(image_cost, image) if needs_thread(image) else image_cost(image)
