"""``python -m export``: networks by name, checkpoints, ONNX files and Keras models become model versions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from db.blobs import open_store
from db.migrate import checked_url, migrate
from db.model_listing import check_name
from db.publishing import publish_folder
from db.registry import Registry
from db.session import connect
from ekiben.errors import Refusal
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from ekiben.temporary_files import scratch
from export.import_arguments import add_import_arguments, import_options
from export.keras.command import add_keras_arguments, keras_writer
from export.weights import ShownProgress, WeightsUnavailable, fetch
from export.zoo import ZOO, ZooRow, by_settings
from models.artifact import MANIFEST, Layout, Manifest
from models.onnx_import.artifact_builder import build_artifact
from models.onnx_import.options import read_labels

OK, REFUSED, USAGE, NO_WEIGHTS = 0, 1, 2, 3

_EPILOG = """\
exit status: 0 done, 1 refused (one line on stderr says why), 2 wrong usage, 3 the published weights cannot be had

examples:
  python -m export efficientnet_b0
  python -m export deeplabv3_resnet50 --checkpoint mine.pth --labels labels.txt --name roads
  python -m export sam_vit_b --precision int8 --agreement-photos photos
  python -m export import model.onnx --name mobilenet --task classify --labels labels.txt \\
      --mean 0.502 --std 0.502 --crop 0.875 --output probabilities
  python -m export keras model.keras --name flowers --task classify --labels labels.txt --preprocess tf
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns OK, REFUSED or NO_WEIGHTS; argparse exits with USAGE."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command in ZOO:
        if given.checkpoint is not None and given.weights is not None:
            parser.error("--checkpoint and --weights exclude each other")
        if given.seed is not None and given.weights != "random":
            parser.error("--seed is for --weights random")
    run: Callable[[argparse.Namespace], None] = given.run
    if getattr(given, "out", None) is None:  # else it writes nothing into the home but downloads
        set_umask(Settings.from_environ())
    try:
        run(given)
    except WeightsUnavailable as error:
        print(f"export: {error.message}", file=sys.stderr)
        return NO_WEIGHTS
    except Refusal as error:
        print(f"export: {error.message}", file=sys.stderr)
        return REFUSED
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"export: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return REFUSED
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for row in ZOO.values():
        _add_export(commands.add_parser(row.name, help=f"export {row.source}"), row)
    _add_import(commands.add_parser("import", help="bring an ONNX file of your own (needs no torch)"))
    _add_keras(commands.add_parser("keras", help="convert a Keras or TensorFlow model of your own (after make keras)"))
    fetching = commands.add_parser("fetch", help="only download published weights (needs no torch)")
    fetching.add_argument("name", choices=sorted(ZOO), help="a network")
    fetching.set_defaults(run=_fetch)
    commands.add_parser("list", help="the networks that can be exported by name").set_defaults(run=_list)
    return parser


def _add_export(parser: argparse.ArgumentParser, row: ZooRow) -> None:
    parser.add_argument(
        "--weights", choices=["published", "random"], help=f"default: published ({row.megabytes} MB, downloaded once)"
    )
    parser.add_argument("--seed", type=int, help="of --weights random; default 0")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of your own: a state_dict")
    if row.family == "sam":
        parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="of the encoder")
        parser.add_argument(
            "--agreement-photos",
            type=Path,
            metavar="FOLDER",
            help="images on which the masks of int8 are compared with those of float32; default: seeded ones",
        )
    else:
        parser.add_argument(
            "--labels", type=Path, metavar="FILE", help=f"one name per line; default: {len(row.labels)} names"
        )
    _add_destination(parser, row.name)
    parser.set_defaults(run=_export_sam if row.family == "sam" else _export)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="model.onnx")
    add_import_arguments(parser)
    parser.add_argument("--layout", choices=get_args(Layout), help="of the input; default: NCHW")
    _add_destination(parser, None)
    parser.set_defaults(run=_import)


def _add_keras(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="MODEL", help="a .keras or .h5 file, or the folder of a SavedModel")
    add_import_arguments(parser, output="as the model's last operator says")
    add_keras_arguments(parser)
    _add_destination(parser, None)
    parser.set_defaults(run=_keras)


