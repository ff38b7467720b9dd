"""The client over gRPC: against a small server of our own, so that every refusal and every broken stream can be had."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2, struct_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from PIL import Image

from ekiben._client.masks import AutoMasks, DroppedMask, FoundMask, Progress
from ekiben._client.records import JobEvent
from ekiben.client import Client, EkibenError, TimedOut, Unreachable
from ekiben.v1 import ekiben_pb2, ekiben_pb2_grpc
from tests import toy_models
from tests.ekiben.bodies import JOB, MASK, classification, head, job
from tests.ekiben.clients import Clock, connected, self_signed
from tests.serving import free_port

PNG = toy_models.encoded(toy_models.solid((200, 10, 10), 4, 3))
LEVELS = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [3, 3, 3, 3]], np.uint8)
LEVELS_PNG = toy_models.encoded(Image.fromarray(LEVELS))
AREAS = [{"class_index": 3, "class_name": "cat", "color": [1, 2, 3], "pixels": 4, "share": 0.25}]


class Places(ekiben_pb2_grpc.VisionServicer, ekiben_pb2_grpc.JobsServicer, ekiben_pb2_grpc.ArtifactsServicer):
    """Answers with ``next``: functions of the request and the context, one for each call."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.next: list[Callable[[Any, grpc.ServicerContext], Any]] = []

    def _answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return self.next.pop(0)(request, context)

    Classify = Segment = PromptMasks = AutoMasks = Cutouts = _answer
    SubmitJob = GetJob = ListJobItems = WatchJob = GetArtifact = _answer


@contextmanager
def served(places: Places, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(4))
    ekiben_pb2_grpc.add_VisionServicer_to_server(places, server)
    ekiben_pb2_grpc.add_JobsServicer_to_server(places, server)
    ekiben_pb2_grpc.add_ArtifactsServicer_to_server(places, server)
    where = "127.0.0.1:0"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.fixture
def places() -> Places:
    return Places()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, places: Places) -> Iterator[Any]:
    with (
        served(places) as port,
        connected(request.param, f"grpc://127.0.0.1:{port}", headers={"X-Team": "birds"}) as one,
    ):
        yield one


def said(message: Any) -> Callable[..., Any]:
    return lambda request, context: message


def told(messages: Sequence[Any]) -> Callable[..., Any]:
    """Of a method that streams."""
    return lambda request, context: iter(messages)


