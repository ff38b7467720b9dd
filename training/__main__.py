"""``python -m training --folder FOLDER``: one training, from the files in the folder to the files in the folder.

Several GPUs of one machine are used by themselves; several machines, or processes on CPUs, through torch's launcher:
``torchrun --nproc-per-node 2 -m training --folder FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ekiben.child_protocol import (
    EXIT_REFUSED,
    MessageWriter,
    SilentWriter,
    end_on_sigterm,
    end_with_parent,
    log,
)
from ekiben.errors import Refusal
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
    """0 done, 2 refused (the last line on stdout says why), 3 the parent is gone."""
    began = time.monotonic()
    # Read when torch is loaded, below. Threads that wait for each other by spinning take the cores from those they
    # wait for: with one more busy process on the machine a step took 7 times as long (2 cores, 1.0 s against 6.6 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path, help=f"with {OPTIONS} and {DATASET}; takes what is made")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="use at most so much memory")
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
        writer.refusal(error.code, error.message)
    except MemoryError:
        writer.refusal("out_of_memory", _out_of_memory(given))
    except Exception as error:  # torch and ONNX Runtime say it with types of their own, or none
        if not is_out_of_memory(error):
            raise
        writer.refusal("out_of_memory", _out_of_memory(given))
    return EXIT_REFUSED


def train(folder: Path, memory_mb: int | None, writer: MessageWriter, began: float) -> int:
    """0; what the training has to say went to ``writer``. ``began``: time.monotonic() of the process's start."""
    try:
        options = TrainingOptions.model_validate_json((folder / OPTIONS).read_bytes())
    except OSError as error:
        raise Refusal(f"{OPTIONS} cannot be read: {error.strerror}", code="bad_options") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(f"{OPTIONS}: {'.'.join(map(str, first['loc']))}: {first['msg']}", code="bad_options") from None
    log("loading torch")
    with ProgressTicker(writer, lambda: ({"phase": "load"}, 0.0)) if _is_first() else contextlib.nullcontext():
        from training.data import TrainingData, cache_room
        from training.devices import make_fabric
        from training.trainer import Trainer

    archive = TrainingData(folder / DATASET, side=options.image_size, cache_bytes=cache_room(memory_mb))
    fabric = make_fabric(options)
    result = Trainer(folder, options, archive, fabric, writer if fabric.is_global_zero else SilentWriter(), began).run()
    if result is not None:
        writer.result(result)
    return 0


def _is_first() -> bool:
    """Whether this is the process that speaks; torch's launcher numbers them."""
    return os.environ.get("RANK", "0") == "0"


def limit_memory(megabytes: int) -> None:
    """Bound what this process may allocate, and let the system end it before any other when memory runs out."""
    most = megabytes << 20
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, its CPU allocator, its kernels or ONNX Runtime got no memory; they say it in words alone."""
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
    # Threads that still decode or beat must not delay the end.
    os._exit(status)
