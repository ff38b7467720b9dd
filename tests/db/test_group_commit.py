"""Group commit: everything stored, together where possible, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db import group_commit as writers
from db import job_states
from db import session as sessions
from db.group_commit import GroupCommit
from db.job_states import ClaimedItem, ItemResult
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Artifact, Image, JobItem, Prediction
from ekiben.errors import Conflict, Overloaded, Unavailable
from tests.db import rows
from tests.db.job_rows import change, claimed, items_now, job_now, states_now, submitted
from tests.servers import postgres


def unit(**given: Any) -> list[Any]:
    """An image, a prediction about it, and its mask."""
    image = rows.image(**given)
    prediction = rows.prediction(image.id)
    return [image, prediction, rows.artifact(prediction.id)]


def counts(engine: sa.Engine) -> list[int]:
    with Session(engine) as session:
        return [session.exec(select(func.count()).select_from(table)).one() for table in (Image, Prediction, Artifact)]


@contextmanager
def locked(engine: sa.Engine) -> Iterator[None]:
    """Nobody else can write to images meanwhile."""
    with engine.execution_options(immediate=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE images IN ACCESS EXCLUSIVE MODE")
        else:
            connection.exec_driver_sql("SELECT 1")
        yield


@pytest.fixture
def commits(engine: sa.Engine) -> list[sa.Connection]:
    """One entry for each commit."""
    seen: list[sa.Connection] = []
    sa.event.listen(engine, "commit", seen.append)
    return seen


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


def test_bad_units_fail_alone_and_whole(engine: sa.Engine, records: Records) -> None:
    records.save([rows.image(id="there")]).result(10)
    bad: dict[str, list[Any]] = {
        "duplicate": [rows.image(), rows.image(id="there")],
        "orphan": [rows.image(), rows.prediction("nowhere")],
        "check": [rows.image(id="c"), rows.prediction("c", status="perhaps")],
        "naive": [rows.image(), rows.image(created_at=datetime(2026, 11, 20))],
        "json": [rows.image(id="j"), rows.prediction("j", result={"a": object()})],
    }
    with locked(engine):  # so that all of them meet in one group
        futures = [records.save(unit()) for _ in range(20)]
        failing = {name: records.save(rows_) for name, rows_ in bad.items()}
        futures += [records.save(unit()) for _ in range(20)]
        time.sleep(0.1)
    for future in futures:
        future.result(20)
    errors = {name: future.exception(20) for name, future in failing.items()}
    assert isinstance(errors["duplicate"], Conflict) and "exist already" in errors["duplicate"].message
    assert isinstance(errors["orphan"], Conflict) and "gone" in errors["orphan"].message
    assert isinstance(errors["check"], sa.exc.IntegrityError)
    assert isinstance(errors["naive"], sa.exc.StatementError)
    assert isinstance(errors["json"], sa.exc.StatementError)
    assert counts(engine) == [41, 40, 40]  # of the bad units nothing, not even their good rows


def test_save_does_not_wait_for_the_database(engine: sa.Engine, records: Records) -> None:
    with locked(engine):
        began = time.perf_counter()
        futures = [records.save(unit()) for _ in range(100)]
        assert time.perf_counter() - began < 1
        time.sleep(0.05)
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
        time.sleep(0.1)
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
        writer.save(unit())
        time.sleep(0.1)
        waiting = writer.save(unit())
        writer.close(timeout_s=0.2)
        with pytest.raises(Unavailable):
            waiting.result(0)


def test_nothing_to_store(records: Records) -> None:
    assert records.save([]).result(10) is None


def claimed_items(engine: sa.Engine, total: int, **given: Any) -> list[ClaimedItem]:
    """The items of a new job, in the hand of worker-1."""
    return claimed(engine, submitted(engine, total, **given), "worker-1")


def ends(item: ClaimedItem, worker_id: str = "worker-1", **given: Any) -> ItemResult:
    return ItemResult(item.job_id, item.id, worker_id, **given)


def test_the_end_of_an_item_comes_after_the_rows_in_their_transaction(
    engine: sa.Engine, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, alone, lost, broken = claimed_items(engine, 4)
    seen: list[int] = []

    def settle(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
        seen.append(db.execute(sa.select(func.count()).select_from(Artifact)).scalar_one())
        job_states.finish_items(db, settlings)
        if any(one.item_id == broken.id for one in settlings):
            raise fault

    monkeypatch.setattr(writers, "finish_items", settle)
    fault = ValueError("a fault of ours")
    records.save(unit(), ends(good)).result(10)
    records.save([], ends(alone, error={"code": "bad_image", "message": "none"})).result(10)
    error = records.save(unit(), ends(lost, "worker-2")).exception(10)
    assert isinstance(error, Conflict) and error.code == "item_lost"
    assert records.save(unit(), ends(broken)).exception(10) is fault
    assert seen == [1, 1, 2, 2]  # the rows of each unit were there, and went with it
    assert counts(engine) == [1, 1, 1]
    assert states_now(engine, good.job_id) == ["succeeded", "failed", "running", "running"]


def test_lost_ones_of_a_group_fail_alone(engine: sa.Engine, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 units in one group, each the end of an item, of three jobs; two of the items are in another's hand by now."""
    items = [item for total in (7, 6, 7) for item in claimed_items(engine, total)]
    sizes: list[int] = []

    def settle(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
        sizes.append(len(settlings))
        job_states.finish_items(db, settlings)

    monkeypatch.setattr(writers, "finish_items", settle)
    for n in (3, 11):
        change(engine, JobItem, items[n].id, worker_id="worker-2")
    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)  # the writer hangs on this one; the rest meet in the group after it
        futures = []
        for item in items:
            image = rows.image()
            prediction = rows.prediction(image.id, id=item.id, job_id=item.job_id)
            futures.append(records.save([image, prediction, rows.artifact(item.id)], ends(item, image_id=image.id)))
    first.result(10)
    errors = {n: error for n, future in enumerate(futures) if (error := future.exception(20)) is not None}
    assert set(errors) == {3, 11}
    assert all(isinstance(error, Conflict) and error.code == "item_lost" for error in errors.values())
    assert sizes[0] == 20 and len(sizes) < 20  # together first, then by halves: not each for itself
    assert counts(engine) == [19, 19, 19]
    good = {item.id for n, item in enumerate(items) if n not in errors}
    with Session(engine) as session:
        assert set(session.exec(select(Prediction.id).where(col(Prediction.job_id).is_not(None)))) == good
        assert set(session.exec(select(JobItem.id).where(JobItem.state == "succeeded"))) == good
    found = [job_now(engine, job_id) for job_id in dict.fromkeys(item.job_id for item in items)]
    assert [(job.state, job.succeeded) for job in found] == [("running", 6), ("running", 5), ("succeeded", 7)]
    for n in errors:
        assert items_now(engine, items[n].job_id)[items[n].position].worker_id == "worker-2"


