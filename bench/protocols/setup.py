"""Shared by the measurements of the protocols: a running Ekiben, different images, and the report."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from bench import sample_image
from bench.contenders import MODEL, SERVING_PYTHON, publish
from bench.jobs.run import DATA, say
from bench.jobs.server import Ekiben
from bench.report import machine
from bench.run import DISTURBED_CORES
from bench.servers import ROOT, Missing

_CLIENTS = ("mlcommons-loadgen", "tritonclient", "grpcio", "protobuf", "numpy")
_SERVED = """
from importlib import metadata
names = ("onnxruntime", "bentoml", "uvicorn", "uvloop", "grpcio", "protobuf", "pillow")
import platform
print("Python", platform.python_version(), end=", ")
print(", ".join(f"{name} {metadata.version(name)}" for name in names))
"""


@dataclass(slots=True)
class Report:
    """One run: ``name`` of its files, ``lines`` of Markdown below the head, ``figures`` for the JSON file."""

    started: datetime
    name: str
    title: str
    remarks: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    figures: list[dict[str, object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    worst_others: float = 0.0
    """The most cores that processes took that are neither the server nor its client."""

    def write(self, folder: Path) -> Path:
        """The path of the Markdown file; the JSON lies beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.started:%Y-%m-%d}-{self.name}.md"
        path.write_text(self.markdown())
        info = {"started": self.started.isoformat(timespec="seconds"), "machine": {**machine(), "served": _served()}}
        found = {**info, "remarks": self.remarks, "wrong": self.wrong, "others": self.worst_others}
        path.with_suffix(".json").write_text(json.dumps({**found, "rows": self.figures}, indent=1) + "\n")
        return path

    def markdown(self) -> str:
        """The report as Markdown."""
        info = machine()
        head = [
            f"- {info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB; {info['system']}",
            f"- commit {info['commit']}",
            f"- Ekiben embedded, as shipped, no job worker; {_served()}; the client on the same machine",
            "- EfficientNet-B0 has random weights (seed 0): speed does not depend on them",
            *(f"- {each}" for each in self.remarks),
        ]
        quiet = f"other processes used at most {self.worst_others:.2f} cores during a measurement"
        head.append(f"- **disturbed: {quiet}**" if self.worst_others > DISTURBED_CORES else f"- {quiet}")
        head += [f"- **invalid: {each}**" for each in self.wrong]
        title = f"# {self.title}: {self.started:%Y-%m-%d %H:%M} UTC"
        return "\n".join([title, "", *head, "", *self.lines]).replace(f"{ROOT}/", "") + "\n"


def finish(measure: Callable[[Path], Report], name: str, out: Path, keep: bool) -> int:
    """The exit status of a measurement: it gets a scratch folder, its report is written and printed."""
    build = ROOT / "build"  # the disk of the checkout: a folder in memory would make storing cheaper
    build.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=build))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the server is stopped
    try:
        report = measure(work)
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        if keep:
            print(f"logs and data: {work}", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
    path = report.write(out)
    print("\n" + report.markdown())
    print(f"written to {path} and {path.with_suffix('.json').name}", file=sys.stderr)
    return 1 if report.wrong else 0


@contextmanager
def serving(work: Path) -> Iterator[Ekiben]:
    """Ekiben with EfficientNet-B0, started, and stopped at the end.

    Raises Missing when the model is not ready under /v2.
    """
    say("exporting and publishing the model")
    home = work / "home"
    publish(work, [home])
    with Ekiben(home, workers="0").running_on() as server:
        status, body = server.request("GET", f"/v2/models/{MODEL}/ready")
        if status != 200:
            raise Missing(f"{MODEL} is not ready under /v2: status {status}, {body[:200].decode(errors='replace')}")
        yield server


def http_address(server: Ekiben) -> str:
    """``host:port``, as clients of the protocol take it."""
    return server.url.removeprefix("http://")


def grpc_address(server: Ekiben) -> str:
    """``host:port`` of its gRPC port."""
    return f"127.0.0.1:{server.environ['EKIBEN_GRPC_PORT']}"


def photos(count: int) -> tuple[list[bytes], str]:
    """So many different encoded JPEGs at most, and what they are: photos where there are some, else drawn ones."""
    found = sorted((DATA / "imagenet_sample").glob("*.jpg"))[:count]
    if found:
        data = [file.read_bytes() for file in found]
        what = f"{len(data)} photos"
    else:
        data = [_varied(number) for number in range(count)]
        what = f"{count} drawn images, {sample_image.WIDTH} x {sample_image.HEIGHT}"
    return data, f"{what}, JPEG, {np.median([len(each) for each in data]) / 1e3:.0f} kB at the median"


def _varied(number: int) -> bytes:
    """The drawn image, shifted and with its channels in another order: other content, as heavy."""
    pixels = np.asarray(Image.open(io.BytesIO(sample_image.jpeg())))
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    shifted = np.roll(pixels, (number * 37, number * 53), (0, 1))[:, :, list(orders[number % len(orders)])]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shifted)).save(out, "JPEG", quality=sample_image.QUALITY)
    return out.getvalue()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; numbers are right-aligned from the third column on."""
    rule = ["---" if index < 2 else "---:" for index in range(len(columns))]
    return [f"| {' | '.join(each)} |" for each in (columns, rule, *rows)]


def clients() -> str:
    """Versions of the client's packages, which are in another environment than the server's."""
    installed = {each.name.lower().replace("_", "-"): each.version for each in metadata.distributions()}
    return ", ".join(f"{name} {installed[name]}" for name in _CLIENTS if name in installed)


def _served() -> str:
    """Versions of the server's packages."""
    done = subprocess.run([str(SERVING_PYTHON), "-c", _SERVED], capture_output=True, text=True, check=False)
    return done.stdout.strip()
