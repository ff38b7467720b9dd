"""Group commit: everything stored, together where possible, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db import session as sessions
from db import writer as writers
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Artifact, Chore, Image, Prediction, now
from db.writer import Writer
from ekiben.errors import Conflict, Overloaded, Unavailable
from tests.db import rows
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
    writer = Writer(engine)
    with locked(engine):
        writer.save(unit())
        time.sleep(0.1)
        waiting = writer.save(unit())
        writer.close(timeout_s=0.2)
        with pytest.raises(Unavailable):
            waiting.result(0)


def test_nothing_to_store(records: Records) -> None:
    assert records.save([]).result(10) is None


@dataclass(frozen=True)
class Noted:
    """Notes its turn in a row of its own; then it refuses, if it is to."""

    job_id: str
    error: Exception | None = None

    def __call__(self, db: sa.Connection) -> None:
        db.execute(sa.insert(Chore).values(name=self.job_id, due_at=now()))
        if self.error is not None:
            raise self.error


def test_what_comes_after_the_rows_is_in_their_transaction(engine: sa.Engine, records: Records) -> None:
    records.save(unit(), Noted("a")).result(10)
    records.save([], Noted("b")).result(10)
    fault = ValueError("a fault of ours")
    for error in (Conflict("lost", code="item_lost"), fault):
        assert records.save(unit(), Noted("c", error)).exception(10) is error
    assert counts(engine) == [1, 1, 1]
    with Session(engine) as session:
        assert set(session.exec(select(Chore.name))) == {"a", "b"}


def test_one_that_refuses_fails_alone(engine: sa.Engine, records: Records) -> None:
    """20 units in one group, each with something after its rows; two of them refuse."""
    refused = Conflict("lost", code="item_lost")
    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)  # the writer hangs on this one; the rest meet in the group after it
        futures = {
            f"job-{n:02}": records.save(
                unit(filename=f"{n}.jpg"), Noted(f"job-{n:02}", refused if n in (3, 11) else None)
            )
            for n in range(20)
        }
    first.result(10)
    failed = {name for name, future in futures.items() if future.exception(20) is refused}
    assert failed == {"job-03", "job-11"}
    assert counts(engine) == [19, 19, 19]
    with Session(engine) as session:
        assert set(session.exec(select(Chore.name))) == set(futures) - failed
        assert set(session.exec(select(Image.filename))).isdisjoint({"3.jpg", "11.jpg"})


def test_jobs_of_a_group_come_in_one_order(engine: sa.Engine, records: Records) -> None:
    """Two processes that lock the rows of several jobs must not do it in opposite orders."""
    seen: list[str] = []

    @dataclass(frozen=True)
    class Seen:
        job_id: str

        def __call__(self, db: sa.Connection) -> None:
            seen.append(self.job_id)

    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)
        futures = [records.save(unit(), Seen(job_id)) for job_id in "cabac"]
    for future in (first, *futures):
        future.result(10)
    assert seen == ["a", "a", "b", "c", "c"]


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
