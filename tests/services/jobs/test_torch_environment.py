"""Which Python trains and exports, and how its environment is made."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.jobs import torch_environment
from services.jobs.torch_environment import EXPORTING, TRAINING, TorchMissing, torch_python
from tests.waiting import async_eventually, eventually


def pretend(known: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This interpreter has the packages that are ``known``, and no others."""
    finder = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name if name in known else None))
    monkeypatch.setattr(torch_environment, "importlib", finder)


def test_which_python_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    pretend(known, monkeypatch)
    monkeypatch.setattr(torch_environment, "_ROOT", tmp_path)
    # The setting goes first, and has to be there.
    assert asyncio.run(torch_python(sys.executable, TRAINING)) == sys.executable
    monkeypatch.chdir(tmp_path)
    Path("bin").mkdir()
    Path("bin/python").symlink_to(sys.executable)
    assert asyncio.run(torch_python("bin/python", TRAINING)) == str(tmp_path / "bin" / "python")
    with pytest.raises(TorchMissing, match="EKIBEN_TRAINING_PYTHON is /nowhere/python") as missing:
        asyncio.run(torch_python("/nowhere/python", TRAINING))
    assert missing.value.code == "training_unavailable"
    # Then this one, if it has all that it takes.
    known.update(("torch", "monai"))
    assert asyncio.run(torch_python("", TRAINING)) == sys.executable
    known.remove("monai")
    with pytest.raises(TorchMissing, match="EKIBEN_TRAINING_PYTHON"):
        asyncio.run(torch_python("", TRAINING))
    with pytest.raises(
        TorchMissing, match=r"exporting needs .*pip install 'ekiben\[export\]'.*EKIBEN_TRAINING_PYTHON"
    ) as missing:
        asyncio.run(torch_python("", EXPORTING))
    assert missing.value.code == "provision_unavailable"
    known.update(("torchvision", "segment_anything"))
    assert asyncio.run(torch_python("", EXPORTING)) == sys.executable
    # Then that of the checkout, which make brings up to date.
    makefile = tmp_path / "Makefile"
    makefile.write_text(".venv-torch/.installed:\n\tmkdir -p .venv-torch/bin && touch $@\n")
    assert asyncio.run(torch_python("", TRAINING)) == str(tmp_path / ".venv-torch" / "bin" / "python")
    assert (tmp_path / ".venv-torch" / ".installed").is_file()
    makefile.write_text(".venv-torch/.installed: .PHONY\n\techo no network here >&2; exit 1\n.PHONY:\n")
    with pytest.raises(TorchMissing, match="could not be made") as failed:
        asyncio.run(torch_python("", TRAINING))
    assert failed.value.code == "training_unavailable"


def test_making_the_environment_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that make has started: pip would go on for minutes."""
    pretend(set(), monkeypatch)
    monkeypatch.setattr(torch_environment, "_ROOT", tmp_path)
    recipe = "sh -c 'echo $$$$ > pid.new; mv pid.new pid; sleep 600; true'"
    (tmp_path / "Makefile").write_text(f".venv-torch/.installed:\n\t{recipe}\n")

    async def main() -> None:
        task = asyncio.create_task(torch_python("", TRAINING))
        await async_eventually((tmp_path / "pid").is_file)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not _alive(pid), "the end of what make started")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