def refuse(code: Any, reason: str, retry_s: float | None = None) -> Callable[..., Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> None:
        details = [error_details_pb2.ErrorInfo(reason=reason, domain="ekiben", metadata={"request_id": "r-1"})]
        if retry_s is not None:
            delay = duration_pb2.Duration(nanos=int(retry_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = []
        for each in details:
            packed.append(any_pb2.Any())
            packed[-1].Pack(each)
        status = status_pb2.Status(code=code, message="no", details=packed)
        context.abort_with_status(rpc_status.to_status(status))

    return answer


CLASSIFIED = ekiben_pb2.ClassifyResponse(**classification("red"))


def test_an_image(client: Any, places: Places, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(PNG)
    places.next = [said(CLASSIFIED)] * 3
    answer = client.classify(path, model="colours", top_k=np.int64(3), store=False)
    assert answer.raw == classification("red")
    assert (answer.image.id, answer.top.class_name, answer.timing.batch_size) == (None, "red", 1)
    client.classify(toy_models.solid((200, 10, 10), 4, 3))
    client.classify(image_id=MASK)
    first, second, third = places.requests
    assert (first.image.data, first.image.filename, first.model, first.top_k) == (PNG, "red.png", "colours", 3)
    assert first.HasField("store") and not first.store and not first.HasField("version")
    assert second.image.data[:4] == b"\x89PNG" and not second.HasField("model")
    assert third.image.WhichOneof("source") == "image_id" and third.image.image_id == MASK
    assert places.metadata[0]["x-team"] == "birds"


def test_class_maps_and_renders(client: Any, places: Places) -> None:
    kept = {"mask": f"/v1/artifacts/{MASK}"}
    drawn = ekiben_pb2.SegmentResponse(**head(classes=AREAS), rendered=LEVELS_PNG)
    stored = ekiben_pb2.SegmentResponse(**head(classes=AREAS, artifacts=kept))
    chunks = [ekiben_pb2.ArtifactChunk(data=LEVELS_PNG[:20]), ekiben_pb2.ArtifactChunk(data=LEVELS_PNG[20:])]
    places.next = [said(drawn), said(stored), said(drawn), said(stored), told(chunks)]
    answer = client.segment(PNG, flips=True)
    assert np.array_equal(answer.class_map, LEVELS)
    assert (answer.artifacts, answer.classes[0].color) == (None, (1, 2, 3))
    assert answer.raw == head(classes=AREAS, artifacts=None)
    assert client.segment(PNG, class_map=False).class_map is None
    assert np.array_equal(np.asarray(client.render(PNG, "color")), LEVELS)
    dicom = bytes(128) + b"DICM" + bytes(9)  # may be a volume, of which no mask is drawn: it is taken from the store
    assert np.array_equal(client.segment(dicom).class_map, LEVELS)
    renders = [request.render if request.HasField("render") else None for request in places.requests[:4]]
    assert renders == ["mask", None, "color", None]
    assert places.requests[4].id == MASK


def test_masks(client: Any, places: Places) -> None:
    mask = {"id": MASK, "segmentation": {"rle": {"size": [3, 4], "counts": [4, 2, 6]}}, "predicted_iou": 0.5}
    mask |= {"area": 2, "bbox": [1, 1, 0, 1]}
    body = head(results=[{"prompt": 0, "masks": [mask]}], embedding={"cached": True, "encode_ms": 2})
    places.next = [said(ekiben_pb2.PromptMasksResponse(**body))]
    answer = client.masks(PNG, points=[[1, 1.5], [0, 0]], labels=[1, 0], box=(0, 0, 4, 3), mask_input=MASK)
    assert np.argwhere(answer.best[0].array).tolist() == [[1, 1], [2, 1]]
    assert answer.best[0].stability_score is None
    assert answer.raw["results"][0]["masks"][0]["segmentation"] == {"size": [3, 4], "counts": [4, 2, 6]}
    (prompt,) = places.requests[0].prompts
    assert [(point.x, point.y, point.label) for point in prompt.points] == [(1, 1.5, 1), (0, 0, 0)]
    assert (prompt.box.x1, prompt.box.y1, prompt.mask_input) == (4, 3, MASK)


def events() -> list[Any]:
    mask = {"segmentation": {"rle": {"size": [1, 2], "counts": [1, 1]}}, "predicted_iou": 0.5, "area": 1}
    mask |= {"bbox": [1, 0, 0, 0], "point_coords": [{"x": 1, "y": 0.5}], "crop_box": [0, 0, 2, 1]}
    parameters = struct_pb2.Struct()
    parameters.update({"points_per_side": 16, "pred_iou_thresh": 0.5})
    finished = head(masks=[mask], parameters=parameters, embedding={"cached": False, "encode_ms": 1})
    return [
        ekiben_pb2.AutoMasksEvent(found={"number": 0, "mask": mask}),
        ekiben_pb2.AutoMasksEvent(progress=0.0),
        ekiben_pb2.AutoMasksEvent(dropped={"number": 0}),
        ekiben_pb2.AutoMasksEvent(finished=finished),
    ]


def test_automatic_masks_as_they_are_found(client: Any, places: Places) -> None:
    places.next = [told(events()), told(events())]
    found, progress, dropped, finished = list(client.stream_auto_masks(PNG, preset="fast"))
    assert isinstance(found, FoundMask) and found.mask.array.tolist() == [[False, True]]
    assert found.mask.point_coords == ((1.0, 0.5),)
    assert (progress, dropped) == (Progress(0.0), DroppedMask(0))
    assert isinstance(finished, AutoMasks) and finished.masks == (found.mask,)
    assert finished.parameters == {"points_per_side": 16, "pred_iou_thresh": 0.5}
    assert isinstance(finished.parameters["points_per_side"], int)
    whole = client.auto_masks(PNG, preset="fast")
    assert whole == finished
    assert [request.preset for request in places.requests] == ["fast", "fast"]


def test_cutouts(client: Any, places: Places) -> None:
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (3, 4, 4), np.uint8))
    cut = {
        "bbox": [0, 0, 4, 3],
        "width": 4,
        "height": 3,
        "area": 5,
        "predicted_iou": 0.5,
        "png": toy_models.encoded(rgba),
    }
    body = head(cutouts=[cut], embedding={"cached": True, "encode_ms": 3})
    places.next = [said(ekiben_pb2.CutoutsResponse(**body))]
    (found,) = client.cutouts(PNG, boxes=[(0, 0, 4, 3)], feather_px=1).cutouts
    assert np.array_equal(np.asarray(found.image), np.asarray(rgba))
    assert (found.prompt, found.url, found.bbox) == (None, None, (0, 0, 4, 3))


def test_refusals(client: Any, places: Places) -> None:
    places.next = [
        refuse(code_pb2.INVALID_ARGUMENT, "bad_image"),
        refuse(code_pb2.DEADLINE_EXCEEDED, "deadline_exceeded", 1),
        refuse(code_pb2.UNAVAILABLE, "overloaded", 0.01),
        refuse(code_pb2.UNAVAILABLE, "overloaded", 0.01),
        said(CLASSIFIED),
        lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke off"),
        lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here"),
    ]
    with pytest.raises(EkibenError) as bad:
        client.classify(PNG)
    assert (bad.value.code, bad.value.status, bad.value.request_id) == ("bad_image", "INVALID_ARGUMENT", "r-1")
    assert bad.value.message == "no"
    with pytest.raises(TimedOut) as late:
        client.classify(PNG)
    assert (late.value.code, late.value.retry_after_s) == ("deadline_exceeded", 1)
    assert client.classify(PNG).top.class_name == "red"  # two tries later
    assert len(places.requests) == 5
    with pytest.raises(Unreachable) as lost:
        client.classify(PNG)
    assert not lost.value.safe_to_retry
    with pytest.raises(EkibenError) as unknown:
        client.classify(PNG)
    assert unknown.value.code == "unimplemented"
    assert len(places.requests) == 7
    with pytest.raises(EkibenError) as other:
        client.submit("classify", PNG, top=3)
    assert other.value.code == "bad_request" and "top" in other.value.message
    with pytest.raises(EkibenError) as http:
        client.upload_image(PNG)
    assert http.value.code == "http_only"


def message_of(state: str) -> Any:
    body = job(state)
    parameters = struct_pb2.Struct()
    parameters.update(body.pop("parameters"))
    return ekiben_pb2.Job(**body, parameters=parameters)


def test_jobs(client: Any, places: Places) -> None:
    result = struct_pb2.Struct()
    result.update(classification("red"))
    item = {"position": 0, "state": "succeeded", "prediction_id": MASK, "attempts": 1, "result": result}
    places.next = [
        lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke off"),
        said(ekiben_pb2.SubmitJobResponse(job_id=JOB)),
        said(message_of("queued")),
        said(message_of("succeeded")),
        said(ekiben_pb2.ListJobItemsResponse(items=[item], total=1, page=1, limit=50)),
    ]
    known = client.submit("classify", PNG, top_k=2, priority=9)
    assert (known.id, known.state, known.parameters, known.error) == (JOB, "queued", job()["parameters"], None)
    assert known.raw == job("queued")
    answer = client.result(JOB)
    assert answer.raw == classification("red")
    one, two = places.requests[:2]
    assert one == two and two.classify.top_k == 2 and two.classify.image.data == PNG and two.priority == 9
    assert len(two.idempotency_key) == 36


def test_a_job_is_followed_through_broken_streams(client: Any, places: Places, clock: Clock) -> None:
    def event(number: int, kind: str, **data: Any) -> Any:
        made = ekiben_pb2.JobEvent(number=number, kind=kind)
        made.data.update(data)
        return made

    def broken(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield event(1, "state", state="running")
        yield event(2, "progress", done=1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")

    last = [event(3, "state", state="succeeded")]
    places.next = [said(message_of("running")), broken, told([]), said(message_of("running")), told(last)]
    places.next += [said(message_of("succeeded")), told(last)]
    assert client.wait(JOB).state == "succeeded"
    watched = [request.after for request in places.requests if isinstance(request, ekiben_pb2.WatchJobRequest)]
    assert watched == [0, 2, 2]
    assert list(client.watch(JOB, after=2)) == [JobEvent(3, "state", {"state": "succeeded"})]


def test_waiting_for_so_long(client: Any, places: Places) -> None:
    ended = threading.Event()

    def silent(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        ended.wait(60)
        yield from ()

    places.next = [said(message_of("running")), silent]
    begun = time.monotonic()
    with pytest.raises(TimedOut) as caught:
        client.wait(JOB, timeout_s=0.4)
    waited_s = time.monotonic() - begun
    ended.set()
    assert caught.value.code == "wait_timeout"
    assert 0.3 < waited_s < 30  # and not until the server ends the stream


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_nobody_there_and_nobody_answers(kind: str) -> None:
    with connected(kind, f"grpc://127.0.0.1:{free_port()}", retries=0) as client:
        with pytest.raises(Unreachable) as caught:
            client.classify(PNG)
        assert caught.value.safe_to_retry
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection, and says nothing
        url = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        with connected(kind, url, timeout_s=0.3, retries=0) as client:
            begun = time.monotonic()
            with pytest.raises(TimedOut):
                client.classify(PNG)
            assert 0.2 < time.monotonic() - begun < 30


def test_a_server_that_comes_later(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that could not be made are made again."""
    monkeypatch.setattr("ekiben._client.requests._FIRST_PAUSE_S", 0.25)
    port = free_port()
    places.next = [said(CLASSIFIED)]
    server = grpc.server(ThreadPoolExecutor(1))
    ekiben_pb2_grpc.add_VisionServicer_to_server(places, server)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            server.add_insecure_port(f"127.0.0.1:{port}")
            server.start()
        time.sleep(seconds)

    monkeypatch.setattr("ekiben.client.time", SimpleNamespace(sleep=pause))
    with Client(f"grpc://127.0.0.1:{port}", retries=4) as client:
        try:
            assert client.classify(PNG).top.class_name == "red"
        finally:
            server.stop(0).wait()
    assert len(pauses) >= 2


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_tls(kind: str, places: Places, tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    pair = [(key.read_bytes(), certificate.read_bytes())]
    places.next = [said(CLASSIFIED)]
    with served(places, grpc.ssl_server_credentials(pair)) as port:
        url = f"grpcs://localhost:{port}"
        with connected(kind, url, ca=certificate) as client:
            assert client.classify(PNG).top.class_name == "red"
        with connected(kind, url, retries=0) as client, pytest.raises(Unreachable):
            client.classify(PNG)
