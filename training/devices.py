"""Devices, processes and precision of a training, through Lightning Fabric."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT_STR

from ekiben.training import TrainingOptions
from models.engine.session_options import cores


def make_fabric(options: TrainingOptions) -> Fabric:
    """A launched Fabric on all GPUs of the machine, or on the CPU with all cores. Sets torch's number of threads.

    Under torchrun or ``fabric run`` their environment variables decide on devices and machines. Otherwise, with several
    GPUs, Fabric starts the other processes itself.
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
    # torchrun sets OMP_NUM_THREADS=1 by default, so with several local processes its value is ignored.
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores()) if local <= 1 else cores() // local
    torch.set_num_threads(max(1, min(cores(), threads)))
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    fabric.launch()
    return fabric


def precision_of(options: TrainingOptions) -> _PRECISION_INPUT_STR:
    """Fabric's precision for ``options.precision``: float32, or mixed with bfloat16 where the processor supports it.

    GPUs without bfloat16 use float16 with loss scaling, CPUs without it float32. ``auto`` is mixed on a GPU.
    """
    cuda = torch.cuda.is_available()
    if options.precision == "float32" or (options.precision == "auto" and not cuda):
        return "32-true"
    if cuda:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    # Without AVX512-BF16 bfloat16 is emulated, which is slower than float32.
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
