"""What tritonclient's four clients are told beside inference: health, metadata, repository, statistics."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from ekiben import __version__
from services.open_inference.metadata import EXTENSIONS
from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.open_inference.client_processes import EACH_CLIENT, Client, files, softmax
from tests.serving import Server

pytest_plugins = ("tests.journeys.open_inference.fixtures",)
pytestmark = EACH_CLIENT

IMAGE = np.asarray(toy_models.noise(32, 32, seed=71))
DATA = toy_models.encoded(toy_models.noise(32, 32, seed=71))
KEPT = {"store": False}


@EVERY_TOPOLOGY
def test_health(oip: Client) -> None:
    assert oip.request("is_server_live") is True
    assert oip.request("is_server_ready") is True
    assert oip.request("is_model_ready", model_name="oip_colours") is True
    for version, ready in (("1", True), ("2", True)):
        assert oip.request("is_model_ready", model_name="oip_colours", model_version=version) is ready
    assert oip.request("is_model_ready", model_name="nobody") is False


def test_the_server(oip: Client) -> None:
    told = oip.request("get_server_metadata")
    assert told == {"name": "ekiben", "version": __version__, "extensions": list(EXTENSIONS)}


MODELS: list[tuple[str, list[str], list[tuple[str, str, list[int]]]]] = [
    ("oip_colours", ["1", "2"], [("probs", "FP32", [-1, 4])]),
    ("oip_mine", ["1"], [("probs", "FP32", [-1, 4])]),
    ("areas", ["1"], [("class_map", "UINT8", [-1, -1, -1])]),
    ("oip_cells", ["1"], [("class_map", "UINT8", [-1, -1, -1])]),
    ("sam_toy", ["1"], [("masks", "BOOL", [-1, -1, -1, -1]), ("iou_predictions", "FP32", [-1, -1])]),
]


@EVERY_TOPOLOGY
def test_models(oip: Client) -> None:
    def rows(given: list[dict[str, Any]], type: str, shape: str) -> list[tuple[str, str, list[int]]]:
        return [(one["name"], one[type].removeprefix("TYPE_"), [int(n) for n in one[shape]]) for one in given]

    for model, versions, outputs in MODELS:
        told = oip.request("get_model_metadata", model_name=model)
        assert (told["name"], told["versions"], told["platform"]) == (model, versions, "onnxruntime_onnx")
        assert rows(told["inputs"], "datatype", "shape") == [("image", "BYTES", [-1])]
        assert rows(told["outputs"], "datatype", "shape") == outputs
        assert oip.request("get_model_metadata", model_name=model, model_version="1") == told

        config = oip.request("get_model_config", model_name=model)
        config = config if oip.http else config["config"]
        assert (config["name"], config["platform"], config["backend"]) == (model, "onnxruntime_onnx", "onnxruntime")
        assert config.get("max_batch_size", 0) == 0
        assert rows(config["input"], "data_type", "dims") == [("image", "STRING", [-1])]
        assert rows(config["output"], "data_type", "dims") == outputs


def test_what_is_not_there(oip: Client) -> None:
    for call in ("get_model_metadata", "get_model_config", "get_inference_statistics", "load_model", "unload_model"):
        code, message = oip.refused(call, model_name="nobody")
        assert code == oip.code(404, "NOT_FOUND")
        assert "nobody" in message and "oip_colours" in message  # which there are
    for call in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        code, message = oip.refused(call, model_name="oip_colours", model_version="9")
        assert code == oip.code(404, "NOT_FOUND")
        assert "9" in message
        code, message = oip.refused(call, model_name="oip_colours", model_version="latest")
        assert code == oip.code(400, "INVALID_ARGUMENT")
        assert "latest" in message


@EVERY_TOPOLOGY
def test_the_repository(oip: Client) -> None:
    rows = oip.request("get_model_repository_index")
    rows = rows if oip.http else rows["models"]
    found = {(one["name"], one["version"]): (one["state"], one.get("reason", "")) for one in rows}
    for key in [("oip_colours", "1"), ("oip_colours", "2"), ("oip_mine", "1"), ("oip_cells", "1"), ("sam_toy", "1")]:
        assert found[key] == ("READY", "")
    assert len(found) == len(rows)


@EVERY_TOPOLOGY
def test_unload_and_load(oip: Client) -> None:
    def state() -> str:
        rows = oip.request("get_model_repository_index")
        rows = rows if oip.http else rows["models"]
        return str(next(one["state"] for one in rows if (one["name"], one["version"]) == ("oip_mine", "1")))

    oip.request("unload_model", model_name="oip_mine", unload_dependents=True)
    assert oip.request("is_model_ready", model_name="oip_mine") is False
    assert oip.request("is_model_ready", model_name="oip_mine", model_version="1") is False
    assert state() == "UNAVAILABLE"
    oip.request("load_model", model_name="oip_mine")
    assert oip.request("is_model_ready", model_name="oip_mine") is True
    assert oip.request("is_model_ready", model_name="oip_mine", model_version="1") is True
    end = time.monotonic() + 5  # another process may still be at it
    while state() == "LOADING" and time.monotonic() < end:
        time.sleep(0.05)
    assert state() == "READY"
    said = oip.infer("oip_mine", files(DATA), parameters=KEPT)
    assert np.abs(said.tensors["probs"] - softmax([IMAGE])).max() < 1e-5


def test_nothing_is_loaded_but_what_was_imported(oip: Client) -> None:
    for given in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": "b25ueA=="}}):
        code, message = oip.refused("load_model", model_name="oip_mine", **given)
        assert code == oip.code(501, "UNIMPLEMENTED")
        assert "POST /v1/models" in message
    assert oip.request("is_model_ready", model_name="oip_mine") is True


def numbers(oip: Client, model: str, version: str = "") -> dict[str, Any]:
    """The statistics of one version, every number as int."""

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: whole(one) for name, one in value.items()}
        return int(value) if isinstance(value, str) else value

    rows = oip.request("get_inference_statistics", model_name=model, model_version=version)["model_stats"]
    wanted = next(one for one in rows if one["version"] == (version or rows[0]["version"]))
    filled: dict[str, Any] = {"inference_count": 0, "execution_count": 0, "last_inference": 0, **wanted}
    empty = {"count": 0, "ns": 0}
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    stats = wanted["inference_stats"]
    filled["inference_stats"] = {name: {**empty, **whole(stats.get(name, {}))} for name in names}
    counted = ("inference_count", "execution_count", "last_inference", "inference_stats")
    return {**filled, **{name: whole(filled[name]) for name in counted}}


@EVERY_TOPOLOGY
def test_statistics(oip: Client) -> None:
    """Of five images in three requests, and one that failed."""
    before, other = numbers(oip, "oip_colours", "1"), numbers(oip, "oip_colours", "2")
    began = time.time()
    for count in (1, 3, 1):
        oip.infer("oip_colours", files(*[DATA] * count), model_version="1", parameters=KEPT)
    spent_ns = (time.time() - began) * 1e9
    after = numbers(oip, "oip_colours", "1")
    assert (after["name"], after["version"]) == ("oip_colours", "1")
    assert after["inference_count"] - before["inference_count"] == 5
    assert 1 <= after["execution_count"] - before["execution_count"] <= 5
    assert began - 1 <= after["last_inference"] / 1e3 <= time.time() + 1
    now, then = after["inference_stats"], before["inference_stats"]
    ns = {name: now[name]["ns"] - then[name]["ns"] for name in now}
    counts = {name: now[name]["count"] - then[name]["count"] for name in now}
    assert counts == {
        **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 5),
        **dict.fromkeys(("fail", "cache_hit", "cache_miss"), 0),
    }
    phases = ("queue", "compute_input", "compute_infer")
    assert all(ns[name] > 0 for name in phases) and ns["compute_output"] >= 0
    # Three of the five waited side by side: together no more than three times the time that went by.
    assert sum(ns[name] for name in (*phases, "compute_output")) <= ns["success"] <= 3 * spent_ns
    # The other version was not asked.
    assert numbers(oip, "oip_colours", "2") == other
    # An image that is none counts as failed.
    assert "not an image" in oip.refusal("oip_colours", files(b"no image"), model_version="1", parameters=KEPT)[1]
    failed = numbers(oip, "oip_colours", "1")["inference_stats"]
    assert failed["fail"]["count"] - now["fail"]["count"] == 1
    assert failed["success"] == now["success"]


@EVERY_TOPOLOGY
def test_statistics_of_all(oip: Client, sam_server: Server) -> None:
    rows = oip.request("get_inference_statistics")["model_stats"]
    keys = [(one["name"], one["version"]) for one in rows]
    assert len(set(keys)) == len(keys)
    assert {("oip_colours", "1"), ("oip_colours", "2"), ("areas", "1"), ("sam_toy", "1")} <= set(keys)
    of_one = oip.request("get_inference_statistics", model_name="oip_colours")["model_stats"]
    assert [one["version"] for one in of_one] == ["1", "2"]
    # The same counters as Prometheus sees.
    with sam_server.client() as client:
        text = client.get("/metrics").text
    line = re.search(
        r'^ekiben_model_requests_total\{model="oip_colours",outcome="succeeded",version="1"\} (\S+)$',
        text,
        re.MULTILINE,
    )
    assert line is not None
    assert numbers(oip, "oip_colours", "1")["inference_count"] == float(line.group(1))


def test_what_is_not_offered(oip: Client) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_system_shared_memory_status", {}),
        ("register_system_shared_memory", {"name": "x", "key": "/x", "byte_size": 8}),
        ("unregister_system_shared_memory", {}),
        ("get_cuda_shared_memory_status", {}),
        ("unregister_cuda_shared_memory", {}),
        ("get_trace_settings", {}),
        ("get_trace_settings", {"model_name": "oip_colours"}),
        ("update_trace_settings", {"settings": {"trace_level": "OFF"}}),
        ("get_log_settings", {}),
        ("update_log_settings", {"settings": {"log_info": False}}),
    ]
    for call, args in calls:
        code, message = oip.refused(call, **args)
        assert code == oip.code(501, "UNIMPLEMENTED"), call
        assert "does not offer" in message
