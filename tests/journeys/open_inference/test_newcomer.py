"""The ten lines of the documentation, run by a newcomer beside a server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, Server

PAGE = ROOT / "docs" / "reference" / "open-inference-protocol.md"


@pytest.mark.parametrize("topology_server", ["embedded"], indirect=True)
def test_the_ten_lines(topology_server: Server, shared_data: Path, tmp_path: Path) -> None:
    """As they stand, but for the address and the model's name: a photo of a cat and its five best classes."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    script = found.group(1)
    for words in ('t.InferenceServerClient("localhost:3000")', 'open("cat.jpg", "rb")', 'c.infer("efficientnet_b0", '):
        assert words in script
    script = script.replace("localhost:3000", topology_server.url.removeprefix("http://"))
    script = script.replace("efficientnet_b0", "mobilenet_v2")
    photo = sorted((shared_data / "photos").glob("*.jpg"))[0].read_bytes()
    (tmp_path / "cat.jpg").write_bytes(photo)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    ready, _, rest = done.stdout.partition(" ")
    assert ready == "True"
    assert "'name': 'mobilenet_v2'" in rest and "'state': 'READY'" in rest
    with topology_server.client() as client:
        body = client.post("/v1/classify?model=mobilenet_v2&top_k=5&store=false", content=photo).json()
    printed = re.findall(r"b['\"]([0-9.e+-]+):(\d+):(.*?)['\"](?=[\s\]])", rest)
    assert [(int(index), name) for _, index, name in printed] == [
        (one["class_index"], one["class_name"]) for one in body["predictions"]
    ]
    assert [float(value) for value, _, _ in printed] == pytest.approx(
        [one["confidence"] for one in body["predictions"]], abs=1e-5
    )
