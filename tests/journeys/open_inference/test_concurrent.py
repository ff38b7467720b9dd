"""Many clients at once, each with images of its own: everyone is given the answers to what he asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.open_inference.client_processes import areas, softmax
from tests.serving import Server

pytest_plugins = ("tests.journeys.open_inference.fixtures",)

Form = Literal["BYTES", "UINT8", "FP32"]


@dataclass(frozen=True)
class Request:
    """``colours``: two for each image, its left and its right half. ``after_ms``: the client waits so long first."""

    model: Literal["oip_colours", "oip_mine", "areas"]
    form: Form
    colours: tuple[tuple[int, ...], ...]
    after_ms: int

    def pixels(self) -> NDArray[np.uint8]:
        """[n, 32, 32, 3]."""
        halves = np.array(self.colours, np.uint8).reshape(-1, 1, 2, 3)
        return halves.repeat(32, 1).repeat(16, 2)

    def input(self, module: Any) -> Any:
        pixels = self.pixels()
        array: NDArray[Any] = pixels
        if self.form == "BYTES":
            array = np.empty(len(pixels), object)
            array[:] = [toy_models.encoded(Image.fromarray(one)) for one in pixels]
        elif self.form == "FP32":
            array = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        made = module.InferInput("image", array.shape, self.form)
        made.set_data_from_numpy(array)
        return made

    def answered(self, answer: Any) -> bool:
        if self.model == "areas":
            return bool(np.array_equal(answer.as_numpy("class_map"), areas(self.pixels())))
        probs = answer.as_numpy("probs")
        expected = softmax(list(self.pixels()))
        return probs.shape == expected.shape and bool(
            np.abs(probs - expected).max() < 5e-5
        )  # of a mean in float32: 1.2e-5 was seen


level = st.integers(0, 255)
requests = st.builds(
    Request,
    st.sampled_from(["oip_colours", "oip_mine", "areas"]),
    st.sampled_from(["BYTES", "UINT8", "FP32"]),
    st.lists(st.tuples(*[level] * 6), min_size=1, max_size=4, unique=True).map(tuple),
    st.integers(0, 6),
)
clients = st.tuples(st.sampled_from(["http", "grpc"]), st.lists(requests, min_size=1, max_size=3))


async def everyone(server: Server, schedule: list[tuple[str, list[Request]]]) -> list[tuple[Request, str, Any]]:
    """Each client's requests one after the other, all clients side by side: with the request's id and its answer."""
    address = server.url.removeprefix("http://")
    start = asyncio.Event()

    async def client(number: int, protocol: str, requested: list[Request]) -> list[tuple[Request, str, Any]]:
        if protocol == "http":
            module, one = http_client, http_aio.InferenceServerClient(address)
        else:  # a connection of its own: with several gateways any of them may answer
            options = [("grpc.use_local_subchannel_pool", 1)]
            module, one = grpc_client, grpc_aio.InferenceServerClient(server.grpc, channel_args=options)
        answers = []
        async with one:
            await start.wait()
            for at, request in enumerate(requested):
                await asyncio.sleep(request.after_ms / 1e3)
                id = f"{number}-{at}"
                parameters = {"store": False} if request.form == "BYTES" else {}
                answer = await one.infer(request.model, [request.input(module)], request_id=id, parameters=parameters)
                answers.append((request, id, answer))
        return answers

    under_way = [asyncio.ensure_future(client(number, *each)) for number, each in enumerate(schedule)]
    await asyncio.sleep(0)
    start.set()
    return [one for each in await asyncio.gather(*under_way) for one in each]


# Without shrinking: a race is seldom lost the same way again.
@EVERY_TOPOLOGY
@settings(
    max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(schedule=st.lists(clients, min_size=2, max_size=10))
def test_everyone_gets_his_own_answer(oip_server: Server, schedule: list[tuple[str, list[Request]]]) -> None:
    for request, id, answer in asyncio.run(everyone(oip_server, schedule)):
        response = answer.get_response()
        assert (response["id"] if isinstance(response, dict) else response.id) == id
        assert request.answered(answer), request


@EVERY_TOPOLOGY
@pytest.mark.parametrize("form", ["BYTES", "UINT8", "FP32"])
def test_the_check_sees_an_answer_of_another(oip_server: Server, form: Form) -> None:
    """What the property above goes by: two images that differ in one half are told apart."""
    here = Request("oip_colours", form, ((200, 10, 10, 90, 90, 90),), 0)
    there = Request("oip_colours", form, ((200, 10, 10, 90, 95, 90),), 0)
    ((_, _, answer),) = asyncio.run(everyone(oip_server, [("http", [here])]))
    assert here.answered(answer)
    assert not there.answered(answer)
