"""Group commit: everything stored, together where possible, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlmodel import Session, select

from db import group_commit as writers
from db.group_commit import GroupCommit
from db.records import Records
from db.tables import Image
from ekiben.errors import Overloaded, Unavailable
from tests.db import rows
from tests.db.group_commit.units import counts, locked, unit
from tests.waiting import eventually


def test_200_units_from_8_threads(engine: sa.Engine, records: Records, commits: list[sa.Connection]) -> None:
    def save(n: int) -> list[Future[None]]:
        return [records.save(unit(filename=f"{n}-{m}.jpg")) for m in range(25)]

    with ThreadPoolExecutor(8) as pool:
        for futures in pool.map(save, range(8)):
            for future in futures:
                assert future.result(20) is None
    assert counts(engine) == [200, 200, 200]
    with Session(engine) as session:
        assert set(session.exec(select(Image.filename))) == {f"{n}-{m}.jpg" for n in range(8) for m in range(25)}
    assert 1 <= len(commits) <= 100  # many units share a commit


def test_order_of_rows_does_not_matter(engine: sa.Engine, records: Records) -> None:
    records.save(unit()[::-1]).result(10)
    assert counts(engine) == [1, 1, 1]


def test_a_later_unit_may_refer_to_an_earlier_one(engine: sa.Engine, records: Records) -> None:
    image = rows.image(kept=True)
    futures = [records.save([image]), *(records.save([rows.prediction(image.id)]) for _ in range(20))]
    for future in futures:
        future.result(10)
    assert counts(engine) == [1, 20, 0]


def test_save_does_not_wait_for_the_database(engine: sa.Engine, records: Records) -> None:
    with locked(engine):
        futures = [records.save(unit()) for _ in range(100)]  # all return while the database is locked
        assert not any(future.done() for future in futures)
    for future in futures:
        future.result(10)


def test_backlog_is_bounded(engine: sa.Engine, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "MAX_BACKLOG", 5)
    accepted = []
    with locked(engine):
        with pytest.raises(Overloaded) as refused:
            for _ in range(100):
                accepted.append(records.save(unit()))
                time.sleep(0.002)  # the writer takes the first at once and then hangs on the lock
        assert refused.value.retry_after_s == 1
        assert 5 <= len(accepted) < 100
    for future in accepted:
        future.result(10)
    assert counts(engine)[0] == len(accepted)


def test_cancelled_before_its_turn_is_not_stored(engine: sa.Engine, records: Records) -> None:
    with locked(engine):
        first = records.save(unit())
        eventually(first.running)
        second = records.save(unit())
        assert not first.cancel() and second.cancel()
    first.result(10)
    records.close()
    assert counts(engine)[0] == 1


def test_close_stores_what_waits(engine: sa.Engine) -> None:
    records = Records(engine)
    futures = [records.save(unit()) for _ in range(50)]
    records.close()
    assert [future.result(0) for future in futures] == [None] * 50
    assert counts(engine)[0] == 50
    with pytest.raises(Unavailable):
        records.save(unit())
    records.close()


def test_close_gives_up_in_time(engine: sa.Engine) -> None:
    writer = GroupCommit(engine)
    with locked(engine):
        eventually(writer.save(unit()).running)
        waiting = writer.save(unit())
        writer.close(timeout_s=0.2)
        with pytest.raises(Unavailable):
            waiting.result(0)


def test_nothing_to_store(records: Records) -> None:
    assert records.save([]).result(10) is None


def test_its_thread_can_be_started_before_the_first_unit(engine: sa.Engine) -> None:
    def threads() -> list[int]:
        return [thread.ident or 0 for thread in threading.enumerate() if thread.name == "records-writer"]

    before = set(threads())
    writer = GroupCommit(engine)
    writer.start()
    writer.start()
    (own,) = set(threads()) - before
    writer.save(unit()).result(10)
    assert set(threads()) - before == {own}
    writer.close()
    assert own not in threads()
