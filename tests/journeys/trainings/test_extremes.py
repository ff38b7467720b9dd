"""Trainings at the ends of what is allowed, over the API: each ends as a version that answers."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from tests.journeys.datasets.dataset_client import disc, png, ready, segmented, train, zipped
from tests.journeys.jobs.job_client import finished, get
from tests.journeys.trainings.limits import MINUTES

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

SIDES = (40, 73, 106, 139, 172)


@pytest.fixture(scope="module")
def sizes_id(server: Any) -> str:
    """Five images of five sizes, none a multiple of what networks halve."""
    entries = {}
    for number, side in enumerate(SIDES):
        image, mask = disc(number, side)
        image, mask = image[:, : side - side // 5], mask[:, : side - side // 5]
        entries[f"images/{number}.png"], entries[f"masks/{number}.png"] = png(image), png(mask)
    with server.client(timeout=120) as client:
        return ready(client, zipped(entries), name="sizes")


@pytest.mark.parametrize(
    "options",
    [
        {"width": 8, "depth": 3, "tile": 64, "learning_rate": 1, "weight_decay": 0, "epochs": 3},
        {"architecture": "resnet34_unet", "epochs": 1, "tile": 64, "validation_share": 0.2, "test_share": 0.2},
    ],
    ids=["learning rate 1", "resnet34"],
)
def test_a_training_ends_as_a_version_that_answers(
    options: dict[str, Any], client: httpx.Client, sizes_id: str
) -> None:
    name = f"extreme-{len(options)}"
    job_id = train(client, sizes_id, name, **options)
    finished(client, job_id, MINUTES)
    assert get(client, f"/v1/trainings/{job_id}")["model"] == {"name": name, "version": 1}
    for side in (64, 75, 160):
        image, truth = disc(1000, side)
        found = segmented(client, name, image)
        assert found.shape == truth.shape and set(np.unique(found)) <= {0, 1}
