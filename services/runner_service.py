"""The runner process of the split topology: a BentoML service around one LocalRunner. It serves gateways only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import bentoml
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from db.blobs import open_store
from db.registry import Registry
from db.schema.ensure import ensure_newest
from db.schema.sqlite_file import check_database_file
from db.session import connect
from ekiben import logs
from ekiben.errors import Refusal, Unavailable
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from models.limits import MAX_IMAGE_BYTES
from models.masks.predicted_masks import MaskUpdate
from models.sam.graphs import MASK_BYTES
from models.sam.prompts import MAX_PROMPTS
from services import metrics
from services.bento.hosting import HOSTING, App, HostedService
from services.error_codes import presentable, status_of
from services.model_registry.index import ModelIndex
from services.model_registry.reconciler import ModelReconciler
from services.open_inference import tensors
from services.processes.loop_watchdog import LoopWatchdog
from services.processes.open_files import OpenFilesWatch
from services.processes.shutdown import end_after_signal
from services.processes.startup import exit_in_words
from services.rest.disconnect import cancel_on_disconnect
from services.rest.uploads.image_upload import FORM_OVERHEAD
from services.rest.uploads.request_body import read_body
from services.runners.local import LocalRunner
from services.runners.message_format import ANSWER_PART, REFUSAL_PART, UPDATE_PART, pack_part
from services.runners.messages import (
    decode_auto_mask_request,
    decode_key,
    decode_mask_request,
    decode_request,
    encode_auto_mask_response,
    encode_mask_response,
    encode_mask_update,
    encode_refusal,
    encode_response,
    encode_states,
)
from services.runners.progress import ProgressSink
from services.runners.remote import DEADLINE_HEADER

log = logging.getLogger(__name__)

SETTINGS = Settings.from_environ()
_BYTES = "application/octet-stream"


def _refusing(handler: Callable[[Request, LocalRunner], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        logs.request_id.set(request.headers.get("x-request-id", ""))
        try:
            return Response(await handler(request, request.app.state.runner), media_type=_BYTES)
        except Refusal as error:
            return Response(encode_refusal(error), status_of(error), media_type="application/json")
        except Exception as error:
            refusal, status = _failure(error)
            return Response(encode_refusal(refusal), status)

    return endpoint


def _failure(error: Exception) -> tuple[Refusal, int]:
    """What the gateway is told of an error that is no refusal, and the HTTP status."""
    shown = presentable(error)
    if isinstance(shown, Refusal):
        return shown, status_of(shown)
    log.error("runner", exc_info=error)
    return Unavailable("the runner failed; its log has the reason"), 500


async def _infer(request: Request, runner: LocalRunner) -> bytes:
    deadline = _deadline(request, SETTINGS.timeout_s)
    # Raw pixels and prepared tensors may be larger than an encoded file.
    key, inference_request = decode_request(
        await read_body(request, max(MAX_IMAGE_BYTES, tensors.MAX_BYTES), FORM_OVERHEAD)
    )
    return encode_response(await cancel_on_disconnect(request.receive, runner.infer(key, inference_request, deadline)))


async def _masks(request: Request, runner: LocalRunner) -> bytes:
    # The mask input of a prompt has 256 KB.
    key, inference_request = decode_mask_request(
        await read_body(request, MAX_IMAGE_BYTES + MAX_PROMPTS * MASK_BYTES, FORM_OVERHEAD)
    )
    return encode_mask_response(
        *await cancel_on_disconnect(
            request.receive, runner.masks(key, inference_request, _deadline(request, SETTINGS.timeout_s))
        )
    )


async def _auto_masks(request: Request, runner: LocalRunner) -> bytes:
    key, inference_request = decode_auto_mask_request(await read_body(request, MAX_IMAGE_BYTES, FORM_OVERHEAD))
    return encode_auto_mask_response(
        *await cancel_on_disconnect(
            request.receive, runner.auto_masks(key, inference_request, _deadline(request, SETTINGS.auto_timeout_s))
        )
    )


async def _auto_masks_with_updates(request: Request) -> Response:
    """A stream of parts: mask updates while they are found, then the response or a refusal.

    A caller who disconnects ends the computation. Without ``?updates=1`` one message, as the other endpoints.
    """
    if request.query_params.get("updates") != "1":
        return await _refusing(_auto_masks)(request)
    logs.request_id.set(request.headers.get("x-request-id", ""))
    runner: LocalRunner = request.app.state.runner
    try:
        key, inference_request = decode_auto_mask_request(await read_body(request, MAX_IMAGE_BYTES, FORM_OVERHEAD))
    except Refusal as error:
        return Response(encode_refusal(error), status_of(error), media_type="application/json")
    deadline = _deadline(request, SETTINGS.auto_timeout_s)

    async def parts() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[MaskUpdate | None] = asyncio.Queue()
        progress = ProgressSink(on_masks=queue.put_nowait)
        computing = asyncio.create_task(runner.auto_masks(key, inference_request, deadline, progress))
        computing.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (update := await queue.get()) is not None:
                yield pack_part(UPDATE_PART, encode_mask_update(update))
            yield pack_part(ANSWER_PART, encode_auto_mask_response(*computing.result()))
        except Refusal as error:
            yield pack_part(REFUSAL_PART, encode_refusal(error))
        except Exception as error:
            yield pack_part(REFUSAL_PART, encode_refusal(_failure(error)[0]))
        finally:
            computing.cancel()

    return StreamingResponse(parts(), media_type=_BYTES)


def _deadline(request: Request, otherwise: float) -> float:
    return time.monotonic() + float(request.headers.get(DEADLINE_HEADER, otherwise))


async def _load(request: Request, runner: LocalRunner) -> bytes:
    await runner.load(decode_key(await request.body()), pin=request.query_params.get("pin") == "1")
    return b"true"


async def _enable(request: Request, runner: LocalRunner) -> bytes:
    await runner.enable(decode_key(await request.body()))
    return b"true"


async def _unload(request: Request, runner: LocalRunner) -> bytes:
    return orjson.dumps(await runner.unload(decode_key(await request.body())))


async def _states(_: Request, runner: LocalRunner) -> bytes:
    return encode_states(await runner.states())


async def _counters(request: Request, runner: LocalRunner) -> bytes:
    return orjson.dumps(await runner.counters(decode_key(await request.body())))


async def _metrics(_: Request, runner: LocalRunner) -> bytes:
    runner.observe_gauges()
    return (await asyncio.to_thread(metrics.render))[0]


async def _ready(_: Request) -> Response:
    return Response(b"ok")


APP = Starlette(
    routes=[
        Route("/infer", _refusing(_infer), methods=["POST"]),
        Route("/masks", _refusing(_masks), methods=["POST"]),
        Route("/auto_masks", _auto_masks_with_updates, methods=["POST"]),
        Route("/load", _refusing(_load), methods=["POST"]),
        Route("/enable", _refusing(_enable), methods=["POST"]),
        Route("/unload", _refusing(_unload), methods=["POST"]),
        Route("/states", _refusing(_states), methods=["POST"]),
        Route("/counters", _refusing(_counters), methods=["POST"]),
        Route("/metrics", _refusing(_metrics), methods=["GET", "POST"]),
        Route("/readyz", _ready),
    ]
)


class RunnerService(HostedService):
    """The BentoML service of the runner process."""

    @staticmethod
    def middleware(inner: App) -> App:
        """``APP`` for every HTTP path; lifespan events go to BentoML (``inner``)."""

        async def every_path(scope: Any, receive: Any, send: Any) -> None:
            await (APP if scope["type"] == "http" else inner)(scope, receive, send)

        return every_path


@bentoml.service(name="ekiben_runner", service_class=RunnerService, workers=1, **HOSTING)
class Runner:
    """Loads models and runs them; its payloads are binary messages (services/runners/messages.py)."""

    def __init__(self) -> None:
        set_umask(SETTINGS)
        logs.configure(SETTINGS.log_level, SETTINGS.log_name)

    @bentoml.on_deployment
    def supervise() -> None:  # BentoML makes it a static method
        """BentoML calls it in its supervising process, before that starts the process that serves."""
        from services.bento.process_supervision import supervise_closely

        set_umask(SETTINGS)
        logs.configure(SETTINGS.log_level, SETTINGS.log_name)
        supervise_closely()

    @bentoml.on_startup
    async def open(self) -> None:
        """Connect, start the runner and the reconciler. BentoML calls it when the process starts."""
        end_after_signal()
        with exit_in_words("runner"):
            store = await asyncio.to_thread(
                open_store, SETTINGS.resolved_store_url, SETTINGS.s3_access_key, SETTINGS.s3_secret_key
            )
            await asyncio.to_thread(check_database_file, SETTINGS.resolved_database_url, store)
            await asyncio.to_thread(ensure_newest, SETTINGS.resolved_database_url)
            self.database = connect(SETTINGS.resolved_database_url)
            index = ModelIndex(Registry(self.database), store, SETTINGS.cache_folder / "models")
            self.runner = LocalRunner(SETTINGS, index.locate)
            self.reconciler = ModelReconciler(index, self.runner, SETTINGS.preloaded)
            await self.reconciler.start()
        APP.state.runner = self.runner
        self.watchdog = LoopWatchdog(also=(OpenFilesWatch().look,))
        self.watchdog.start()

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Stop following the registry, close the runner and the database."""
        self.watchdog.stop()
        await self.reconciler.stop()
        await self.runner.close()
        self.database.dispose()
