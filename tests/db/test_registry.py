"""Publishing, choosing and finding models, alone and while others do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, select

from db.registry import Registry
from db.tables import Model, ModelVersion
from ekiben.errors import BadInput, Conflict, NotFound, Unavailable


def publish(registry: Registry, name: str = "resnet50", **given: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "task": "classify",
        "family": "classifier",
        "manifest": {"labels": ["cat", "dog"], "input": {"name": "image"}},
        "digest": "d" * 64,
        "bytes": 5 * 2**30,
        "lineage": {"source": "torchvision"},
        "metrics": {"top1": 0.7613},
        "store_files": lambda prefix: None,
    }
    return registry.publish(name=name, **{**values, **given})


def test_a_version_comes_back_as_it_was_published(registry: Registry) -> None:
    stored: list[str] = []
    row = publish(registry, store_files=stored.append)
    assert stored == ["models/resnet50/1/"]
    found = registry.resolve("resnet50")
    assert found.model_dump() == row.model_dump()
    assert (found.version, found.active, found.location) == (1, True, "models/resnet50/1/")
    assert found.manifest == {"labels": ["cat", "dog"], "input": {"name": "image"}}
    assert (found.bytes, found.lineage, found.metrics) == (5 * 2**30, {"source": "torchvision"}, {"top1": 0.7613})


def test_publishing_again_makes_the_next_version(registry: Registry) -> None:
    assert [publish(registry).version for _ in range(3)] == [1, 2, 3]
    assert [(v.version, v.active) for v in registry.versions("resnet50")] == [(3, True), (2, False), (1, False)]
    assert registry.resolve("resnet50").version == 3
    assert registry.resolve("resnet50", 1).version == 1
    assert publish(registry, activate=False).version == 4
    assert registry.resolve("resnet50").version == 3


def test_reuse_goes_by_digest(registry: Registry) -> None:
    first = publish(registry, digest="one", reuse=True)
    stored: list[str] = []
    assert publish(registry, digest="one", reuse=True, store_files=stored.append).id == first.id
    assert stored == [] and len(registry.versions("resnet50")) == 1
    assert publish(registry, digest="two", reuse=True).version == 2
    assert publish(registry, digest="one", reuse=True).version == 3  # it is not the active one any more
    assert publish(registry, digest="one").version == 4


def test_reuse_from_several_at_once(registry: Registry) -> None:
    """They may all have written files before one of them is first: still there is one version."""
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(publish, registry, reuse=True, store_files=lambda _: barrier.wait(5)) for _ in range(3)]
        versions = {future.result(10).version for future in futures}
    assert len(versions) == 1
    assert [v.version for v in registry.versions("resnet50")] == list(versions)


def test_when_storing_fails_nothing_is_left(registry: Registry, engine: sa.Engine) -> None:
    def fail(prefix: str) -> None:
        raise Unavailable("the blob store is not available")

    with pytest.raises(Unavailable, match="blob store"):
        publish(registry, store_files=fail)
    with Session(engine) as session:
        assert session.exec(select(Model)).all() == [] and session.exec(select(ModelVersion)).all() == []
    publish(registry)
    with pytest.raises(Unavailable):
        publish(registry, store_files=fail)
    assert [(v.version, v.active) for v in registry.versions("resnet50")] == [(1, True)]
    assert publish(registry).version == 2


def test_nobody_waits_while_files_are_written(registry: Registry) -> None:
    """In the middle of one publish: others publish, and the name is not listed before its first version is there."""
    seen: list[Any] = []

    def store(prefix: str) -> None:
        with pytest.raises(NotFound):
            registry.resolve("resnet50")
        seen.append(registry.models())
        seen.append(publish(registry, "unet").version)

    assert publish(registry, store_files=store).version == 1
    assert seen == [[], 1]


def test_eight_publish_at_once(registry: Registry) -> None:
    prefixes: list[str] = []
    barrier = threading.Barrier(8)

    def store(prefix: str) -> None:
        barrier.wait(10)  # everybody has a number before anybody is done
        prefixes.append(prefix)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda n: publish(registry, store_files=store, digest=str(n)), range(8)))
    assert sorted(v.version for v in versions) == list(range(1, 9))
    assert sorted(prefixes) == [f"models/resnet50/{n}/" for n in range(1, 9)]
    assert all(v.location == f"models/resnet50/{v.version}/" for v in versions)
    # The one that was slow does not displace what is newer.
    assert [v.version for v in registry.versions("resnet50") if v.active] == [8]


def test_owners_have_their_own_names(registry: Registry) -> None:
    publish(registry)
    assert publish(registry, owner="ann").location == "models/ann/resnet50/1/"
    assert registry.resolve("resnet50", owner="ann").owner == "ann"
    publish(registry, "private", owner="ann")
    with pytest.raises(NotFound):
        registry.resolve("private")
    assert [listed.model.name for listed in registry.models()] == ["resnet50"]
    assert [listed.model.name for listed in registry.models("ann")] == ["private", "resnet50"]


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a/b", "..", "a b", "a\n", "ü", "a" * 64])
def test_names_that_are_none(registry: Registry, name: str) -> None:
    with pytest.raises(BadInput):
        publish(registry, name)
    with pytest.raises(BadInput):
        registry.mark_unavailable(name, None, "no reason")
    with pytest.raises(NotFound):
        registry.resolve(name)


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "deeplab-v3_2"])
def test_names(registry: Registry, name: str) -> None:
    assert publish(registry, name).name == name


def test_not_found_says_what_there_is(registry: Registry) -> None:
    with pytest.raises(NotFound, match="there is no model resnet50; there is: none yet"):
        registry.resolve("resnet50")
    publish(registry)
    publish(registry)
    publish(registry, "unet", activate=False)
    with pytest.raises(NotFound, match="there is no model vgg; there is: resnet50, unet"):
        registry.resolve("vgg")
    with pytest.raises(NotFound, match="there is no model vgg; there is: resnet50, unet"):
        registry.resolve("vgg", 1)
    with pytest.raises(NotFound, match="model resnet50 has no version 7; there is: 1, 2"):
        registry.resolve("resnet50", 7)
    with pytest.raises(NotFound, match="model unet has no active version; say which: 1"):
        registry.resolve("unet")
    with pytest.raises(NotFound):
        registry.versions("vgg")


def test_a_model_without_weights(registry: Registry) -> None:
    registry.mark_unavailable("resnet50", "classify", "the weights could not be downloaded")
    (listed,) = registry.models()
    assert (listed.model.name, listed.model.task, listed.versions, listed.active) == ("resnet50", "classify", (), None)
    for version in (None, 1):
        with pytest.raises(Unavailable, match="model resnet50 is not available: the weights could not be downloaded"):
            registry.resolve("resnet50", version)
    publish(registry)
    assert registry.resolve("resnet50").version == 1
    assert registry.models()[0].model.unavailable_reason is None
    registry.mark_unavailable("resnet50", "classify", "again")  # it has a version: nothing changes
    assert registry.models()[0].model.unavailable_reason is None


def test_activate(registry: Registry) -> None:
    for _ in range(3):
        publish(registry)
    assert registry.activate("resnet50", 1).active
    assert [(v.version, v.active) for v in registry.versions("resnet50")] == [(3, False), (2, False), (1, True)]
    assert registry.activate("resnet50", 1).version == 1
    assert registry.resolve("resnet50").version == 1
    (listed,) = registry.models()
    assert listed.active is not None and listed.active.version == 1
    with pytest.raises(NotFound):
        registry.activate("resnet50", 4)
    assert publish(registry).active  # a new version is later than all


def test_delete_version(registry: Registry) -> None:
    for _ in range(3):
        publish(registry)
    with pytest.raises(Conflict, match="version 3 of model resnet50 is active: activate one of 1, 2 first"):
        registry.delete_version("resnet50", 3)
    registry.activate("resnet50", 1)
    assert registry.delete_version("resnet50", 3) == "models/resnet50/3/"
    with pytest.raises(NotFound):
        registry.delete_version("resnet50", 3)
    assert publish(registry, activate=False).version == 4  # caches go by number: 3 is never anything else
    registry.delete_version("resnet50", 4)
    registry.delete_version("resnet50", 2)
    registry.delete_version("resnet50", 1)  # the last one may go although it is active
    assert registry.models() == []
    with pytest.raises(NotFound, match="there is no model resnet50"):
        registry.resolve("resnet50")
    assert publish(registry).version == 5


def test_desired(registry: Registry) -> None:
    publish(registry)
    assert registry.models()[0].model.desired == "auto"
    assert registry.set_desired("resnet50", "loaded").desired == "loaded"
    assert registry.models()[0].model.desired == "loaded"
    publish(registry)
    assert registry.models()[0].model.desired == "loaded"
    with pytest.raises(BadInput):
        registry.set_desired("resnet50", "perhaps")  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        registry.set_desired("vgg", "loaded")


def test_revision_grows_with_every_change(registry: Registry) -> None:
    changes: list[Callable[[], object]] = [
        lambda: publish(registry),
        lambda: publish(registry),
        lambda: registry.activate("resnet50", 1),
        lambda: registry.set_desired("resnet50", "unloaded"),
        lambda: registry.delete_version("resnet50", 2),
        lambda: registry.mark_unavailable("vgg", "classify", "no weights"),
    ]
    for change in changes:
        before = registry.revision()
        change()
        assert registry.revision() > before
    others: list[Callable[[], object]] = [
        registry.models,
        lambda: registry.resolve("resnet50"),
        lambda: registry.report("p", "host", 1, []),
    ]
    before = registry.revision()
    for other in others:
        other()
    with pytest.raises(NotFound):
        registry.activate("resnet50", 9)
    assert registry.revision() == before
