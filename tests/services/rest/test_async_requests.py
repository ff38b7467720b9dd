"""Prefer: respond-async: who asks for a job, and with which options of their own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from db.tables import Job
from ekiben.errors import BadInput, Conflict
from ekiben.ids import LOCAL_OWNER
from services.inference.context import RequestContext
from services.jobs.submission import JobTerms
from services.rest.async_requests import AsyncRequestOptions, accepted, idempotency_key, split, wants_job
from services.schemas.inference import ClassifyOptions
from services.schemas.masks import MasksOptions
from services.schemas.validation import OptionsT
from tests import toy_models
from tests.db import job_rows
from tests.services.jobs.job_homes import AtWork, at_work, make_home


def request(*headers: tuple[str, str], query: str = "") -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": raw})


ASYNC = ("Prefer", "respond-async")


@pytest.mark.parametrize(
    "values",
    [
        ["respond-async"],
        ["Respond-Async"],
        [" respond-async "],
        ["respond-async, wait=10"],
        ["wait=10,respond-async"],
        ["return=minimal", "respond-async"],
        ["respond-async; foo=bar"],
        ['respond-async=""'],
        ["handling=lenient; a=b, respond-async;c"],
    ],
)
def test_who_wants_a_job(values: list[str]) -> None:
    assert wants_job(request(*(("Prefer", value) for value in values)))


@pytest.mark.parametrize(
    "values",
    [[], [""], ["wait=10"], ["respond"], ["respond-asynchronously"], ["return=respond-async"], ["a; respond-async"]],
)
def test_who_does_not(values: list[str]) -> None:
    assert not wants_job(request(*(("Prefer", value) for value in values)))


def test_what_is_quoted_is_no_preference() -> None:
    assert not wants_job(request(("Prefer", 'note="a, respond-async, b"')))


@pytest.mark.parametrize("key", ["a", "x" * 255, "!~", "8e03978e-40d5-43e8-bc93-6894a57f9324", '"quoted"'])
def test_an_idempotency_key(key: str) -> None:
    assert idempotency_key(request(("Idempotency-Key", key))) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\there", "größe", "nul\0", "line\n", "\x7f"])
def test_what_is_no_idempotency_key(key: str) -> None:
    with pytest.raises(BadInput, match="Idempotency-Key"):
        idempotency_key(request(("Idempotency-Key", key)))


def test_without_an_idempotency_key() -> None:
    assert idempotency_key(request()) is None


def split_now(given: Request, kind: type[OptionsT], fields: dict[str, str]) -> Any:
    return asyncio.run(split(given, kind, fields))


def test_options_of_a_request_alone() -> None:
    options, own = split_now(request(query="top_k=2"), ClassifyOptions, {"model": "colours"})
    assert options == ClassifyOptions(model="colours", top_k=2)
    assert own is None


@pytest.mark.parametrize("name", list(AsyncRequestOptions.model_fields))
def test_options_of_jobs_need_a_job(name: str) -> None:
    values = {"priority": "3", "timeout_s": "60", "webhook": "http://x/"}
    for given in ({"query": f"{name}={values[name]}"}, {}):
        fields = {} if given else {name: values[name]}
        with pytest.raises(BadInput, match=f"{name}.*Prefer: respond-async"):
            split_now(request(**given), ClassifyOptions, fields)
        options, own = split_now(request(ASYNC, **given), ClassifyOptions, {**fields, "top_k": "1"})
        assert options == ClassifyOptions(top_k=1)
        assert own is not None and own.model_fields_set == {name}
        assert str(getattr(own, name)).removesuffix(".0") == values[name]


def test_options_of_a_job() -> None:
    requested = request(ASYNC, ("Idempotency-Key", "k"), query="priority=9&timeout_s=0.5&webhook=https%3A%2F%2Fx%2F")
    options, own = split_now(requested, MasksOptions, {"prompts": "[]"})
    assert options == MasksOptions(prompts="[]")
    assert own is not None
    assert own.terms(requested) == JobTerms(priority=9, timeout_s=0.5, webhook="https://x/", idempotency_key="k")
    _, own = split_now(request(ASYNC), ClassifyOptions, {})
    assert own is not None and own.terms(request()) == JobTerms()
    assert JobTerms().priority == 5 and JobTerms().timeout_s is None


@pytest.mark.parametrize(
    "query",
    [
        "priority=-1",
        "priority=10",
        "priority=high",
        "priority=1.5",
        "timeout_s=0",
        "timeout_s=-1",
        "timeout_s=2592001",
        "timeout_s=nan",
        "timeout_s=inf",
        "priority=1&priority=2",
        "urgency=1",
    ],
)
def test_options_that_are_wrong(query: str) -> None:
    with pytest.raises(BadInput, match=query.partition("=")[0]):
        split_now(request(ASYNC, query=query), ClassifyOptions, {})


def test_the_answer() -> None:
    job = job_rows.job()
    for created in (True, False):
        said = accepted(job, created, {"Preference-Applied": "respond-async"})
        assert said.status_code == 202
        assert bytes(said.body) == b'{"job_id":"' + job.id.encode() + b'"}'
        assert said.headers["location"] == f"/v1/jobs/{job.id}"
        assert said.headers["preference-applied"] == "respond-async"
        assert said.headers.get("idempotency-replayed") == (None if created else "true")


# ---- the same request again ----


def test_the_same_key_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    red, blue = (toy_models.encoded(toy_models.solid(color)) for color in ((255, 0, 0), (0, 0, 255)))

    async def submit(
        bench: AtWork,
        key: str | None,
        image: bytes = red,
        store: bool = True,
        filename: str = "a.png",
        **requested: object,
    ) -> tuple[Job, bool]:
        jobs = bench.app_state.jobs
        items = [await jobs.new_item(image, filename)]
        options = ClassifyOptions.model_validate({"model": "colours", **requested})
        terms = JobTerms(idempotency_key=key, priority=3)
        return await jobs.submit(
            RequestContext(bench.app_state.inference), "request", "classify", options, items, terms, store=store
        )

    async def main() -> None:
        async with at_work(make_home(tmp_path / "template"), tmp_path) as bench:
            first, created = await submit(bench, "key", top_k=2)
            assert created
            again, created = await submit(bench, "key", top_k=2)
            assert (again.id, created) == (first.id, False)
            blobs = bench.blobs()
            assert len(blobs) == 1  # the image came again, and is not kept again
            for change in ({"top_k": 1}, {"image": blue}, {"store": False}, {"top_k": 2, "filename": "b.png"}):
                with pytest.raises(Conflict) as refused:
                    await submit(bench, "key", **{"top_k": 2, **change})  # type: ignore[arg-type]
                assert refused.value.code == "idempotency_key_reused"
            assert bench.blobs() == blobs
            others = await asyncio.gather(*(submit(bench, "another", top_k=2) for _ in range(5)))
            assert len({job.id for job, _ in others}) == 1
            assert sorted(created for _, created in others) == [False] * 4 + [True]
            unkeyed = [(await submit(bench, None, top_k=2))[0].id for _ in range(2)]
            assert len({first.id, others[0][0].id, *unkeyed}) == 4 == bench.records.jobs(LOCAL_OWNER).total
            assert len(bench.blobs()) == 4
            done = await bench.finish(first.id)
            assert (done.state, done.priority) == ("succeeded", 3)
            assert (await submit(bench, "key", top_k=2))[0].state == "succeeded"

    asyncio.run(main())
