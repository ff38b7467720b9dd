"""Callers who leave or run out of time, and unloading while a graph runs."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from ekiben.errors import DeadlineExceeded
from models.inference_requests import MaskRequest, MaskResponse
from models.model_key import ModelKey
from tests import toy_sam
from tests.services.runners.sam.served import CLICK, IMAGE, SAM, Run, Served, encoded
from tests.waiting import async_eventually

# ---- who leaves ----


def test_one_of_several_leaves_and_the_others_are_answered(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        callers = [asyncio.create_task(served.masks(CLICK)) for _ in range(4)]
        await served.in_a_graph()
        callers[0].cancel()  # the one who began
        callers[2].cancel()
        await asyncio.sleep(0.02)
        served.encode_gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [isinstance(answer, MaskResponse) for answer in answers] == [False, True, False, True]
        assert served.encoded == 1 and served.decoded == 2

    run(main)


def test_the_only_caller_leaves_before_its_turn(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        first = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        other = encoded(toy_sam.shapes(100, 100))
        second = asyncio.create_task(served.masks(image=other))
        await async_eventually(lambda: served.runner.sam.depth(SAM) == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        served.encode_gate.set()
        await first
        await async_eventually(lambda: served.users == 0)
        assert served.encoded == 1  # that of the first
        assert not (await served.masks(image=other)).embedding.cached

    run(main)


def test_the_only_caller_leaves_while_it_is_encoded(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        caller = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        served.encode_gate.set()
        await async_eventually(lambda: served.users == 0)
        # It was made; it would be a pity to throw it away.
        assert (await served.masks(CLICK)).embedding.cached and (served.encoded, served.decoded) == (1, 1)

    run(main)


def test_who_has_more_time_is_not_bound_by_who_has_less(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        hasty = asyncio.create_task(served.masks(CLICK, timeout_s=1))
        await served.in_a_graph()
        patient = asyncio.create_task(served.masks(CLICK))
        with pytest.raises(DeadlineExceeded):
            await hasty
        await asyncio.sleep(0.02)
        assert not patient.done()
        served.encode_gate.set()
        assert len((await patient).results) == 1
        assert served.encoded == 1  # the first run's embedding is found by the second

    run(main)


def test_who_has_less_time_does_not_wait_for_who_has_more(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        patient = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await served.masks(CLICK, timeout_s=0.1)
        assert time.monotonic() - started < 10 and not patient.done()
        served.encode_gate.set()
        assert len((await patient).results) == 1 and served.encoded == 1

    run(main)


def test_a_grid_that_is_cancelled_computes_no_more(run: Run) -> None:
    async def main(served: Served) -> None:
        served.decode_gate.clear()
        caller = asyncio.create_task(served.auto(32))
        await served.in_a_graph()
        await served.in_a_graph()
        await served.in_a_graph()  # the encoder and both slots
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        served.decode_gate.set()
        await async_eventually(lambda: served.users == 0)
        assert served.decoded == 2 and served.prompts == 8
        await asyncio.sleep(0.05)
        assert served.decoded == 2

    run(main)


def test_a_grid_that_is_late_computes_no_more(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        served.decode_gate.clear()
        with pytest.raises(DeadlineExceeded):
            await served.auto(32, timeout_s=1)
        before = served.decoded
        assert before == 3  # that of the click and one in each slot
        served.decode_gate.set()
        await async_eventually(lambda: served.users == 0)
        await asyncio.sleep(0.05)
        assert served.decoded == before

    run(main)


def test_a_deadline_at_any_time_is_a_deadline(run: Run) -> None:
    """Not a server that is overloaded: nobody else asks it anything."""

    async def main(served: Served) -> None:
        await served.auto(16)  # what a run costs has been learned
        for timeout_s in np.linspace(0.01, 0.06, 40):
            with pytest.raises(DeadlineExceeded):
                await served.auto(64, timeout_s=float(timeout_s))
        await async_eventually(lambda: served.users == 0)

    run(main)


def test_a_click_does_not_wait_for_a_grid(run: Run) -> None:
    async def main(served: Served) -> None:
        grid = asyncio.create_task(served.auto(64))
        await async_eventually(lambda: served.decoded > 20)
        await served.masks(CLICK)
        assert not grid.done() and served.decoded < 900
        grid.cancel()
        await asyncio.gather(grid, return_exceptions=True)

    run(main)


# ---- unloading ----


def test_unloading_lets_a_grid_finish_and_leaves_nothing(run: Run) -> None:
    async def main(served: Served) -> None:
        whole = await served.auto(16)
        cache = served.runner.sam.cache
        assert len(cache) == 1 and cache.used_bytes > 0
        served.decode_gate.clear()
        grid = asyncio.create_task(served.auto(16, crop_n_layers=0))
        click = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        assert await served.runner.unload(SAM) is True
        assert served.closed == [] and served.runner.engine.try_lease(SAM) is None
        served.decode_gate.set()
        assert [mask.rle for mask in (await grid).masks] == [mask.rle for mask in whole.masks]
        assert len((await click).results) == 1
        await async_eventually(lambda: len(served.closed) == 1)
        sam = served.closed[0]
        assert (sam.detached, sam.users_left) == (True, 0)
        assert (len(cache), cache.used_bytes, served.runner.sam._open) == (0, 0, {})
        await asyncio.sleep(0.05)
        assert len(served.closed) == 1

    run(main)


def test_who_asks_a_model_that_was_loaded_again_is_not_served_by_the_old_one(run: Run) -> None:
    async def main(served: Served) -> None:
        budget = served.runner.memory
        large = encoded(toy_sam.shapes(4000, 2000))
        async with budget.lease(budget.max_bytes, time.monotonic() + 20):  # who comes first waits for memory
            first = asyncio.create_task(served.masks(CLICK, image=large))
            await async_eventually(lambda: bool(budget._large._waiting or budget._small._waiting))
            assert await served.runner.unload(SAM)
            await served.load()
            second = asyncio.create_task(served.masks(CLICK, image=large))
            await async_eventually(lambda: served.users == 1)
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await async_eventually(lambda: len(served.closed) == 1)
        assert len((await second).results) == 1
        await async_eventually(lambda: served.users == 0 and budget.held == 0)

    run(main)


def test_unloading_during_the_encoder_leaves_no_embedding(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        callers = [asyncio.create_task(served.masks(CLICK)) for _ in range(3)]
        await served.in_a_graph()
        assert await served.runner.unload(SAM)
        callers[0].cancel()
        await asyncio.sleep(0.01)
        served.encode_gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [isinstance(answer, MaskResponse) for answer in answers] == [False, True, True]
        await async_eventually(lambda: len(served.closed) == 1)
        assert served.runner.sam.cache.used_bytes == 0

    run(main)


def test_loaded_again_while_the_old_one_is_still_used(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        served.decode_gate.clear()
        old = asyncio.create_task(served.auto(8))
        await served.in_a_graph()
        await served.in_a_graph()
        assert await served.runner.unload(SAM)
        sam = await served.load()
        assert not sam.detached
        new = asyncio.create_task(served.masks(CLICK))
        await asyncio.sleep(0.02)
        served.decode_gate.set()
        assert len((await new).results) == 1 and len((await old).masks) > 0
        await async_eventually(lambda: len(served.closed) == 1)
        assert served.closed[0] is not sam
        assert len((await served.masks(CLICK)).results) == 1  # its queues are its own
        assert await served.runner.unload(SAM)
        await async_eventually(lambda: len(served.closed) == 2)
        assert served.runner.sam.cache.used_bytes == 0 and served.runner.sam._open == {}

    run(main)


def test_an_unload_takes_no_other_model_s_embeddings(run: Run) -> None:
    async def main(served: Served) -> None:
        other = ModelKey("local", "sam_toy", 2)
        await served.runner.load(other)
        late = time.monotonic() + 20
        await served.masks(CLICK)
        await served.runner.masks(other, MaskRequest(IMAGE, (CLICK,)), late)
        assert len(served.runner.sam.cache) == 2
        assert await served.runner.unload(SAM)
        assert len(served.runner.sam.cache) == 1
        answer, _ = await served.runner.masks(other, MaskRequest(IMAGE, (CLICK,)), late)
        assert answer.embedding.cached

    run(main)
