"""The facts of the zoo, against torchvision's own entries."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ekiben.settings import Settings
from export.zoo import ZOO, by_settings
from models.catalog import FAMILIES

ENTRIES = {
    "efficientnet_b0": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "deeplabv3_resnet50": "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_fact_is_torchvisions(name: str) -> None:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    from torchvision.models import get_weight

    row, entry = ZOO[name], get_weight(ENTRIES[name])
    transforms = entry.transforms()
    # Segmentation's label 0 is called __background__ there.
    assert row.labels == tuple(entry.meta["categories"])
    assert row.url == entry.url
    # torch.hub checks the part of the file's name between the last dash and the dot.
    assert row.file == f"{row.file.rsplit('-', 1)[0]}-{row.sha256_prefix}.pth"
    assert row.megabytes == round(entry.meta["_file_size"] * 2**20 / 1e6)
    assert ENTRIES[name] in row.source
    assert [row.preprocess.shorter_side] == transforms.resize_size
    crop = getattr(transforms, "crop_size", [None])
    assert [row.preprocess.center_crop] == crop
    assert [row.height] == [row.width] == crop
    assert row.preprocess.interpolation == transforms.interpolation.value
    assert (list(row.preprocess.mean), list(row.preprocess.std)) == (transforms.mean, transforms.std)
    metrics = next(iter(entry.meta["_metrics"].values()))
    assert list(row.metrics.values()) == list(metrics.values())


@pytest.mark.parametrize("name", ZOO)
def test_a_row_is_called_as_its_key_and_has_a_family(name: str) -> None:
    row = ZOO[name]
    assert row.name == name
    assert row.task == FAMILIES[row.family].task


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.family == "sam"])
def test_a_sams_facts_are_whole(name: str) -> None:
    row = ZOO[name]
    assert row.url.endswith(f"/{row.file}")
    assert row.file.startswith(f"{name}_")
    assert len(bytes.fromhex(row.sha256_prefix)) == 32
    assert (row.labels, row.height, row.width, row.preprocess.longer_side) == ((), 1024, 1024, 1024)
    # The package's own numbers are of pixels from 0 to 255.
    assert [255 * mean for mean in row.preprocess.mean] == pytest.approx([123.675, 116.28, 103.53])
    assert [255 * std for std in row.preprocess.std] == pytest.approx([58.395, 57.12, 57.375])


def test_the_command_line_and_the_zoo_need_no_torch() -> None:
    code = "import sys, export.__main__; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_addresses_by_the_settings() -> None:
    own = "f" * 64
    settings = Settings(
        weights_url="https://mirror.example/w",
        sam_model_urls=f"vit_b=https://host/mine.pth?key=1#sha256={own},vit_l=https://host/l.pth",
    )
    published = by_settings(ZOO["efficientnet_b0"], settings)
    assert published == replace(
        ZOO["efficientnet_b0"], url="https://mirror.example/w/efficientnet_b0_rwightman-7f5810bc.pth"
    )
    mine = by_settings(ZOO["sam_vit_b"], settings)
    assert (mine.url, mine.file, mine.sha256_prefix, mine.published) == (
        "https://host/mine.pth?key=1",
        "mine.pth",
        own,
        False,
    )
    # Without a checksum the file has to be the published one, wherever it is.
    large = by_settings(ZOO["sam_vit_l"], settings)
    assert (large.url, large.sha256_prefix, large.published) == (
        "https://host/l.pth",
        ZOO["sam_vit_l"].sha256_prefix,
        True,
    )
    assert by_settings(ZOO["sam_vit_h"], Settings()) == ZOO["sam_vit_h"]
