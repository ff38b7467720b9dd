"""``python -m services.datasets.importer --folder FOLDER``: an upload becomes a prepared archive and a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ekiben.child_memory import limit_memory
from ekiben.child_protocol import EXIT_DONE, EXIT_REFUSED, MessageWriter, end_on_sigterm, end_with_parent
from ekiben.dataset_archive import DatasetArchive
from ekiben.disk_full import NO_SPACE, comes_of_full_disk
from ekiben.errors import OutOfMemory, Refusal, StorageFull
from services.datasets.importer.checks import check
from services.datasets.importer.fetch import fetch
from services.datasets.importer.import_options import DatasetImportOptions
from services.datasets.importer.layout import find_pairs
from services.datasets.importer.prepare import prepare
from services.datasets.importer.preview import write_preview
from services.datasets.importer.progress import ImportProgress
from services.datasets.importer.report import Report
from services.datasets.importer.summary import summarize
from services.datasets.importer.survey import survey
from services.datasets.importer.unpack import unpack

ARCHIVE, REPORT, PREVIEW = "dataset.zip", "report.json", "preview.png"
UPLOAD, UNPACKED, PAIRS = "upload.zip", "unpacked", "pairs"

ReportProgress = Callable[[str, int, int], None]
"""Called with the phase (a key of _SPANS), what is done of it, and the whole: bytes, entries or samples."""

# Share of the whole import, 0-1, at the start and the end of each phase.
_SPANS = {"fetch": (0.0, 0.3), "unpack": (0.3, 0.4), "read": (0.4, 0.7), "write": (0.7, 1.0)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the folder that ``arguments`` name, and report on stdout; an exit status of ekiben/child_protocol.py."""
    parser = argparse.ArgumentParser(prog="python -m services.datasets.importer", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="holds import.json; what is made is written there")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="limit of the memory that this process allocates")
    requested = parser.parse_args(arguments)
    end_on_sigterm()
    if requested.with_parent:
        end_with_parent()
    if requested.memory_mb is not None:
        limit_memory(requested.memory_mb)
    writer = MessageWriter.take_stdout()
    progress = ImportProgress(writer, _SPANS)
    report = Report()
    try:
        try:
            with progress.repeated():
                result = import_dataset(requested.folder, report, progress)
        except (MemoryError, OutOfMemory):
            refusal = _out_of_memory(requested.memory_mb)
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            refusal = _out_of_memory(requested.memory_mb)
        except Refusal as error:
            if comes_of_full_disk(error):
                raise
            refusal = error
        else:
            writer.result(result)
            return EXIT_DONE
        if not report.findings.errors:
            report.findings.error(refusal.code, refusal.message)
        report.write(requested.folder / REPORT)
        writer.refusal(refusal.code, refusal.message)
    except Exception as error:
        if not comes_of_full_disk(error):
            raise
        writer.refusal(StorageFull.code, NO_SPACE)
    return EXIT_REFUSED


def import_dataset(folder: Path, report: Report, progress: ReportProgress) -> dict[str, Any]:
    """Write ``dataset.zip``, ``preview.png`` and ``report.json`` into ``folder``; the figures of the result.

    Raises a refusal: ``bad_dataset`` with the first error of the report, or the one of unpacking or fetching.
    """
    options = DatasetImportOptions.read(folder)
    entries = _entries(folder, options, progress)
    report.files = len(entries)
    report.bytes = sum(path.stat().st_size for _, path in entries)
    layout = find_pairs(entries)
    report.findings = layout.findings
    if not report.ok:
        raise _refused(report)
    found = survey(layout.pairs, lambda done, total: progress("read", done, total))
    verdict = check(found, options, report.findings)
    summarize(report, found.samples, verdict.groups, verdict.decision)
    if not report.ok or verdict.decision is None:
        raise _refused(report)
    prepare(
        folder / ARCHIVE,
        name=options.name,
        pairs=layout.pairs,
        samples=found.samples,
        groups=verdict.groups,
        class_map=verdict.decision.map,
        progress=lambda done, total: progress("write", done, total),
    )
    with DatasetArchive(folder / ARCHIVE) as dataset:
        write_preview(folder / PREVIEW, dataset)
    report.write(folder / REPORT)
    return {
        "samples": report.samples,
        "groups": report.groups,
        "classes": [entry.name for entry in report.classes],
        "bytes": (folder / ARCHIVE).stat().st_size,
        "warnings": len(report.findings.warnings),
    }


def _entries(folder: Path, options: DatasetImportOptions, progress: ReportProgress) -> list[tuple[str, Path]]:
    """(path within the upload, file) of each file of the dataset."""
    if options.source == "pairs":
        root = folder / PAIRS
        return [(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*")) if path.is_file()]
    if options.url is not None:
        fetch(
            options.url,
            folder / UPLOAD,
            max_bytes=options.max_mb << 20,
            timeout_s=options.timeout_s,
            allow_private=options.allow_private,
            progress=lambda share: progress("fetch", round(share * 1000), 1000),
        )
    unpacked = unpack(
        folder / UPLOAD, folder / UNPACKED, progress=lambda share: progress("unpack", round(share * 1000), 1000)
    )
    return [(entry.name, entry.path) for entry in unpacked]


def _out_of_memory(memory_mb: int | None) -> Refusal:
    limit = f" ({memory_mb} MB, EKIBEN_DATASET_MEMORY_MB)" if memory_mb is not None else ""
    return Refusal(
        f"the import needs more memory than it has{limit}; smaller images and volumes need less", code="out_of_memory"
    )


def _refused(report: Report) -> Refusal:
    return Refusal(report.findings.errors[0].message, code="bad_dataset")


if __name__ == "__main__":
    sys.exit(main())
