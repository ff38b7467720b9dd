"""Retries while something is unavailable: which errors are retried, how often, and with which waits."""

from __future__ import annotations

import asyncio

import pytest

from ekiben.errors import Conflict, Refusal, Unavailable
from services.concurrency.retry import retry_while_unavailable


def attempt(*errors: Refusal) -> tuple[object, list[float], int]:
    """What comes of work that raises ``errors``, one a call, and then returns "done"; the waits; the calls."""
    left, waits, calls = list(errors), list[float](), 0

    async def work() -> str:
        nonlocal calls
        calls += 1
        if left:
            raise left.pop(0)
        return "done"

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    try:
        outcome: object = asyncio.run(retry_while_unavailable(work, sleep))
    except Refusal as error:
        outcome = error
    return outcome, waits, calls


def test_no_error_is_no_wait() -> None:
    assert attempt() == ("done", [], 1)


def test_work_is_repeated_until_it_succeeds() -> None:
    assert attempt(*[Unavailable("away")] * 3) == ("done", [0.5, 1, 2], 4)


def test_the_eighth_error_is_raised() -> None:
    errors = [Unavailable(f"call {number}") for number in range(1, 9)]
    assert attempt(*errors) == (errors[-1], [0.5, 1, 2, 4, 8, 16, 32], 8)


@pytest.mark.parametrize("after", [0, 2])
def test_another_error_is_raised_at_once(after: int) -> None:
    error = Conflict("taken")
    assert attempt(*[Unavailable("away")] * after, error) == (error, [0.5, 1][:after], after + 1)