def test_an_item_that_ends_twice_in_a_group_ends_once(engine: sa.Engine, records: Records) -> None:
    one, two = claimed_items(engine, 2)
    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)
        futures = [records.save(unit(), ends(item)) for item in (one, two, one)]
    first.result(10)
    errors = [future.exception(20) for future in futures]
    assert errors[:2] == [None, None] and isinstance(errors[2], Conflict) and errors[2].code == "item_lost"
    assert counts(engine) == [3, 3, 3]
    over = job_now(engine, one.job_id)
    assert (over.state, over.succeeded, over.failed) == ("succeeded", 2, 0)


def test_jobs_of_a_group_come_in_one_order(engine: sa.Engine, records: Records) -> None:
    """Two processes that lock the rows of several jobs must not do it in opposite orders, nor insert before that:
    whoever removes a job locks it first, and then what it made."""
    entries = {job_id: claimed_items(engine, 2, id=job_id) for job_id in "abc"}
    order: list[str] = []

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.startswith("SELECT jobs.id"):
            order.extend(parameters.values() if isinstance(parameters, dict) else parameters)
        elif statement.startswith("INSERT INTO images"):
            order.append("rows")

    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)
        futures = [records.save(unit(), ends(entries[job_id].pop())) for job_id in "cabac"]
        sa.event.listen(engine, "before_cursor_execute", before)
    for future in (first, *futures):
        future.result(10)
    group = order[order.index("a") :]  # without the first unit, which may have come to its rows only now
    assert group[:4] == ["a", "b", "c", "rows"]
    assert group[4:] == sorted(group[4:]) and set(group[4:]) == {"a", "b", "c"}
    assert [job_now(engine, job_id).succeeded for job_id in "abc"] == [2, 1, 2]


# ---- units that wait for company ----


@pytest.fixture
def lingering(engine: sa.Engine) -> Iterator[Callable[..., GroupCommit]]:
    """Writers whose units wait; ``more``: whether more is to come."""
    made: list[GroupCommit] = []

    def make(seconds: float, more: Callable[[], bool] = lambda: True) -> GroupCommit:
        made.append(GroupCommit(engine))
        made[-1].delay(seconds, more)
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def test_units_gather(engine: sa.Engine, lingering: Callable[..., GroupCommit], commits: list[sa.Connection]) -> None:
    writer = lingering(0.4)
    began = time.monotonic()
    futures = []
    for _ in range(5):
        futures.append(writer.save(unit()))
        time.sleep(0.02)
    assert time.monotonic() - began < 0.35, "this machine is too busy for this test"
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    for future in futures:
        future.result(10)
    assert 0.4 <= time.monotonic() - began < 5  # that of the first, not of the last
    assert len(commits) == 1
    writer.save(unit()).result(10)  # who came too late for them has a transaction of its own
    assert len(commits) == 2
    assert counts(engine) == [6, 6, 6]


