"""``python -m export.provide --folder FOLDER``: one known model, from published weights to an artifact folder.

The child program of provisioning jobs (services/provisioning/job.py). It reads ``options.json`` in the folder, and
writes ``artifact`` there.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ekiben.child_protocol import EXIT_DONE, EXIT_REFUSED, MessageWriter, end_on_sigterm, end_with_parent
from ekiben.errors import Refusal
from export.weights import fetch
from export.zoo import ZOO, ZooRow
from models.artifact import Manifest

EVENT = "provision"
_DOWNLOADED, _EXPORTED = 0.6, 0.95
"""Progress of the whole, 0-1, at the end of each phase."""

_EVERY_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Provide what the folder says, and report on stdout; an exit status of ekiben/child_protocol.py."""
    parser = argparse.ArgumentParser(prog="python -m export.provide", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="holds options.json; artifact is written there")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    given = parser.parse_args(arguments)
    end_on_sigterm()
    if given.with_parent:
        end_with_parent()
    writer = MessageWriter.take_stdout()
    try:
        writer.result(provide(given.folder, writer))
    except Refusal as refusal:
        writer.refusal(refusal.code, refusal.message)
        return EXIT_REFUSED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        writer.refusal("disk_full", f"there is no room for the exported model in {given.folder}: {error.strerror}")
        return EXIT_REFUSED
    return EXIT_DONE


def provide(folder: Path, writer: MessageWriter) -> dict[str, Any]:
    """Download and export what ``folder`` says; the result of the job.

    WeightsUnavailable says which address failed; ParityError; BadInput for weights that do not fit the network; Refusal
    where this Python lacks a package.
    """
    options = json.loads((folder / "options.json").read_text())
    row = replace(
        ZOO[options["name"]],
        url=options["url"],
        sha256_prefix=options["sha256"],
        published=options["published"],
    )
    began = time.monotonic()
    file = fetch(row, Path(options["downloads"]), _Progress(row, writer))
    fetched = time.monotonic()
    writer.event(EVENT, {"phase": "export", "file": file.name}, _DOWNLOADED)
    manifest = _export(row, file, folder / "artifact")
    writer.event(EVENT, {"phase": "export", "done": True}, _EXPORTED)
    parity = manifest.parity.model_dump(mode="json") if manifest.parity is not None else None
    return {
        "url": row.url,
        "weights": manifest.weights.model_dump(mode="json"),
        "parity": parity,
        "download_s": round(fetched - began, 1),
        "export_s": round(time.monotonic() - fetched, 1),
    }


def _export(row: ZooRow, file: Path, folder: Path) -> Manifest:
    """Export weights to an artifact folder. The imports bring torch."""
    try:
        if row.family == "sam":
            from export.sam import artifact, recipe

            return artifact.write_artifact(
                (recipe.published if row.published else recipe.checkpoint)(row, file), folder
            )
        from export import recipe as networks
        from export.writer import write_artifact

        return write_artifact((networks.published if row.published else networks.checkpoint)(row, file), folder)
    except ImportError as error:
        raise Refusal(
            f"exporting needs {error.name}, which {sys.executable} lacks: {sys.executable} -m pip install "
            "'ekiben[export]', or name another Python in EKIBEN_TRAINING_PYTHON",
            code="provision_unavailable",
        ) from None


class _Progress:
    """Reports a download, at most once in _EVERY_S."""

    def __init__(self, row: ZooRow, writer: MessageWriter) -> None:
        self._row = row
        self._writer = writer
        self._told_at = -_EVERY_S

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._told_at < _EVERY_S and done != total:
            return
        self._told_at = now
        whole = total or self._row.megabytes * 1_000_000
        data = {"phase": "download", "url": self._row.url, "bytes": done, "total_bytes": total}
        self._writer.event(EVENT, data, _DOWNLOADED * min(1.0, done / whole))


if __name__ == "__main__":
    sys.exit(main())
