"""Both networks, exported once with seeded random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from export.zoo import ZOO

if TYPE_CHECKING:
    from export.recipe import Recipe

SMALL = ((1, 64, 96), (3, 64, 96), (1, 80, 72))


@pytest.fixture(scope="session")
def efficientnet() -> Recipe:
    pytest.importorskip("torch")
    from export import recipe

    return recipe.random(ZOO["efficientnet_b0"], seed=0)


@pytest.fixture(scope="session")
def deeplab() -> Recipe:
    pytest.importorskip("torch")
    from export import recipe

    return recipe.random(ZOO["deeplabv3_resnet50"], seed=0)


@pytest.fixture(scope="session")
def efficientnet_folder(efficientnet: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.writer import write_artifact

    folder = tmp_path_factory.mktemp("artifacts") / "efficientnet_b0"
    write_artifact(efficientnet, folder)
    return folder


@pytest.fixture(scope="session")
def deeplab_folder(deeplab: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.writer import write_artifact

    folder = tmp_path_factory.mktemp("artifacts") / "deeplabv3_resnet50"
    write_artifact(deeplab, folder, shapes=SMALL)
    return folder
