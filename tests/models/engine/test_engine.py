"""The engine with real sessions of toys: one load for all who ask, leases, pins, eviction, failures."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ekiben.errors import BadModelFile, ModelDisabled, Refusal, Unavailable
from models.engine.engine import Engine, ModelKey, ModelState
from tests.models.shelf import BATCH, MEGABYTE, Shelf, key
from tests.waiting import eventually


def test_sixteen_who_ask_at_once_make_one_load(shelf: Shelf) -> None:
    shelf.slow.clear()
    with ThreadPoolExecutor(16) as pool:
        leases = [pool.submit(shelf.engine.lease, key("a")) for _ in range(16)]
        eventually(lambda: shelf.opened == ["a"])
        assert shelf.state("a").state == "loading" and shelf.engine.try_lease(key("a")) is None
        shelf.slow.set()
        loaded = [lease.result(20) for lease in leases]
    assert shelf.opened == ["a"] and len({id(one) for one in loaded}) == 1
    assert shelf.state("a") == ModelState(key("a"), "ready", memory_bytes=10 * MEGABYTE, loads=1)
    for one in loaded:
        shelf.engine.release(one)
    assert shelf.engine.unload(key("a")) and shelf.closed == ["a"]


def test_versions_and_owners_are_models_of_their_own(shelf: Shelf) -> None:
    for one in (key("a", 1), key("a", 2), ModelKey("ann", "a", 1)):
        shelf.engine.load(one)
    assert len(shelf.opened) == 3 and len(shelf.ready()) == 3
    assert str(key("a", 2)) == "a version 2"


def test_the_least_recently_used_goes_first(shelf: Shelf) -> None:
    shelf.use("a", "b", "c", "a")
    assert shelf.engine.used_bytes == 30 * MEGABYTE
    shelf.use("d")
    assert shelf.ready() == ["a", "c", "d"]
    shelf.use("c", "e")
    assert shelf.ready() == ["c", "d", "e"]
    assert shelf.closed == ["b", "a"]
    assert shelf.state("b").state == "unloaded" and shelf.state("b").memory_bytes == 0
    shelf.use("b")
    assert shelf.state("b").loads == 2 and shelf.engine.used_bytes <= 30 * MEGABYTE


def test_as_many_go_as_the_new_one_needs(shelf: Shelf) -> None:
    shelf.sizes_mb["large"] = 20
    shelf.use("a", "b", "c", "large")
    assert shelf.ready() == ["c", "large"] and shelf.closed == ["a", "b"]


def test_a_pinned_model_stays_until_it_is_unpinned(shelf: Shelf) -> None:
    shelf.engine.load(key("a"), pin=True)
    shelf.use("b", "c", "d")
    assert shelf.ready() == ["a", "c", "d"] and shelf.state("a").pinned
    shelf.engine.unpin(key("a"))
    shelf.use("e")
    assert shelf.ready() == ["c", "d", "e"]


def test_loading_a_ready_model_with_a_pin_pins_it(shelf: Shelf) -> None:
    shelf.use("a")
    shelf.engine.load(key("a"), pin=True)
    shelf.use("b", "c", "d")
    assert "a" in shelf.ready() and shelf.opened.count("a") == 1


def test_unload_takes_the_pin_too(shelf: Shelf) -> None:
    shelf.engine.load(key("a"), pin=True)
    assert shelf.engine.unload(key("a")) is True
    assert not shelf.state("a").pinned and shelf.state("a").state == "unloaded"
    assert shelf.engine.unload(key("a")) is False
    shelf.broken["b"] = BadModelFile("no graph")
    with pytest.raises(BadModelFile):
        shelf.engine.load(key("b"), pin=True)
    assert shelf.engine.unload(key("b")) is False
    assert not shelf.state("b").pinned and shelf.state("b").state == "unloaded"


def test_unload_during_a_load_wins(shelf: Shelf) -> None:
    shelf.slow.clear()
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(shelf.engine.load, key("a"), pin=True)
        eventually(lambda: shelf.opened == ["a"])
        unloading = pool.submit(shelf.engine.unload, key("a"))
        time.sleep(0.05)
        assert not unloading.done()
        shelf.slow.set()
        loading.result(20)
        assert unloading.result(20) is True
    assert shelf.ready() == [] and shelf.closed == ["a"]


def test_a_model_in_use_is_not_evicted(shelf: Shelf) -> None:
    with shelf.engine.using(key("a")) as a, shelf.engine.using(key("b")):
        shelf.use("c", "d")
        assert shelf.ready() == ["a", "b", "d"] and shelf.closed == ["c"]
        assert a.run(BATCH).shape == (1, 4)
    shelf.use("e")
    assert shelf.ready() == ["b", "d", "e"]


def test_unloaded_while_in_use_it_closes_after_the_last_lease(shelf: Shelf) -> None:
    first, second = shelf.engine.lease(key("a")), shelf.engine.lease(key("a"))
    assert shelf.engine.unload(key("a")) is True
    assert (shelf.state("a").state, shelf.engine.used_bytes, shelf.closed) == ("unloaded", 0, [])
    shelf.engine.release(first)
    assert second.run(BATCH).shape == (1, 4) and shelf.closed == []
    # Meanwhile it may be loaded anew; the old leases do not count for the new one.
    third = shelf.engine.lease(key("a"))
    assert third is not second and shelf.closed == []
    shelf.engine.release(second)
    assert shelf.closed == ["a"]
    with pytest.raises(AttributeError):
        second.run(BATCH)
    assert third.run(BATCH).shape == (1, 4)
    shelf.engine.release(third)
    assert shelf.engine.unload(key("a")) and shelf.closed == ["a", "a"]


def test_a_shared_lease_is_one_more(shelf: Shelf) -> None:
    first = shelf.engine.lease(key("a"))
    for _ in range(3):
        shelf.engine.share(first)
    shelf.engine.release(first)
    shelf.use("b", "c", "d")
    assert "a" in shelf.ready() and shelf.closed == ["b"]  # three are left
    for _ in range(3):
        assert shelf.closed.count("a") == 0
        shelf.engine.release(first)
    assert shelf.closed == ["b"]  # idle, not gone
    shelf.use("e")
    assert shelf.closed == ["b", "a"]


def test_a_lease_is_shared_after_the_unload_too(shelf: Shelf) -> None:
    first = shelf.engine.lease(key("a"))
    shelf.engine.share(first)
    assert shelf.engine.unload(key("a"))
    shelf.engine.share(first)
    assert first.users_left == 3
    shelf.use("a")  # a new one, whose leases are its own
    second = shelf.engine.lease(key("a"))
    assert second is not first
    for left in (2, 1):
        shelf.engine.release(first)
        assert first.users_left == left and shelf.closed == []
    assert first.run(BATCH).shape == (1, 4)
    shelf.engine.release(first)
    assert shelf.closed == ["a"]
    shelf.engine.share(second)
    shelf.engine.release(second)
    assert shelf.engine.unload(key("a")) and shelf.closed == ["a"]
    shelf.engine.release(second)
    assert shelf.closed == ["a", "a"]


def test_a_model_is_closed_once_and_not_shared_after(shelf: Shelf) -> None:
    first = shelf.engine.lease(key("a"))
    assert shelf.engine.unload(key("a"))
    shelf.engine.release(first)
    assert shelf.closed == ["a"]
    with pytest.raises(Unavailable, match="a version 1 was unloaded meanwhile"):
        shelf.engine.share(first)
    shelf.engine._close(first)
    assert shelf.closed == ["a"]


def test_sharing_from_many_threads_loses_no_lease(shelf: Shelf) -> None:
    first = shelf.engine.lease(key("a"))

    def borrow(_: int) -> None:
        for _ in range(200):
            shelf.engine.share(first)
            shelf.engine.release(first)

    with ThreadPoolExecutor(8) as pool:
        borrowers = [pool.submit(borrow, n) for n in range(8)]
        assert shelf.engine.unload(key("a"))
        for borrower in borrowers:
            borrower.result(20)
    assert (first.users_left, shelf.closed) == (1, [])
    shelf.engine.release(first)
    assert shelf.closed == ["a"]


def test_a_forgotten_model_is_not_listed(shelf: Shelf) -> None:
    shelf.use("a", "b")
    shelf.engine.forget(key("a"))
    assert [s.key.name for s in shelf.engine.states()] == ["b"] and shelf.closed == ["a"]


def test_a_failed_load_says_why_and_is_not_repeated_at_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.broken["a"] = BadModelFile("the graph has no output")
    with pytest.raises(BadModelFile, match="the graph has no output"):
        shelf.engine.lease(key("a"))
    assert shelf.state("a") == ModelState(key("a"), "failed", reason="the graph has no output")
    for _ in range(3):
        with pytest.raises(Unavailable, match="a version 1 could not be loaded: the graph has no output") as refused:
            shelf.engine.lease(key("a"))
        assert refused.value.retry_after_s == 5
    assert shelf.opened == ["a"]
    del shelf.broken["a"]
    with pytest.raises(Unavailable):  # mended, but within the five seconds
        shelf.use("a")
    monkeypatch.setattr(Engine, "RETRY_FAILED_S", 0.0)
    shelf.use("a")
    assert shelf.ready() == ["a"] and shelf.state("a").reason == ""


def test_who_asks_to_load_by_name_need_not_wait(shelf: Shelf) -> None:
    shelf.broken["a"] = shelf.broken["b"] = BadModelFile("broken")
    for name in ("a", "b"):
        with pytest.raises(BadModelFile):
            shelf.use(name)
    shelf.broken.clear()
    shelf.engine.load(key("a"), pin=True)
    assert shelf.engine.unload(key("b")) is False  # forgets the failure
    shelf.use("b")
    assert shelf.ready() == ["a", "b"]


def test_those_who_wait_for_a_load_that_fails_hear_why(shelf: Shelf) -> None:
    shelf.broken["a"] = BadModelFile("broken graph")
    shelf.slow.clear()
    with ThreadPoolExecutor(4) as pool:
        asks = [pool.submit(shelf.engine.lease, key("a")) for _ in range(4)]
        eventually(lambda: shelf.opened == ["a"])
        time.sleep(0.02)
        shelf.slow.set()
        errors = [request.exception(20) for request in asks]
    assert all(isinstance(e, Refusal) and "broken graph" in e.message for e in errors)
    assert sum(isinstance(e, BadModelFile) for e in errors) == 1 and shelf.opened == ["a"]


def test_an_error_that_is_no_refusal_keeps_its_text_to_itself(shelf: Shelf) -> None:
    shelf.broken["a"] = RuntimeError("/secret/path")
    with pytest.raises(RuntimeError):
        shelf.engine.lease(key("a"))
    assert shelf.state("a").reason == "internal error"
    with pytest.raises(Unavailable, match=r"could not be loaded: internal error$"):
        shelf.engine.lease(key("a"))


def test_a_model_that_is_disabled_while_it_loads_holds_nobody_up(shelf: Shelf) -> None:
    """Who began the load and those who wait are refused, and others are loaded, though it goes on."""
    shelf.slow.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shelf.engine.load, key("a"))
        eventually(lambda: shelf.opened == ["a"])
        waiting = pool.submit(shelf.engine.lease, key("a"))
        shelf.engine.disable(key("a"), "it took too long")
        for one in (first, waiting):
            with pytest.raises(ModelDisabled, match="a version 1 is disabled: it took too long"):
                one.result(15)  # its load would give up after 20 s
        assert not shelf.slow.is_set() and shelf.closed == []
        other = pool.submit(shelf.engine.load, key("b"))
        shelf.engine.pass_on(shelf.openers[0])
        eventually(lambda: shelf.opened == ["a", "b"])
        shelf.slow.set()
        other.result(20)
    eventually(lambda: "a" in shelf.closed)
    assert shelf.ready() == ["b"]
    assert shelf.state("a").state == "failed" and shelf.state("a").reason == "it took too long"
    with pytest.raises(ModelDisabled):
        shelf.engine.load(key("a"), pin=True)
    shelf.engine.enable(key("a"))
    assert shelf.state("a").state == "unloaded"
    shelf.engine.load(key("a"))
    assert shelf.ready() == ["a", "b"]


def test_a_model_that_is_disabled_is_closed_by_its_last_lease(shelf: Shelf) -> None:
    loaded = shelf.engine.lease(key("a"))
    shelf.engine.disable(key("a"), "too long")
    assert shelf.engine.try_lease(key("a")) is None and shelf.closed == []
    shelf.engine.release(loaded)
    assert shelf.closed == ["a"] and shelf.engine.is_disabled(key("a"))
    shelf.engine.enable(key("never loaded"))
    shelf.engine.disable(key("b"), "another process said so")
    assert shelf.state("b").state == "failed"
