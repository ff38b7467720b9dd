"""Settings that are lists, pairs and addresses: what is read of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ekiben.setting_formats import WeightsAddress
from ekiben.settings import Settings


def read(**given: str) -> Settings:
    return Settings.from_environ({f"EKIBEN_{name.upper()}": value for name, value in given.items()})


def test_default_models_by_task() -> None:
    assert Settings().default_models_by_task == {
        "classify": ("efficientnet_b0",),
        "segment": ("deeplabv3_resnet50", "nuclei_unet"),
        "masks": ("sam_vit_b",),
    }
    assert read(default_models="masks=sam_vit_h, masks = sam_vit_b").default_models_by_task == {
        "masks": ("sam_vit_h", "sam_vit_b")
    }
    assert read(default_models="").default_models_by_task == {}


def test_addresses_of_weights() -> None:
    assert read().weights_mirror == ""
    assert read().weights_by_name == {}
    digest = "0123456789ABCDEF" * 4
    settings = read(
        weights_url=f"https://mirror.example/weights/, efficientnet_b0=http://host:81/a=b/mine.pth?x=1#sha256={digest}",
        sam_model_urls="vit_b=https://host/b.pth,sam_vit_h=https://host/h.pth",
    )
    assert settings.weights_mirror == "https://mirror.example/weights"
    assert settings.weights_by_name == {
        "efficientnet_b0": WeightsAddress("http://host:81/a=b/mine.pth?x=1", digest.lower()),
        "sam_vit_b": WeightsAddress("https://host/b.pth"),
        "sam_vit_h": WeightsAddress("https://host/h.pth"),
    }


def test_the_cache_folder(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).cache_folder == tmp_path
    assert read(home=str(tmp_path), cache_dir=str(tmp_path / "elsewhere")).cache_folder == tmp_path / "elsewhere"


def test_the_name_stands_in_logs_where_it_is_set() -> None:
    assert read().log_name == ""
    assert read(app_name="Orchard").log_name == "Orchard"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_models", "sam_vit_h"),
        ("default_models", "detect=yolo"),
        ("default_models", "masks=Not A Name"),
        ("image_formats", "png,gif"),
        ("image_formats", " , "),
        ("max_image_mb", "0"),
        ("max_image_mb", "51"),
        ("max_image_megapixels", "0"),
        ("max_image_megapixels", "65"),
        ("job_grace_s", "-1"),
        ("weights_url", "ftp://mirror.example/weights"),
        ("weights_url", "mirror.example"),
        ("weights_url", "https://one.example,https://two.example"),
        ("weights_url", "https://mirror.example#sha256=" + 64 * "a"),
        ("weights_url", "efficientnet_b0=https://mirror.example/x.pth#sha256=123"),
        ("weights_url", "efficientnet_b0=https://mirror.example/x.pth#md5=123"),
        ("weights_url", "efficientnet_b0=https://mirror.example/"),
        ("sam_model_urls", "https://mirror.example"),
        ("app_name", ""),
        ("app_name", "two\nlines"),
        ("redoc_url", "ftp://example.org/redoc.js"),
        ("redoc_url", "/no/such/file.js"),
    ],
)
def test_a_wrong_value_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(SystemExit, match=f"EKIBEN_{name.upper()}"):
        read(**{name: value})
