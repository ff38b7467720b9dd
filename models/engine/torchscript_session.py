"""Sessions on TorchScript. The only module of models/ that imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ekiben.errors import BadModelFile, Unavailable
from models.artifact import TORCHSCRIPT, Manifest
from models.engine.cancellation import RunCancellation
from models.engine.session_options import SessionOptions


class TorchScriptSession:
    """The traced module of an artifact, in inference mode. Needs torch, which serving does not install."""

    def __init__(self, folder: Path, manifest: Manifest, options: SessionOptions) -> None:
        path = folder / TORCHSCRIPT
        if not path.is_file():
            raise BadModelFile(f"this artifact has no {TORCHSCRIPT}; serve it with the onnx runtime")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("EKIBEN_DEVICE=cuda, but torch sees no CUDA device")
        self.device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
        self.max_batch = manifest.input.batch
        torch.set_num_threads(options.threads)
        try:
            self._module: Any = torch.jit.load(str(path), map_location=self.device).eval()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise BadModelFile(f"torch cannot load {path}: {str(error).strip().splitlines()[0]}") from error

    def run(self, batch: NDArray[np.generic], cancellation: RunCancellation | None = None) -> NDArray[np.floating[Any]]:
        """The output [N, ...] for ``batch`` [N, ...]. ``cancellation`` is ignored: torch cannot stop a run."""
        with torch.inference_mode():
            output: NDArray[np.floating[Any]] = self._module(torch.from_numpy(batch).to(self.device)).cpu().numpy()
        return output

    def close(self) -> None:
        """Free the memory of the module."""
        del self._module
        if self.device == "cuda":
            torch.cuda.empty_cache()
