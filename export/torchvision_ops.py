"""Import of torchvision where its compiled operators do not load, as its CUDA wheel beside a CPU torch.

torchvision 0.28 registers shape functions for ``nms`` and ``qnms`` while it is imported, and that fails unless the
operators are declared. No network here calls them, so a declaration without an implementation is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library that is garbage-collected withdraws its declarations


def declare_missing() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` unless torchvision's operators load.

    Call it before importing torchvision.
    """
    if _declared or hasattr(torch.ops.torchvision, "nms") or _compiled_operators_load():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("_C*")):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            except OSError:
                return False
            return True
    return False
