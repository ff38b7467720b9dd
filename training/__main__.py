"""``python -m training --folder FOLDER``: one training; reads its input from the folder and writes its results there.

All GPUs of one machine are used without further options. Several machines, or several CPU processes, need torch's
launcher:
``torchrun --nproc-per-node 2 -m training --folder FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ekiben.child_memory import limit_memory
from ekiben.child_protocol import (
    EXIT_REFUSED,
    MessageWriter,
    SilentWriter,
    end_on_sigterm,
    end_with_parent,
    log,
)
from ekiben.disk_full import NO_SPACE, comes_of_full_disk, is_without_space
from ekiben.errors import Refusal, StorageFull
from ekiben.training import TrainingOptions
from training.progress import ProgressTicker

OPTIONS, DATASET = "options.json", "dataset.zip"

_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "alloc_failed",  # cuDNN, cuBLAS
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "can't start new thread",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, EXIT_REFUSED (2) when the training was refused; the last line on stdout has the reason.

    A process whose parent has ended exits with EXIT_ORPHANED (3) from another thread.
    """
    began = time.monotonic()
    # OpenMP reads it when torch is loaded, below. Threads that spin while they wait take cores from the threads they
    # wait for: beside one other busy process a step took 6.6 s instead of 1.0 s (measured on 2 cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path, help=f"holds {OPTIONS} and {DATASET}; takes the results")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="limit of the memory that this process allocates")
    given = parser.parse_args(arguments)
    writer = MessageWriter.take_stdout()
    end_on_sigterm()
    if given.with_parent:
        end_with_parent()
    if given.memory_mb is not None:
        limit_memory(given.memory_mb)
    try:
        return train(given.folder, given.memory_mb, writer, began)
    except Refusal as error:
        full = comes_of_full_disk(error)
        writer.refusal(StorageFull.code if full else error.code, NO_SPACE if full else error.message)
    except MemoryError:
        writer.refusal("out_of_memory", _out_of_memory(given))
    except Exception as error:  # torch and ONNX Runtime raise RuntimeError or their own types, not MemoryError
        if comes_of_full_disk(error) or is_without_space(given.folder):
            log(f"no space is left: {error}")
            writer.refusal(StorageFull.code, NO_SPACE)
            return EXIT_REFUSED
        if not is_out_of_memory(error):
            raise
        writer.refusal("out_of_memory", _out_of_memory(given))
    return EXIT_REFUSED


def train(folder: Path, memory_mb: int | None, writer: MessageWriter, began: float) -> int:
    """Exit status 0; events and the result went to ``writer``. ``began``: time.monotonic() at the start of the process.

    Raises Refusal ``bad_options`` when the options file cannot be read or is invalid, and any Refusal of the training.
    """
    try:
        options = TrainingOptions.model_validate_json((folder / OPTIONS).read_bytes())
    except OSError as error:
        raise Refusal(f"{OPTIONS} cannot be read: {error.strerror}", code="bad_options") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(f"{OPTIONS}: {'.'.join(map(str, first['loc']))}: {first['msg']}", code="bad_options") from None
    log("loading torch")
    with ProgressTicker(writer, lambda: ({"phase": "load"}, 0.0)) if _is_rank_zero() else contextlib.nullcontext():
        from training.data import TrainingData, cache_budget
        from training.devices import make_fabric
        from training.trainer import Trainer

    archive = TrainingData(folder / DATASET, side=options.image_size, cache_bytes=cache_budget(memory_mb))
    fabric = make_fabric(options)
    result = Trainer(folder, options, archive, fabric, writer if fabric.is_global_zero else SilentWriter(), began).run()
    if result is not None:
        writer.result(result)
    return 0


def _is_rank_zero() -> bool:
    """Whether this is the process that reports; torch's launcher sets RANK."""
    return os.environ.get("RANK", "0") == "0"


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, its allocators, its kernels or ONNX Runtime ran out of memory: recognised by the message alone."""
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def _out_of_memory(given: argparse.Namespace) -> str:
    limit = f" ({given.memory_mb} MB)" if given.memory_mb is not None else ""
    return (
        f"the training needs more memory than it has{limit}; a smaller batch_size, a smaller tile or image_size, "
        "or a smaller width needs less"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    status = main()
    sys.stderr.flush()
    # Threads that still decode images or report progress must not delay the exit.
    os._exit(status)
