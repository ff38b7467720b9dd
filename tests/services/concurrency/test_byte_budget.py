"""The byte budget: what requests hold together, one that is alone, and that all is given back."""

from __future__ import annotations

import pytest

from ekiben.errors import Overloaded
from services.concurrency.byte_budget import ByteBudget


def test_requests_hold_at_most_the_bound_together() -> None:
    budget = ByteBudget(100)
    with budget.lease(60) as first, budget.lease(40) as second:
        assert (budget.held, first.held, second.held) == (100, 60, 40)
        with pytest.raises(Overloaded):
            second.take(1)
        first.give_back(10)
        second.take(10)
        assert (budget.held, second.held) == (100, 50)
        with pytest.raises(Overloaded), budget.lease(1):
            pass
    assert budget.held == 0


def test_a_request_that_is_alone_may_be_larger_but_not_when_unpacked() -> None:
    budget = ByteBudget(100)
    with budget.lease(150) as lease:
        lease.take(50)
        with pytest.raises(Overloaded):
            lease.take(1, always_alone=False)
        with pytest.raises(Overloaded), budget.lease(1):
            pass
        assert (budget.held, lease.held) == (200, 200)
    assert budget.held == 0


def test_what_fails_gives_back() -> None:
    budget = ByteBudget(100)
    with pytest.raises(ValueError, match="broken"), budget.lease(80):
        raise ValueError("broken")
    assert budget.held == 0
