from __future__ import annotations

from services.concurrency.restart_delay import DELAYS_S, STEADY_S, RestartDelay


def test_each_end_in_a_row_waits_longer_and_a_steady_process_starts_anew() -> None:
    now = [1000.0]
    delay = RestartDelay(lambda: now[0])
    assert delay.is_due()
    for wait_s in (*DELAYS_S, DELAYS_S[-1]):
        assert delay.ended(1.0) == wait_s
        now[0] += wait_s - 0.01
        assert not delay.is_due()
        now[0] += 0.02
        assert delay.is_due()
    assert delay.ended(STEADY_S + 1) == DELAYS_S[0]


def test_a_start_that_fails_waits_as_long_again() -> None:
    now = [1000.0]
    delay = RestartDelay(lambda: now[0])
    delay.not_started()
    assert delay.is_due()  # nothing has failed yet
    delay.ended(1.0)
    now[0] += DELAYS_S[0] + 0.01
    delay.not_started()
    assert not delay.is_due()
