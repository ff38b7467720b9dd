"""A process of somebody else's: the four clients of tritonclient as they are, told over stdin what to call.

A line in is ``{"kind", "call", "args"}``; the line out is what the client gave back, or how it refused. Nothing of
Ekiben is imported. Arrays travel as ``{"dtype", "shape", "data"}``, ``data`` base64 (of objects: a list of it).
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tritonclient.utils import InferenceServerException

MODULES = {"http": http_client, "http_aio": http_aio, "grpc": grpc_client, "grpc_aio": grpc_aio}


def packed(array: Any) -> dict[str, Any]:
    if array.dtype == object:
        data: Any = [base64.b64encode(one).decode() for one in array.ravel()]
    else:
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def unpacked(given: dict[str, Any]) -> Any:
    if given["dtype"] == "object":
        array = np.empty(len(given["data"]), object)
        array[:] = [base64.b64decode(one) for one in given["data"]]
        return array.reshape(given["shape"])
    return np.frombuffer(base64.b64decode(given["data"]), given["dtype"]).reshape(given["shape"])


class Clients:
    def __init__(self, http: str, grpc: str) -> None:
        self._urls = {"http": http, "grpc": grpc}
        self._clients: dict[str, Any] = {}
        self._under_way: Any = None

    def client(self, kind: str) -> Any:
        if kind not in self._clients:
            self._clients[kind] = MODULES[kind].InferenceServerClient(self._urls[kind.split("_")[0]])
        return self._clients[kind]

    async def call(self, kind: str, call: str, args: dict[str, Any]) -> Any:
        if call in ("infer", "async_infer", "begin"):
            return await getattr(self, f"_{call}")(kind, self._requested(kind, args))
        if call == "stream":
            return await self._stream(kind, [self._requested(kind, one) for one in args["requests"]])
        if call == "leave":
            return await self._leave()
        if "files" in args:
            args = {**args, "files": {name: base64.b64decode(data) for name, data in args["files"].items()}}
        answer = getattr(self.client(kind), call)(**args)
        return plain(await answer if asyncio.iscoroutine(answer) else answer)

    def _requested(self, kind: str, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments of infer, as the client's own classes."""
        module, http = MODULES[kind], kind.startswith("http")
        inputs = []
        for one in args["inputs"]:
            array = unpacked(one["values"])
            made = module.InferInput(one["name"], one.get("shape", list(array.shape)), one["datatype"])
            if http:
                made.set_data_from_numpy(array, binary_data=one.get("binary", True))
            else:
                made.set_data_from_numpy(array)
            inputs.append(made)
        outputs = args.get("outputs")
        if outputs is not None:
            more = [{"binary_data": one.get("binary", True)} if http else {} for one in outputs]
            outputs = [
                module.InferRequestedOutput(one["name"], class_count=one.get("class_count", 0), **each)
                for one, each in zip(outputs, more, strict=True)
            ]
        return {**args, "inputs": inputs, "outputs": outputs}

    async def close(self) -> None:
        for kind, client in self._clients.items():
            closing = client.close()
            if kind.endswith("aio"):
                await closing

    async def _infer(self, kind: str, args: dict[str, Any]) -> Any:
        answer = self.client(kind).infer(**args)
        return told(await answer if asyncio.iscoroutine(answer) else answer)

    async def _async_infer(self, kind: str, args: dict[str, Any]) -> Any:
        """Of the clients that are not asyncio's own."""
        if kind == "http":
            return told(self.client(kind).async_infer(**args).get_result())
        results: queue.Queue[Any] = queue.Queue()
        self.client(kind).async_infer(callback=lambda result, error: results.put((result, error)), **args)
        result, error = results.get(timeout=60)
        if error is not None:
            raise error
        return told(result)

    async def _stream(self, kind: str, requests: list[dict[str, Any]]) -> list[Any]:
        """The answers of one stream, in the order in which they came."""
        client = self.client(kind)
        if kind == "grpc":
            results: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: results.put((result, error)))
            for one in requests:
                client.async_stream_infer(**one)
            came = [results.get(timeout=60) for _ in requests]
            client.stop_stream()
        else:

            async def request() -> Any:
                for one in requests:
                    yield one

            came = [one async for one in client.stream_infer(request())]
        return [told(result) if error is None else {"refused": said(error)} for result, error in came]

    async def _begin(self, kind: str, args: dict[str, Any]) -> None:
        """Ask, and do not wait."""
        if kind == "grpc":
            self._under_way = self.client(kind).async_infer(callback=lambda result, error: None, **args)
        else:
            self._under_way = asyncio.ensure_future(self.client(kind).infer(**args))
        await asyncio.sleep(0)

    async def _leave(self) -> None:
        self._under_way.cancel()
        if isinstance(self._under_way, asyncio.Task):
            await asyncio.wait([self._under_way])


def plain(answer: Any) -> Any:
    return MessageToDict(answer, preserving_proto_field_name=True) if isinstance(answer, Message) else answer


def told(result: Any) -> dict[str, Any]:
    """What an answer says, the same way for both protocols: ``response`` without its data, and ``tensors``."""
    response = result.get_response()
    if isinstance(response, Message):
        response = MessageToDict(response, preserving_proto_field_name=True)
        response.pop("raw_output_contents", None)
        response["parameters"] = {name: next(iter(v.values())) for name, v in response.get("parameters", {}).items()}
        for one in response["outputs"]:
            one["shape"] = [int(n) for n in one["shape"]]
    tensors = {one["name"]: packed(result.as_numpy(one["name"])) for one in response["outputs"]}
    for one in response["outputs"]:
        one["json"] = one.pop("data", None) is not None
        one.pop("parameters", None)
    return {"response": {"id": "", "parameters": {}, **response}, "tensors": tensors}


def said(error: InferenceServerException) -> dict[str, Any]:
    return {"status": error.status(), "message": error.message()}


async def main() -> None:
    clients = Clients(sys.argv[1], sys.argv[2])
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        requested = json.loads(line)
        try:
            seen = {"answer": await clients.call(requested["kind"], requested["call"], requested["args"])}
        except InferenceServerException as error:
            seen = {"refused": said(error)}
        except Exception as error:  # what the client itself cannot do: the test says whether that is right
            seen = {"crashed": f"{type(error).__name__}: {error}"}
        print(json.dumps(seen), flush=True)
    await clients.close()


if __name__ == "__main__":
    asyncio.run(main())