def _add_destination(parser: argparse.ArgumentParser, name: str | None) -> None:
    default = f"; default: {name}, and the precision where it is not float32" if name else ""
    parser.add_argument("--name", help=f"name to publish as{default}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="only write the artifact folder; publish nothing")


def _export(given: argparse.Namespace) -> None:
    try:
        from export import recipe
        from export.writer import write_artifact
    except ImportError as error:
        raise _missing_package(error) from None
    row, settings = ZOO[given.command], Settings.from_environ()
    given.name = given.name or row.name
    labels = read_labels(given.labels) if given.labels else None
    if given.checkpoint is not None:
        made = recipe.checkpoint(row, given.checkpoint, labels)
    elif given.weights == "random":
        made = recipe.random(row, given.seed or 0, labels)
    else:
        row, file = _obtain(row, settings, None if given.out else given.name)
        made = (recipe.published if row.published else recipe.checkpoint)(row, file, labels)
    _finish(given, settings, lambda folder: write_artifact(made, folder))


def _export_sam(given: argparse.Namespace) -> None:
    try:
        from export.sam import recipe
        from export.sam.artifact import write_artifact
    except ImportError as error:
        raise _missing_package(error) from None
    row, settings = ZOO[given.command], Settings.from_environ()
    given.name = given.name or (row.name if given.precision == "float32" else f"{row.name}_{given.precision}")
    photos = given.agreement_photos
    if photos is not None and not photos.is_dir():
        raise Refusal(f"{photos} is no folder of images")
    if given.checkpoint is not None:
        made = recipe.checkpoint(row, given.checkpoint)
    elif given.weights == "random":
        made = recipe.random(row, given.seed or 0)
    else:
        row, file = _obtain(row, settings, None if given.out else given.name)
        made = (recipe.published if row.published else recipe.checkpoint)(row, file)
    _finish(given, settings, lambda folder: write_artifact(made, folder, precision=given.precision, photos=photos))


def _missing_package(error: ImportError) -> Refusal:
    return Refusal(f"exporting needs {error.name}, which this Python lacks: pip install 'ekiben[export]'")


def _fetch(given: argparse.Namespace) -> None:
    print(_obtain(ZOO[given.name], Settings.from_environ(), given.name)[1])


def _obtain(row: ZooRow, settings: Settings, listed_as: str | None) -> tuple[ZooRow, Path]:
    """The row by the settings, and its file. Where that is unavailable the registry lists ``listed_as``, with why."""
    row, progress = by_settings(row, settings), ShownProgress(row.name)
    try:
        return row, fetch(row, settings.cache_folder / "downloads", progress)
    except WeightsUnavailable as error:
        progress.close()
        if listed_as is not None:
            _list_unavailable(settings, listed_as, row, error.message)
        raise


def _list_unavailable(settings: Settings, name: str, row: ZooRow, reason: str) -> None:
    try:
        _registry(settings).mark_unavailable(name, row.task, reason)
    except Refusal as error:
        print(f"export: {name} could not be listed as unavailable: {error.message}", file=sys.stderr)


def _import(given: argparse.Namespace) -> None:
    options = import_options(given)
    _finish(given, Settings.from_environ(), lambda folder: build_artifact(given.file, folder, options))


def _keras(given: argparse.Namespace) -> None:
    write = keras_writer(given)
    _finish(given, Settings.from_environ(), write)


def _finish(given: argparse.Namespace, settings: Settings, write: Callable[[Path], Manifest]) -> None:
    """Write the artifact folder, publish it unless --out was given, and print one line about it."""
    if given.out is not None:
        folder = given.out.absolute()
        _print_summary(given.name or folder.name, "not published", write(folder), str(folder))
        return
    if given.name is None:
        raise Refusal("--name is missing: it says what the model is called (or --out where to write it)")
    check_name(given.name)  # before the export, which takes minutes
    registry = _registry(settings)
    store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
    with scratch("export") as made:
        folder = Path(made, given.name)
        manifest = write(folder)
        row = publish_folder(
            registry,
            store,
            folder,
            name=given.name,
            manifest=manifest.model_dump(mode="json"),
            digest=manifest.digest,
            lineage={"source": manifest.source, "weights": manifest.weights.model_dump(mode="json")},
        )
    local = store.local_path(row.location + MANIFEST)
    _print_summary(
        row.name,
        f"version {row.version}",
        manifest,
        str(local.parent) if local else f"{settings.resolved_store_url.split('?')[0]}/{row.location}",
    )


def _print_summary(name: str, version: str, manifest: Manifest, folder: str) -> None:
    parity = "not measured"
    if manifest.parity is not None:
        parity = f"onnx {manifest.parity.onnx_max_abs:.1e}"
        if manifest.parity.torchscript_max_abs is not None:
            parity += f", torchscript {manifest.parity.torchscript_max_abs:.1e}"
    if manifest.agreement is not None:
        agreement = manifest.agreement
        parity += f"; {manifest.precision} agrees with {agreement.reference}: mask IoU {agreement.mask_iou_mean:.3f}"
        parity += f" (least {agreement.mask_iou_min:.3f}{'' if agreement.proven else ', unproven: random weights'})"
    print(f"{name} {version}; parity: {parity}; weights: {manifest.weights}; folder: {folder}")


def _registry(settings: Settings) -> Registry:
    migrate(checked_url(settings))
    return Registry(connect(settings.resolved_database_url))


def _list(given: argparse.Namespace) -> None:
    for row in ZOO.values():
        print(row.name, row.task, row.classes, f"{row.megabytes} MB", row.source, sep="\t")


if __name__ == "__main__":
    sys.exit(main())