def test_nobody_lingers_when_no_more_is_to_come(
    lingering: Callable[..., GroupCommit], commits: list[sa.Connection]
) -> None:
    more = threading.Event()
    more.set()
    writer = lingering(30, more.is_set)
    futures = [writer.save(unit()) for _ in range(3)]
    time.sleep(0.1)
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    more.clear()
    for future in futures:
        future.result(10)
    assert len(commits) == 1
    writer.save(unit()).result(10)
    assert len(commits) == 2


def test_enough_company_ends_the_wait(lingering: Callable[..., GroupCommit], commits: list[sa.Connection]) -> None:
    writer = lingering(30)
    futures = [writer.save(unit()) for _ in range(writers.GROUP_AT - 1)]
    time.sleep(0.1)
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    futures.append(writer.save(unit()))
    for future in futures:
        future.result(10)
    assert len(commits) == 1


def test_close_ends_the_wait(
    engine: sa.Engine, lingering: Callable[..., GroupCommit], commits: list[sa.Connection]
) -> None:
    writer = lingering(30)
    futures = [writer.save(unit()) for _ in range(3)]
    time.sleep(0.1)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 5
    assert [future.result(0) for future in futures] == [None] * 3
    assert len(commits) == 1
    assert counts(engine) == [3, 3, 3]


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


def test_a_locked_sqlite_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BUSY_MS", 200)
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    engine = connect(url)
    records = Records(engine)
    with locked(engine):
        futures = [records.save(unit()) for _ in range(10)]
        began = time.monotonic()
        for future in futures:
            assert isinstance(future.exception(20), Unavailable)
        assert time.monotonic() - began < 5
    records.save(unit()).result(10)
    assert counts(engine) == [1, 1, 1]
    records.close()
    engine.dispose()


def test_database_killed_under_load() -> None:
    """PostgreSQL really stops: whoever waits is told within 5 s, what was confirmed is there after the restart."""
    with postgres() as server:
        if server.stop is None or server.start is None:
            pytest.skip("the PostgreSQL of EKIBEN_TEST_PG_URL is not ours to stop")
        migrate(server.url)
        engine = connect(server.url)
        records = Records(engine)
        confirmed: list[str] = []
        refused: list[float] = []
        stop = threading.Event()

        def save() -> None:
            while not stop.is_set():
                rows_ = unit()
                began = time.monotonic()
                error = records.save(rows_).exception(30)
                if error is None:
                    confirmed.append(rows_[0].id)
                else:
                    assert isinstance(error, Unavailable), error
                    refused.append(time.monotonic() - began)
                    time.sleep(0.05)

        with ThreadPoolExecutor(4) as pool:
            savers = [pool.submit(save) for _ in range(4)]
            time.sleep(0.5)
            server.stop()
            time.sleep(1)
            server.start()
            time.sleep(0.5)
            stop.set()
            for saver in savers:
                saver.result(30)
        records.save(unit()).result(10)
        assert refused and max(refused) < 5
        with Session(engine) as session:
            there = set(session.exec(select(Image.id).where(col(Image.id).in_(confirmed))))
        assert len(confirmed) > 10 and there == set(confirmed)
        records.close()
        engine.dispose()


SAVER = """
import sys
from db.records import Records
from db.session import connect
from tests.db import rows
records = Records(connect(sys.argv[1]))
while True:
    image = rows.image()
    records.save([image, rows.prediction(image.id)]).result()
    print(image.id, flush=True)
"""


def test_what_was_confirmed_survives_kill_9(database_url: str) -> None:
    root = Path(writers.__file__).parents[1]
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, database_url], cwd=root, env={**os.environ}, stdout=subprocess.PIPE, text=True
    )
    if saver.stdout is None:
        raise RuntimeError("no pipe")
    confirmed = [saver.stdout.readline().strip() for _ in range(20)]
    saver.send_signal(signal.SIGKILL)
    confirmed += saver.communicate()[0].split()
    engine = connect(database_url)
    with Session(engine) as session:
        there = set(session.exec(select(Image.id)))
        pairs = session.exec(select(Prediction.image_id)).all()
    engine.dispose()
    assert len(confirmed) >= 20 and set(confirmed) <= there
    assert sorted(pairs) == sorted(there)  # an image without its prediction would be half a unit
