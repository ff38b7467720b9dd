"""Where a training computes: devices, processes and precision, through Lightning Fabric."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT_STR

from ekiben.training import TrainingOptions
from models.engine.session_options import cores


def make_fabric(options: TrainingOptions) -> Fabric:
    """A launched Fabric. All GPUs of the machine, else the CPU with all cores.

    Where torchrun or ``fabric run`` started this process, as many devices and machines as they say. Otherwise, with
    several GPUs, Fabric starts the further processes itself.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    world = int(os.environ.get("WORLD_SIZE", 0))
    fabric = Fabric(
        accelerator=os.environ.get("LT_ACCELERATOR") or ("cuda" if cuda else "cpu"),
        devices=os.environ.get("LT_DEVICES") or local or ("auto" if cuda else 1),
        num_nodes=int(os.environ.get("LT_NUM_NODES", 0)) or (world // local if local else 1),
        strategy=os.environ.get("LT_STRATEGY") or ("ddp" if world > 1 else "auto"),
        precision=precision_of(options),
    )
    # torchrun sets OMP_NUM_THREADS to 1 where nobody set it: then it is nobody's wish.
    wished = int(os.environ.get("OMP_NUM_THREADS") or cores()) if local <= 1 else cores() // local
    torch.set_num_threads(max(1, min(cores(), wished)))
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    fabric.launch()
    return fabric


def precision_of(options: TrainingOptions) -> _PRECISION_INPUT_STR:
    """mixed is bfloat16 where the processor computes in it, float16 on older GPUs, and nothing on older CPUs."""
    cuda = torch.cuda.is_available()
    if options.precision == "float32" or (options.precision == "auto" and not cuda):
        return "32-true"
    if cuda:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    # Without these instructions bfloat16 is emulated, and slower than float32.
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
