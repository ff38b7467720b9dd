"""Names to versions without a query, what is refused, and copies of artifacts that are on no disk of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from db.folder_store import FolderStore
from ekiben.errors import BadInput, Damaged, NotFound, Refusal, Unavailable
from models.artifact import MANIFEST, read_manifest
from models.engine.engine import ModelKey
from services.model_registry.index import ModelIndex, ServableModel
from tests.services.model_registry.conftest import Shelf
from tests.toy_models import CLASSES


class FarStore(FolderStore):
    """A store whose blobs are not files of this machine; counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def local_path(self, key: str) -> Path | None:  # type: ignore[override]
        return None

    def stream(self, key: str) -> Iterator[bytes]:
        self.read.append(key)
        with self._path(key).open("rb") if self._path(key).is_file() else _missing(key) as file:
            yield file.read()


def _missing(key: str) -> Any:
    raise NotFound(f"there is no blob {key}")


@pytest.fixture
def index(shelf: Shelf, tmp_path: Path) -> ModelIndex:
    return ModelIndex(shelf.registry, shelf.store, tmp_path / "cache")


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """The SQL that is run meanwhile."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def find(index: ModelIndex, name: str, version: int | None = None) -> ServableModel:
    return asyncio.run(index.find("local", name, version))


def test_a_version_is_found_with_what_requests_need(shelf: Shelf, index: ModelIndex) -> None:
    key = shelf.publish()
    served = find(index, "colours")
    manifest = read_manifest(shelf.toys["colours"])
    assert (served.key, key) == (ModelKey("local", "colours", 1), ModelKey("local", "colours", 1))
    assert (served.task, served.family, served.classes) == ("classify", "classifier", len(CLASSES))
    assert served.digest == manifest.digest
    assert dict(served.manifest) == manifest.model_dump(mode="json")


def test_none_is_the_active_version_and_a_number_any(shelf: Shelf, index: ModelIndex) -> None:
    for _ in range(3):
        shelf.publish()
    index.refresh()
    assert [find(index, "colours", version).key.version for version in (None, 1, 2, 3)] == [3, 1, 2, 3]
    shelf.registry.activate("colours", 2)
    assert find(index, "colours").key.version == 3  # until the next look at the registry
    assert index.refresh()
    assert find(index, "colours").key.version == 2


def test_what_is_known_needs_no_query(shelf: Shelf, index: ModelIndex) -> None:
    shelf.publish()
    with statements(shelf.engine) as seen:
        find(index, "colours")  # published since the last refresh, of which there was none
        assert seen
        seen.clear()
        find(index, "colours")
        find(index, "colours", 1)
        assert asyncio.run(index.resolve_first("local", ["nothing", "colours"], None, "classify")).key.version == 1
        assert seen == []


def test_a_refresh_copies_only_what_has_changed(shelf: Shelf, index: ModelIndex) -> None:
    assert index.revision == -1
    assert index.refresh()
    shelf.publish()
    assert index.revision != shelf.registry.revision()
    assert index.listed() == []
    assert index.refresh()
    assert index.revision == shelf.registry.revision()
    assert [(model.model.name, len(model.versions)) for model in index.listed()] == [("colours", 1)]
    with statements(shelf.engine) as seen:
        assert not index.refresh()
        assert len([one for one in seen if one.startswith("SELECT")]) == 1
    assert index.listed("someone") == []


@pytest.mark.parametrize(
    ("name", "version", "task", "error", "sentence"),
    [
        ("nothing", None, "classify", NotFound, "there is no model nothing; there is: broken, colours"),
        ("colours", 7, "classify", NotFound, "model colours has no version 7; there is: 1"),
        ("colours", None, "segment", BadInput, "model colours is there to classify, not to segment"),
        ("broken", None, "classify", Unavailable, "model broken is not available: its licence forbids it"),
    ],
)
def test_what_is_not_served_says_why(
    name: str, version: int | None, task: str, error: type[Refusal], sentence: str, shelf: Shelf, index: ModelIndex
) -> None:
    shelf.publish()
    shelf.registry.mark_unavailable("broken", "classify", "its licence forbids it")
    with pytest.raises(error) as caught:
        asyncio.run(index.resolve("local", name, version, task))
    assert str(caught.value) == sentence


def test_the_first_of_several_names_that_is_there(shelf: Shelf, index: ModelIndex) -> None:
    def first(*names: str, version: int | None = None, task: str = "classify") -> ModelKey:
        return asyncio.run(index.resolve_first("local", names, version, task)).key

    shelf.publish("b")
    assert first("a", "b", "c") == ModelKey("local", "b", 1)  # found in the registry
    shelf.publish("c")
    shelf.publish("b")
    index.refresh()
    assert first("a", "c", "b") == ModelKey("local", "c", 1)
    assert first("b", "c", version=1) == ModelKey("local", "b", 1)
    with pytest.raises(NotFound) as caught:
        first("x", "y")
    assert str(caught.value) == "there is no model x; there is: b, c"
    with pytest.raises(BadInput) as refused:
        first("a", "b", task="segment")
    assert str(refused.value) == "model b is there to classify, not to segment"


# ---- artifacts ----


def test_files_of_a_store_on_this_disk_are_used_where_they_are(shelf: Shelf, index: ModelIndex, tmp_path: Path) -> None:
    key = shelf.publish()
    assert index.locate(key) == tmp_path / "blobs" / "models" / "colours" / "1"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(NotFound):
        index.locate(key._replace(version=2))


@pytest.fixture
def far(shelf: Shelf, tmp_path: Path) -> tuple[ModelIndex, FarStore, ModelKey]:
    """An index over a store elsewhere, and a version in it."""
    key = shelf.publish()
    store = FarStore(tmp_path / "blobs")
    return ModelIndex(shelf.registry, store, tmp_path / "cache"), store, key


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_from_elsewhere_are_copied_once(
    far: tuple[ModelIndex, FarStore, ModelKey], shelf: Shelf, tmp_path: Path
) -> None:
    index, store, key = far
    folder = index.locate(key)
    assert folder == tmp_path / "cache" / "local" / "colours" / "1"
    assert contents(folder) == contents(shelf.toys["colours"])
    assert sorted(store.read) == sorted(f"models/colours/1/{name}" for name in contents(folder))
    store.read.clear()
    assert index.locate(key) == folder
    assert store.read == []


def test_a_copy_of_another_artifact_is_replaced(
    far: tuple[ModelIndex, FarStore, ModelKey], shelf: Shelf, tmp_path: Path
) -> None:
    """As when a database was made anew and the cache was left."""
    index, _, key = far
    folder = tmp_path / "cache" / "local" / "colours" / "1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes((shelf.toys["areas"] / MANIFEST).read_bytes())
    (folder / "left.txt").write_text("-")
    assert contents(index.locate(key)) == contents(shelf.toys["colours"])


def test_a_damaged_file_is_no_copy(far: tuple[ModelIndex, FarStore, ModelKey], tmp_path: Path) -> None:
    index, _, key = far
    (graph,) = (tmp_path / "blobs" / "models" / "colours" / "1").glob("*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=r"^the files of model colours version 1 are .*not those that were"):
        index.locate(key)
    assert list((tmp_path / "cache" / "local" / "colours").iterdir()) == []
    graph.unlink()
    with pytest.raises(Damaged, match=r"model\.onnx is missing$"):
        index.locate(key)
    assert list((tmp_path / "cache" / "local" / "colours").iterdir()) == []
