"""Makes an artifact from a Keras or TensorFlow model: a child process converts it, then it is imported as ONNX."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ekiben.errors import BadInput, BadModelFile, Refusal, TooLarge
from ekiben.temporary_files import scratch
from export.keras.messages import Conversion, ConversionRequest, MeasuredParity
from models.artifact import Manifest, Parity, Weights, sha256_of
from models.onnx_import.artifact_builder import Provenance, build_artifact
from models.onnx_import.graph_metadata import MAX_FILE_BYTES
from models.onnx_import.options import ImportOptions

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ".venv-keras"


class KerasMissing(Refusal):
    """There is no Python with TensorFlow to convert with."""

    code = "keras_unavailable"


@dataclass(frozen=True)
class ConversionLimits:
    """What the child process may use. Its address space: ``memory_bytes`` and ten times the model."""

    memory_bytes: int = 12 << 30
    cpu_s: int = 1200
    wall_s: float = 1800.0


@dataclass(frozen=True)
class PixelScale:
    """How pixels are prepared: ``mean`` and ``std`` of pixels scaled to 0-1, and the order of their channels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: str = "RGB"


PREPROCESS = {
    "raw": PixelScale((0.0,) * 3, (1 / 255,) * 3),
    "unit": PixelScale((0.0,) * 3, (1.0,) * 3),
    "tf": PixelScale((0.5,) * 3, (0.5,) * 3),
    "torch": PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": PixelScale((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3, "BGR"),
}
"""By name: ``tf``, ``torch`` and ``caffe`` are those of keras.applications.imagenet_utils.preprocess_input."""


def keras_python(given: Path | None) -> Path:
    """The interpreter that was given, or that of ``.venv-keras``. KerasMissing says how to get one."""
    python = given or ROOT / ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise KerasMissing(
            f"{given} is no file"
            if given
            else f"TensorFlow's environment is not there yet: run make keras, which makes {ENVIRONMENT}"
        )
    return python


def build(
    source: Path,
    folder: Path,
    options: ImportOptions,
    *,
    python: Path,
    prepared: bool,
    activation: str | None,
    signature: str | None = None,
    limits: ConversionLimits | None = None,
) -> tuple[Manifest, list[str]]:
    """Make ``folder`` the artifact of a .keras or .h5 file or a SavedModel folder; gives its manifest, and notes.

    ``options`` as for an ONNX file; their ``output`` is replaced by what was found, where ``activation`` is None, and
    their ``mean`` and ``std`` unless ``prepared``. BadModelFile where the model cannot be converted or differs from
    Keras by more than the tolerance.
    """
    size, sha256 = _measure(source)
    limits = limits or ConversionLimits()
    with scratch("keras") as work:
        target = Path(work, "model.onnx")
        request = ConversionRequest(
            source=str(source.absolute()),
            target=str(target),
            task=options.task,
            labels=len(options.labels),
            mean=options.mean if prepared else None,
            std=options.std if prepared else None,
            bgr=options.color == "BGR",
            activation=activation,
            output_name=options.output_name,
            signature=signature,
            size=options.size,
        )
        made = _convert(source.name, python, request, Path(work), limits, limits.memory_bytes + 10 * size)
        parity = Parity(onnx_max_abs=made.parity.max_abs, tolerance=made.parity.tolerance, inputs=made.parity.inputs)
        manifest = build_artifact(
            target,
            folder,
            options.model_copy(
                update={"output": made.activation, "output_name": None, "mean": made.mean, "std": made.std}
            ),
            file_name=source.name,
            provenance=Provenance(
                Weights(kind="imported", detail=f"{source.name}, {made.description}", sha256=sha256), parity
            ),
        )
    return manifest, made.notes


def _measure(source: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, or of the names and contents of a folder's files."""
    try:
        if not source.is_dir():
            size, sha256 = source.stat().st_size, sha256_of(source)
        else:
            files = sorted(path for path in source.rglob("*") if path.is_file())
            listed = "\n".join(f"{path.relative_to(source)} {sha256_of(path)}" for path in files)
            size, sha256 = sum(path.stat().st_size for path in files), hashlib.sha256(listed.encode()).hexdigest()
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror}") from None
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"{source.name} has {size >> 20} MB; {MAX_FILE_BYTES >> 20} MB are read")
    return size, sha256


def _convert(
    name: str, python: Path, request: ConversionRequest, scratch: Path, limits: ConversionLimits, memory_bytes: int
) -> Conversion:
    report, log = scratch / "report.json", scratch / "log"
    arguments = [json.dumps(asdict(request)), str(report), str(memory_bytes), str(limits.cpu_s), str(MAX_FILE_BYTES)]
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                [str(python.absolute()), "-m", "export.keras.convert_process", *arguments],
                cwd=scratch,
                env=_environment(scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=limits.wall_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadModelFile(f"{name}: converting it takes more than {limits.wall_s:g} s") from None
    if not report.is_file():
        raise BadModelFile(f"{name}: {_how_it_ended(done.returncode, log, limits)}")
    said: dict[str, Any] = json.loads(report.read_bytes())
    if "missing" in said:
        raise KerasMissing(f"{python} lacks {said['missing']}: run make keras, and name no --python")
    if "refused" in said:
        raise BadModelFile(f"{name}: {said['refused']}")
    fields = said["converted"]
    return Conversion(
        **{
            **fields,
            "mean": tuple(fields["mean"]),
            "std": tuple(fields["std"]),
            "parity": MeasuredParity(**fields["parity"]),
        }
    )


def _environment(scratch: Path) -> dict[str, str]:
    # No settings and no keys: a model that takes control of the child finds none.
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG", "OMP_NUM_THREADS") if key in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HOME": str(scratch),
        "KERAS_HOME": str(scratch),
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _how_it_ended(returncode: int, log: Path, limits: ConversionLimits) -> str:
    if returncode == -signal.SIGXCPU:
        return f"converting it takes more than {limits.cpu_s} s of processor time"
    if returncode < 0:
        return (
            f"the process that converted it ended with {signal.Signals(-returncode).name}; it may need too much memory"
        )
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return f"the process that converted it failed: {lines[-1][:300]}"
