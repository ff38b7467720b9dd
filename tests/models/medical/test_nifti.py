"""NIfTI: slices, labels and masks against nibabel's own reading of the same files; refusals."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadImage, BadInput, Refusal, TooLarge, UnsupportedImage
from models.images import decode
from models.limits import MAX_PIXELS
from models.medical.formats import is_nifti, open_volume, write_nifti
from models.medical.nifti import NiftiVolume
from tests.models.medical.dicom_files import dicom
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise

NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
AFFINE = np.array([[0, -2.5, 0.1, 40], [1.5, 0, 0, -30], [0, 0.2, 4, 12.5], [0, 0, 0, 1]])


def nifti(array: NDArray[Any], kind: Any = nibabel.Nifti1Image, slope: float | None = None, inter: float = 0) -> bytes:
    image = kind(array, AFFINE)
    image.header.set_slope_inter(slope, None if slope is None else inter)
    image.header.set_sform(AFFINE, code=1)
    image.header.set_qform(AFFINE, code=4, strip_shears=True)
    return bytes(image.to_bytes())


def spoiled(offset: int, form: str, *values: Any) -> bytes:
    data = bytearray(SMALL)
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "volume"
    path.write_bytes(data)
    return path


COUNTING = np.arange(5 * 7 * 3, dtype=np.int16).reshape(5, 7, 3)
SMALL = nifti(COUNTING)


@pytest.mark.parametrize("packed", [False, True], ids=["nii", "nii.gz"])
@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_slices_and_labels_are_those_of_nibabel(name: str, packed: bool, tmp_path: Path) -> None:
    image: Any = nibabel.load(NIBABEL / name)
    path = NIBABEL / name
    if packed and path.suffix == ".nii":
        path = saved(tmp_path, gzip.compress(path.read_bytes()))
    expected = np.asarray(image.dataobj)
    with open_volume(path) as volume:
        assert (volume.width, volume.height, volume.depth) == image.shape
        assert volume.slice_axis == 2
        assert volume.affine is not None
        assert np.array_equal(volume.affine, image.affine)
        assert volume.pixel_spacing == pytest.approx(image.header.get_zooms()[1::-1])
        low, high = np.percentile(expected, (0.5, 99.5))
        for index in (volume.depth - 1, 0, volume.depth // 2):
            if expected.dtype.kind != "f":
                assert volume.values(index).dtype == expected.dtype.newbyteorder("=")
                assert np.array_equal(volume.values(index), expected[:, :, index].T)
            photo = volume.slice(index)
            shown = np.rint(np.clip((expected[:, :, index].T - low) / (high - low), 0, 1) * 255)
            assert photo.mode == "RGB"
            assert np.abs(np.asarray(photo)[..., 0] - shown).max() <= 1


@pytest.mark.parametrize("sizes", [(np.inf, 1), (1, np.inf), (1, np.nan)])
def test_an_impossible_spacing_is_none(sizes: tuple[float, float], tmp_path: Path) -> None:
    with open_volume(saved(tmp_path, spoiled(80, "<2f", *sizes))) as volume:
        assert volume.pixel_spacing is None


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    with open_volume(saved(tmp_path, nifti(COUNTING.astype(np.uint8), slope=2, inter=-5))) as volume:
        stored = np.asarray(nibabel.Nifti1Image.from_bytes((tmp_path / "volume").read_bytes()).dataobj)
        assert np.array_equal(volume.values(1), stored[:, :, 1].T)
        assert volume.values(1).dtype == np.int64
    with (
        open_volume(saved(tmp_path, nifti(COUNTING.astype(np.uint8), slope=0.25))) as volume,
        pytest.raises(BadImage, match="values are not whole numbers"),
    ):
        volume.values(0)


@pytest.mark.parametrize("stored", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("highest", [1, 2, 3, 4, 7, 37, 100, 117, 200])
@pytest.mark.parametrize("lowest", [0, 1, -1])
def test_labels_that_nibabel_scaled(stored: Any, highest: int, lowest: int, tmp_path: Path) -> None:
    """Real numbers saved as whole ones: nibabel chooses slope and intercept, so that the range of the type is used."""
    labels = np.random.default_rng(highest).integers(lowest, highest + 1, (6, 5, 3))
    labels.flat[:2] = lowest, highest
    image = nibabel.Nifti1Image(labels.astype(np.float64), AFFINE)
    image.set_data_dtype(stored)
    with NiftiVolume(saved(tmp_path, bytes(image.to_bytes()))) as volume:
        for index in range(3):
            assert np.array_equal(volume.values(index), labels[:, :, index].T)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [(1.00000002, 0), (0.99999994, 0), (1, 1e-8), (-1.0000001, 0), (1.0000001, -1024), (1 / 3, 0), (3 / 255, 0)],
)
def test_a_slope_that_is_off_by_rounding(slope: float, intercept: float, tmp_path: Path) -> None:
    labels = np.arange(5 * 7 * 3).reshape(5, 7, 3) % 4
    raw = np.rint((labels - intercept) / slope).astype(np.int16)
    data = bytearray(nifti(raw))
    struct.pack_into("<2f", data, 112, slope, intercept)
    with NiftiVolume(saved(tmp_path, bytes(data))) as volume:
        assert np.array_equal(volume.values(1), labels[:, :, 1].T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_of_real_numbers_that_are_off_by_rounding(dtype: Any, tmp_path: Path) -> None:
    labels = np.arange(5 * 7 * 3).reshape(5, 7, 3) % 100
    for factor in (1 + 1e-7, 1 - 1e-7):
        with NiftiVolume(saved(tmp_path, nifti((labels * factor).astype(dtype)))) as volume:
            assert np.array_equal(volume.values(2), labels[:, :, 2].T)


@pytest.mark.parametrize(
    ("raw", "slope", "intercept", "shown"),
    [(1, 0.5, 0, "0.5"), (1, 1, 0.5, "1.5"), (1, 0.25, 0, "0.25"), (1, 1.5, 0, "1.5"), (128, 1 / 255, 0, "0.501961"),
     (1, 0.99999, 0.5, "1.49999"), (1, 1, 0.02, "1.02"), (1, 0.1, 2_000_000.5, "2e+06")],
)  # fmt: skip
def test_half_way_between_two_labels_is_refused(
    raw: int, slope: float, intercept: float, shown: str, tmp_path: Path
) -> None:
    data = bytearray(nifti(np.full((4, 4, 2), raw, np.int16)))
    struct.pack_into("<2f", data, 112, slope, intercept)
    with (
        NiftiVolume(saved(tmp_path, bytes(data))) as volume,
        pytest.raises(BadImage, match=rf"not whole numbers \(it has {shown.replace('+', '.')}\)"),
    ):
        volume.values(0)


def test_a_large_volume_is_sampled(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(100, 20, (256, 256, 80)).astype(np.float32)
    with open_volume(saved(tmp_path, nifti(array))) as volume:
        shown = np.asarray(volume.slice(40))[..., 0].astype(float)
    low, high = np.percentile(array, (0.5, 99.5))
    expected = np.clip((array[:, :, 40].T - low) / (high - low), 0, 1) * 255
    assert np.abs(shown - expected).max() < 4


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["1", "2"])
def test_a_mask_goes_back_into_the_same_space(kind: Any, tmp_path: Path) -> None:
    source = nifti(COUNTING.astype(np.float32) + 0.5, kind, slope=None)
    mask = np.random.default_rng(2).integers(0, 4, (3, 7, 5)).astype(np.uint8)
    with open_volume(saved(tmp_path, source)) as volume:
        written = write_nifti(volume, mask)
    before, after = kind.from_bytes(source), kind.from_bytes(gzip.decompress(written))
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), mask.transpose(2, 1, 0))
    assert np.array_equal(after.affine, before.affine)
    for form in ("get_qform", "get_sform"):
        (one, code), (other, other_code) = (getattr(image.header, form)(coded=True) for image in (before, after))
        assert np.array_equal(one, other)
        assert code == other_code
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (1, 4)
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    with open_volume(saved(tmp_path, written)) as volume:
        assert np.array_equal(np.stack([volume.values(i) for i in range(3)]), mask)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 2, 1), (6, 4, 1, 1, 1)])
def test_a_mask_has_the_shape_of_its_source(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    with open_volume(saved(tmp_path, nifti(array))) as volume:
        mask = np.stack([volume.values(i) for i in range(volume.depth)]).astype(np.uint8)
        back = nibabel.Nifti1Image.from_bytes(gzip.decompress(write_nifti(volume, mask)))
    assert back.shape == nibabel.Nifti1Image.from_bytes(nifti(array)).shape
    assert np.array_equal(np.asarray(back.dataobj).reshape(shape), array)


def test_masks_of_other_shapes_and_for_other_files_are_refused(tmp_path: Path) -> None:
    with open_volume(saved(tmp_path, SMALL)) as volume:
        with pytest.raises(BadInput, match=r"the mask has the shape \(5, 7, 3\), the volume \(3, 7, 5\)"):
            write_nifti(volume, np.zeros((5, 7, 3), np.uint8))
        with pytest.raises(IndexError):
            volume.values(3)
    with (
        open_volume(saved(tmp_path, dicom(COUNTING[..., 0]))) as volume,
        pytest.raises(UnsupportedImage, match="for a NIfTI volume only"),
    ):
        write_nifti(volume, np.zeros((1, 5, 7), np.uint8))


def test_what_a_nifti_file_is_its_first_bytes_tell() -> None:
    assert is_nifti(SMALL[:1024])
    assert is_nifti(gzip.compress(SMALL)[:1024])
    assert is_nifti(nifti(COUNTING, nibabel.Nifti2Image)[:1024])
    for other in (b"", gzip.compress(b"text" * 500), b"\x1f\x8b damaged", encoded(noise(40, 40)), bytes(4096)):
        assert not is_nifti(other[:4096])


@pytest.mark.parametrize("data", [SMALL, gzip.compress(SMALL)], ids=["nii", "nii.gz"])
def test_a_volume_is_no_image(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="a NIfTI file is a volume, not an image; /v1/segment takes volumes"):
        decode(data)


RGB = np.zeros((4, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
# Offsets are those of nifti1.h: dim at 40, datatype at 70, vox_offset at 108.
REFUSED = [
    pytest.param(b"text", BadImage, "neither a DICOM nor a NIfTI", id="text"),
    pytest.param(SMALL[:-1], BadImage, "truncated", id="truncated"),
    pytest.param(gzip.compress(SMALL[:-1]), BadImage, "the NIfTI volume is truncated", id="truncated inside gzip"),
    pytest.param(gzip.compress(SMALL)[:-40], BadImage, "truncated", id="gzip truncated"),
    pytest.param(
        nifti(COUNTING, nibabel.Nifti2Image)[:400], BadImage, "its header is not whole", id="header truncated"
    ),
    pytest.param(
        nifti(np.zeros((4, 4, 2, 5))), UnsupportedImage, "more than three dimensions .4 x 4 x 2 x 5", id="4-D"
    ),
    pytest.param(
        nifti(np.zeros((4, 4, 2), complex)), UnsupportedImage, "of complex128 values are not read", id="complex"
    ),
    pytest.param(nifti(RGB), UnsupportedImage, "of RGB values are not read", id="RGB"),
    pytest.param(spoiled(344, "4s", b"ni1\0"), UnsupportedImage, "a NIfTI pair of .hdr and .img", id="pair"),
    pytest.param(spoiled(40, "<8h", 3, 32000, 32000, 1, 1, 1, 1, 1), TooLarge, f"at most {MAX_PIXELS}", id="pixels"),
    pytest.param(spoiled(40, "<8h", 3, 7000, 7000, 9000, 1, 1, 1, 1), TooLarge, "unpacks to 882000000000", id="bytes"),
    pytest.param(spoiled(40, "<8h", 3, -5, 7, 3, 1, 1, 1, 1), BadImage, "no pixels", id="negative"),
    pytest.param(spoiled(40, "<8h", 3, 5, 0, 3, 1, 1, 1, 1), BadImage, "no pixels", id="zero"),
    pytest.param(spoiled(70, "<h", 999), BadImage, "header of the NIfTI volume is damaged", id="datatype"),
    pytest.param(spoiled(108, "<f", float("nan")), BadImage, "NIfTI volume", id="data nowhere"),
    pytest.param(spoiled(108, "<f", 1e30), BadImage, "NIfTI volume", id="data far away"),
]


@pytest.mark.parametrize(("data", "refusal", "sentence"), REFUSED)
def test_what_cannot_be_read_is_refused(data: bytes, refusal: type[Refusal], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(refusal, match=sentence):
        open_volume(saved(tmp_path, data))


def test_a_gzip_bomb_unpacks_to_what_the_header_says(tmp_path: Path) -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        file.write(SMALL)
        for _ in range(512):
            file.write(bytes(1 << 20))
    path = saved(tmp_path, out.getvalue())

    def read() -> None:
        with open_volume(path) as volume:
            assert np.array_equal(volume.values(2), COUNTING[:, :, 2].T)

    assert peak_growth_bytes(read) < 32 << 20


def test_a_mask_of_real_numbers_says_which_it_has(tmp_path: Path) -> None:
    for value, shown in ((0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")):
        array = np.zeros((4, 4, 2), np.float32)
        array[1, 2, 0] = value
        with (
            NiftiVolume(saved(tmp_path, nifti(array))) as volume,
            pytest.raises(BadImage, match=rf"is no mask: its values are not whole numbers \(it has {shown}\)"),
        ):
            volume.values(0)
        assert volume.width == 4


def test_no_damage_is_more_than_a_refusal(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    read = 0
    for turn in range(200):
        data = bytearray(SMALL if turn % 2 else gzip.compress(SMALL))
        for place in random.integers(0, min(len(data), 352), 4):
            data[place] = random.integers(256)
        try:
            with open_volume(saved(tmp_path, bytes(data))) as volume:
                volume.slice(0)
                read += 1
        except Refusal as refusal:
            assert len(refusal.message) < 400
    assert 0 < read < 200
