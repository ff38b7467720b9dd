"""The child of a provisioning job: from an address to an artifact folder, and what it says when that fails."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ekiben.child_protocol import EXIT_REFUSED, MessageWriter
from ekiben.errors import BadInput
from export.provide import provide
from export.zoo import ZOO
from models.artifact import read_manifest, verify
from tests.serving import ROOT


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server with the files of ``tmp_path/published``."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "published").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "published"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def prepare(tmp_path: Path, address: str) -> Callable[..., Path]:
    """A function that publishes bytes, and makes the folder of a job that provides them."""

    def prepare(name: str, content: bytes | None, digest: str | None = None) -> Path:
        if content is not None:
            (tmp_path / "published" / "mine.pth").write_bytes(content)
        folder = tmp_path / "job"
        folder.mkdir()
        options = {
            "name": name,
            "url": f"{address}/mine.pth",
            "sha256": digest or hashlib.sha256(content or b"").hexdigest(),
            "published": False,
            "downloads": str(tmp_path / "cache" / "downloads"),
        }
        (folder / "options.json").write_text(json.dumps(options))
        return folder

    return prepare


def messages(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_segment_anything_from_an_own_address(
    prepare: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    from export.sam import recipe
    from tests.export import sam_narrow
    from tests.export.narrow_export import narrow_export

    weights = io.BytesIO()
    torch.save(narrow_export(tmp_path_factory).network.state_dict(), weights)
    monkeypatch.setitem(recipe.BUILDERS, "vit_b", sam_narrow.build)
    folder, out = prepare("sam_vit_b", weights.getvalue()), io.StringIO()
    result = provide(folder, MessageWriter(out))
    manifest = read_manifest(folder / "artifact")
    verify(folder / "artifact", manifest)
    assert (manifest.family, manifest.task) == ("sam", "masks")
    # They are not the published ones, and say so.
    assert result["weights"] == manifest.weights.model_dump(mode="json")
    assert (manifest.weights.kind, manifest.weights.detail, manifest.licence) == ("checkpoint", "mine.pth", "unknown")
    assert manifest.weights.sha256 == hashlib.sha256(weights.getvalue()).hexdigest()
    said = messages(out)
    phases = [each["data"]["phase"] for each in said]
    assert phases == sorted(phases) and set(phases) == {"download", "export"}
    progress = [each["progress"] for each in said]
    assert progress == sorted(progress) and 0.6 <= progress[-1] < 1
    assert said[0]["data"]["total_bytes"] == len(weights.getvalue())
    assert [path.name for path in (tmp_path / "cache" / "downloads").iterdir()] == ["mine.pth"]


def test_a_file_that_is_no_checkpoint(prepare: Callable[..., Path]) -> None:
    pytest.importorskip("torch")
    folder = prepare("efficientnet_b0", b"PK not really")
    with pytest.raises(BadInput, match=r"mine\.pth cannot be read as a checkpoint"):
        provide(folder, MessageWriter(io.StringIO()))
    assert not (folder / "artifact").exists()


def run(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """The program, as a worker starts it: in the folder, without settings."""
    done = subprocess.run(
        [sys.executable, "-m", "export.provide", "--folder", str(folder)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "HTTP 404"), (b"tampered", "what came has the SHA-256")], ids=["absent", "tampered"]
)
def test_what_cannot_be_downloaded_says_the_address(
    prepare: Callable[..., Path], address: str, content: bytes | None, reason: str
) -> None:
    status, said = run(prepare("sam_vit_b", content, ZOO["sam_vit_b"].sha256_prefix))
    assert status == EXIT_REFUSED
    refusal = said[-1]["refusal"]
    assert refusal["code"] == "weights_unavailable"
    assert f"{address}/mine.pth ({reason}" in refusal["message"]
    assert ZOO["sam_vit_b"].sha256_prefix in refusal["message"]
