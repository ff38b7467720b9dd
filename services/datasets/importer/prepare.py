"""The second pass: the prepared archive, written sample by sample."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from ekiben.dataset_archive import FORMAT, INDEX, ArchiveClass, DatasetIndex, Sample
from models.images import encode_png
from services.datasets.importer.class_map import ClassMap
from services.datasets.importer.layout import Pair
from services.datasets.importer.sources import SampleSource, open_source, place
from services.datasets.importer.survey import SampleInfo

_PNG_LEVEL = 4
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal datasets give equal bytes


def prepare(
    target: Path,
    *,
    name: str,
    pairs: Sequence[Pair],
    samples: Sequence[SampleInfo],
    groups: Sequence[str],
    class_map: ClassMap,
    progress: Callable[[int, int], None],
) -> None:
    """Write the archive of ``samples`` (in the order of their pairs and frames) to ``target``, whole or not at all.

    The format is that of ``ekiben/dataset_archive.py``. Entries are stored without compression: images are compressed
    already, and a reader has random access to samples. ``progress`` is called with samples done and all samples.
    """
    part = target.with_name(target.name + ".part")
    index: list[Sample] = []
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for number, (sample, image, mask) in enumerate(_opened(archive, pairs, samples)):
            progress(number, len(samples))
            data, ending = image.stored(sample.frame)
            image_name, mask_name = f"images/{number:06d}.{ending}", f"masks/{number:06d}.png"
            classes = class_map.apply(mask.mask(sample.frame))
            archive.writestr(_entry(image_name), data)
            archive.writestr(_entry(mask_name), encode_png(Image.fromarray(classes), _PNG_LEVEL))
            geometry = None
            if image.volume:
                geometry = {"file": _source_name(pairs[sample.pair].image.name)} | image.geometry(sample.frame)
            index.append(
                Sample(
                    name=sample.name,
                    group=groups[number],
                    sha256=sample.sha256,
                    width=sample.width,
                    height=sample.height,
                    image=image_name,
                    mask=mask_name,
                    class_pixels=tuple(class_map.pixels_of(sample.mask)),
                    geometry=geometry,
                )
            )
        class_list = [ArchiveClass(name=n, color=c) for n, c in zip(class_map.names, class_map.colors, strict=True)]
        whole = DatasetIndex(
            format=FORMAT,
            name=name,
            classes=tuple(class_list),
            grey=all(sample.grey for sample in samples),
            samples=tuple(index),
        )
        archive.writestr(_entry(INDEX), whole.model_dump_json())
    os.replace(part, target)
    progress(len(samples), len(samples))


def _opened(
    archive: zipfile.ZipFile, pairs: Sequence[Pair], samples: Sequence[SampleInfo]
) -> Iterator[tuple[SampleInfo, SampleSource, SampleSource]]:
    """Each sample with its open image and mask; a volume stays open for all its slices, and its file is copied too."""
    current = -1
    with ExitStack() as files:
        for sample in samples:
            if sample.pair != current:
                files.close()
                pair, current = pairs[sample.pair], sample.pair
                image = files.enter_context(open_source(pair.image.path))
                mask = files.enter_context(open_source(pair.mask.path))
                place(image, mask)
                for file, source in ((pair.image, image), (pair.mask, mask)):
                    if source.volume:
                        with (
                            file.path.open("rb") as given,
                            archive.open(_entry(_source_name(file.name)), "w", force_zip64=True) as kept,
                        ):
                            shutil.copyfileobj(given, kept, 1 << 20)
            yield sample, image, mask


def _source_name(name: str) -> str:
    return f"source/{name}"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    return entry
