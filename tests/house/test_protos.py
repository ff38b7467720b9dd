"""The compiled messages of ekiben.v1 are those of the proto."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.serving import ROOT

COMPILED = ("ekiben_pb2.py", "ekiben_pb2.pyi", "ekiben_pb2_grpc.py")


def test_the_compiled_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    """By the recipe of ``make protos``, into another folder."""
    recipe = re.search(r"^protos:.*\n\t@(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    _, *arguments = shlex.split(recipe[1])
    elsewhere = [re.sub(r"^(--\w+_out=)\.$", rf"\g<1>{tmp_path}", one) for one in arguments]
    assert sum(str(tmp_path) in one for one in elsewhere) == len(COMPILED)
    done = subprocess.run([sys.executable, *elsewhere], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "ekiben/v1").iterdir()}
    kept = {name: (ROOT / "ekiben/v1" / name).read_bytes() for name in COMPILED}
    assert made == kept, "ekiben/v1 is not what services/rpc/ekiben/v1/ekiben.proto compiles to: make protos"
