"""Valid requests for every path and method of an OpenAPI document, and the mutations of them."""

from __future__ import annotations

import base64
import json
import random
import struct
from dataclasses import dataclass
from typing import Any

from tests.fuzz import archive_files, hostile, medical_files, raster_files
from tests.fuzz.drafts import FORM_QUIRKS, Call, Draft, Part, call_of
from tests.fuzz.known import MODELS, SPARE, SPARE_VERSIONS, Known

OPERATION_OF = {
    "/v1/classify": "classify", "/v1/segment": "segment", "/v1/masks": "masks", "/v1/masks/auto": "auto_masks",
    "/v1/cutouts": "cutouts", "/classify": "classify", "/segment": "segment", "/masks": "masks",
    "/auto_masks": "auto_masks", "/cutouts": "cutouts",
}  # fmt: skip

WEIGHTS = {
    "POST /v1/classify": 14, "POST /v1/segment": 10, "POST /v1/masks": 8, "POST /v1/masks/auto": 1.2,
    "POST /v1/cutouts": 3,
    "POST /classify": 4, "POST /segment": 4, "POST /masks": 3, "POST /auto_masks": 0.4, "POST /cutouts": 1,
    "POST /v1/images": 8, "POST /v1/batches": 0.5, "POST /v1/datasets": 0.15, "POST /v1/models": 0.2,
    "POST /v1/trainings": 1,
    "POST /v2/models/{model}/infer": 8, "POST /v2/models/{model}/versions/{version}/infer": 6,
    "GET /v1/jobs/{id}/events": 0.3, "POST /v1/jobs/{id}/retry": 0.3, "GET /metrics": 0.2, "GET /healthz": 0.3,
    "GET /v1/datasets/{id}/preview": 0.5, "GET /v1/models/{name}/versions/{version}/files": 0.5,
    "DELETE /v1/datasets/{id}": 0.2, "POST /v2/repository/{repository}/index": 0.2,
    "POST /v2/repository/{repository}/models/{model}/load": 0.2,
    "POST /v2/repository/{repository}/models/{model}/unload": 0.2,
}  # fmt: skip
"""How often a route is asked, where not once: what costs seconds is asked seldom."""

FEW_POINTS = ("preset", "points_per_side", "crop_n_layers")


@dataclass(frozen=True)
class Route:
    name: str
    method: str
    path: str
    parameters: tuple[dict[str, Any], ...]
    content: dict[str, dict[str, Any]]


class HttpRequests:
    """Makes requests from ``document``, an OpenAPI document, about what is ``known``."""

    def __init__(self, document: dict[str, Any], known: Known) -> None:
        self._document = document
        self.known = known
        self.routes = [
            Route(
                f"{method.upper()} {path}",
                method.upper(),
                path,
                tuple(operation.get("parameters", ())),
                {kind: self._resolved(media.get("schema", {})) for kind, media in _content(operation).items()},
            )
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self.weights = [WEIGHTS.get(route.name, 1.0) for route in self.routes]

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            found: dict[str, Any] = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            return found
        return schema

    def call(self, index: int, rng: random.Random, route: Route | None = None) -> Call:
        """Request ``index``, of ``route`` or of any: valid, then with up to three mutations."""
        route = route or rng.choices(self.routes, self.weights)[0]
        draft = self.valid(route, rng)
        for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 2, 3))):
            mutate(draft, rng)
        return call_of(draft, index, rng)

    def valid(self, route: Route, rng: random.Random) -> Draft:
        """A request that is right, but for a file that may be hostile."""
        draft = Draft(route.name, route.method, [])
        operation = OPERATION_OF.get(route.path, "")
        for segment in route.path.strip("/").split("/"):
            plain = not segment.startswith("{")
            draft.segments.append(segment if plain else self._path_value(route, segment[1:-1], rng))
        job = bool(operation) and rng.random() < 0.05
        options: dict[str, Any] = {}
        for parameter in route.parameters:
            name, schema = parameter["name"], parameter["schema"]
            if parameter["in"] == "query":
                late = operation and name in ("priority", "timeout_s", "webhook")
                wanted = parameter.get("required") or rng.random() < 0.2 or name in ("model", "store")
                wanted = wanted or (name == "points_per_side" and operation in ("auto_masks", "cutouts"))
                if wanted and not (late and not job) and name != "image_id":
                    options[name] = self._option(name, schema, operation, rng)
        if options.get("flips") or options.get("probability"):
            options["model"] = "cells"
        if operation in ("auto_masks", "cutouts"):
            options.pop("preset", None)
            options.pop("crop_n_layers", None)
        if operation in ("masks", "cutouts") and rng.random() < 0.9:
            options["prompts"] = json.dumps(self._prompts(rng))
        if job:
            draft.headers.append(("Prefer", "respond-async"))
            if rng.random() < 0.3:
                draft.headers.append(("Idempotency-Key", f"key-{rng.randrange(50)}"))
        if route.path == "/v1/models" and route.method == "POST":
            options |= {"labels": "a\nb\nc", "name": archive_files.unused(rng)}
            if rng.random() < 0.8:
                options["task"] = "classify"
            options.pop("output_name", None)
        if route.path.endswith("/compare"):
            options["ids"] = ",".join(self.known.one("training", rng) for _ in range(rng.choice((2, 2, 3))))
        self._fill(draft, route, options, operation, rng)
        if rng.random() < 0.05:
            draft.headers.append(_header(rng))
        return draft

    def _fill(self, draft: Draft, route: Route, options: dict[str, Any], operation: str, rng: random.Random) -> None:
        """Options into the query or the form, and the body."""
        text = [(name, _text(value)) for name, value in options.items() if value is not None]
        kinds = list(route.content)
        raw = [kind for kind in kinds if kind.startswith(("image/", "application/dicom", "application/x-nifti"))]
        if "/infer" in route.path:
            draft.query = text
            self._inference(draft, rng)
        elif operation and "image_id" in {p["name"] for p in route.parameters} and route.path.startswith("/v1"):
            where = rng.random()
            if where < 0.3:
                draft.query = [*text, ("image_id", self.known.one("image", rng))]
                return
            self._image_body(draft, text, raw, "file", rng)
        elif operation:
            self._image_body(draft, text, [], "image", rng)
        elif route.name == "POST /v1/images":
            self._image_body(draft, text, raw, "file", rng)
        elif route.name == "POST /v1/models":
            data = archive_files.onnx(rng)
            if rng.random() < 0.5:
                draft.query, draft.raw = text, data
                draft.headers.append(("Content-Type", "application/octet-stream"))
            else:
                draft.parts = [Part(name, value.encode()) for name, value in text] + [Part("file", data, "m.onnx")]
        elif route.name == "POST /v1/batches":
            self._batch(draft, rng)
        elif route.name == "POST /v1/datasets":
            self._dataset(draft, rng)
        else:
            draft.query = text
            if "application/json" in route.content:
                draft.tree, draft.has_tree = self._json(route, rng), True

    def _image_body(
        self, draft: Draft, text: list[tuple[str, str]], raw: list[str], name: str, rng: random.Random
    ) -> None:
        data = archive_files.image_file(rng)
        if raw and rng.random() < 0.5:
            draft.query, draft.raw = text, data
            draft.headers.append(("Content-Type", rng.choice(raw)))
            return
        at = rng.randrange(len(text) + 1)
        fields = [Part(key, value.encode("utf-8", "replace")) for key, value in text]
        if rng.random() < 0.3:
            fields, draft.query = [], text
        file = Part(name, data, rng.choice(("x.png", "x.jpg", "é.tif")), [("Content-Type", "image/png")])
        draft.parts = [*fields[:at], file, *fields[at:]]

    def _batch(self, draft: Draft, rng: random.Random) -> None:
        operation = rng.choice(sorted(MODELS))
        parameters: dict[str, Any] = {"model": MODELS[operation]}
        if operation in ("auto_masks", "cutouts"):
            parameters["points_per_side"] = 2
        if operation == "masks":
            parameters["prompts"] = self._prompts(rng)
        tree: dict[str, Any] = {"operation": operation, "parameters": parameters, "store": rng.random() < 0.3}
        how = rng.random()
        if how < 0.4:
            draft.tree = {**tree, "image_ids": [self.known.one("image", rng) for _ in range(rng.choice((1, 2, 3)))]}
            draft.has_tree = True
            return
        fields = [Part(name, _text(value).encode()) for name, value in tree.items()]
        if how < 0.7:
            files = [Part("files", archive_files.image_file(rng), f"{n}.png") for n in range(rng.choice((1, 2)))]
        else:
            files = [Part("archive", archive_files.archive(rng), "a.zip")]
        draft.parts = [*fields, *files]

    def _dataset(self, draft: Draft, rng: random.Random) -> None:
        if rng.random() < 0.5:
            samples = [self._sample(rng) for _ in range(rng.choice((1, 2, 3)))]
            draft.tree, draft.has_tree = {"name": "corrected", "samples": samples}, True
        else:
            file = Part("file", archive_files.archive(rng, images=False), "d.zip")
            draft.parts = [Part("name", b"made"), file]

    def _sample(self, rng: random.Random) -> dict[str, Any]:
        size = [16, 24]
        counts = rng.choice(
            ([384], [0, 384], [100, 100, 184], [1] * 384, [383, 1], [5, 2**31], [-1, 385], [384, 0, 0, 0])
        )
        mask: Any = {"size": size, "counts": counts}
        if rng.random() < 0.2:
            mask = {
                "size": [hostile.integer(rng), hostile.integer(rng)],
                "counts": [hostile.integer(rng) for _ in range(3)],
            }
        elif rng.random() < 0.3:
            mask = {"size": size, "counts": rng.choice(("0", "X5b", "~" * 100, "oooooooo", "\x7f", "é"))}
        elif rng.random() < 0.2:
            mask = self.known.one("artifact", rng)
        return {
            "image_id": self.known.one("image", rng),
            "mask": mask,
            "class_name": rng.choice(("cell", "foreground")),
        }

    def _prompts(self, rng: random.Random) -> list[dict[str, Any]]:
        def place() -> float:
            return (
                rng.choice((rng.uniform(0, 24), rng.uniform(0, 24), hostile.number(rng))) if rng.random() < 0.2 else 8
            )

        made = []
        for _ in range(rng.choice((1, 1, 2, 5))):
            prompt: dict[str, Any] = {}
            if rng.random() < 0.7:
                prompt["points"] = [[place(), place(), rng.randrange(2)] for _ in range(rng.choice((1, 2, 3)))]
            if not prompt or rng.random() < 0.4:
                prompt["box"] = [1, 2, rng.choice((10, 12, place())), rng.choice((10, 14.5, place()))]
            if rng.random() < 0.1:
                prompt["mask_input"] = self.known.one("mask", rng)
            made.append(prompt)
        return made

    def _path_value(self, route: Route, name: str, rng: random.Random) -> str:
        removes = route.method == "DELETE" or route.path.endswith(("/cancel", "/retry"))
        if name == "id":
            kind = route.path.split("/")[2].rstrip("s")
            return self.known.one(kind, rng, passing=removes and rng.random() < 0.9)
        if name in ("name", "model"):
            if removes or route.path.endswith("/activate"):
                return SPARE
            return rng.choice(["colours", "areas", "sam_toy", "cells"])
        if name == "version":
            return str(rng.randrange(1, SPARE_VERSIONS + 1)) if removes else "1"
        return "0" if name == "position" else "ekiben"

    def _option(self, name: str, schema: dict[str, Any], operation: str, rng: random.Random) -> Any:
        if name == "model":
            if operation == "segment":
                return rng.choices(("areas", "cells", "nuclei_unet"), (14, 5, 1))[0]
            return MODELS.get(operation, "areas")
        if name == "store":
            return rng.random() < 0.25
        if name == "range":
            return rng.choice(("0,255", "0,4095", "-100,500.5"))
        if name in ("mean", "std"):
            return "0.5,0.5,0.5"
        if name == "size":
            return "8,8"
        if name == "palette":
            return "0,0,0\n255,0,0\n0,255,0"
        if name == "version" or name.endswith("_id"):
            return "1" if name == "version" else self.known.one(name[:-3], rng)
        if name == "crop":
            return rng.choice((0.875, 1))
        if name == "top_k":
            return rng.randrange(1, 5)
        if name == "timeout_s":
            return rng.choice((1, 30.5, 2592000))
        if name == "points_per_side":
            return rng.choice((1, 2, 3))
        if name == "points_per_batch":
            return rng.choice((1, 64, 1024))
        if name == "webhook":
            return "http://127.0.0.1:9/hook"
        if name == "padding_px":
            return rng.choice((0, 1, 7, 100))
        return self._value(schema, rng)

    def _value(self, schema: dict[str, Any], rng: random.Random, depth: int = 0) -> Any:
        """A value that ``schema`` allows: often one at its bounds."""
        schema = self._resolved(schema)
        for choice in ("enum", "examples"):
            if schema.get(choice):
                return rng.choice(schema[choice])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self._value(rng.choice(schema[several]), rng, depth)
        kind = schema.get("type")
        if kind in ("integer", "number"):
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 100))
            if rng.random() < 0.4:
                value = rng.choice((low, high, schema.get("default", low)))
            else:
                value = rng.uniform(low, high)
            return (
                value if kind == "number" else int(value) // schema.get("multipleOf", 1) * schema.get("multipleOf", 1)
            )
        if kind == "boolean":
            return rng.random() < 0.5
        if kind == "array":
            count = max(schema.get("minItems", 0), rng.choice((0, 1, 2)))
            return [self._value(schema.get("items", {}), rng, depth + 1) for _ in range(count)]
        if kind == "object":
            return self._object(schema, rng, depth)
        return "x" * max(1, schema.get("minLength", 1)) if kind == "string" else None

    def _object(self, schema: dict[str, Any], rng: random.Random, depth: int = 0) -> dict[str, Any]:
        required = schema.get("required", ())
        made = {}
        for name, one in schema.get("properties", {}).items():
            if name in required or (depth < 3 and rng.random() < 0.3):
                made[name] = self._value(one, rng, depth + 1)
        return made

    def _json(self, route: Route, rng: random.Random) -> Any:
        tree = self._object(route.content["application/json"], rng)
        if route.path == "/v1/trainings":
            tree |= {"dataset_id": self.known.one("dataset", rng), "name": "trained"}
            tree.pop("webhook", None)
            tree.pop("start_from", None)
        if route.path.endswith("/activate"):
            tree = {"version": rng.randrange(1, SPARE_VERSIONS + 1)}
        if "/repository/" in route.path and "parameters" in tree:
            tree["parameters"] = rng.choice(({}, {"unload_dependents": True}))
        return tree

    def _inference(self, draft: Draft, rng: random.Random) -> None:
        """The Open Inference Protocol: tensors as JSON or as bytes after it."""
        model = draft.segments[2]
        tree, tensors = tensor_request(model, rng)
        binary = rng.random() < 0.6
        body = b""
        for tensor, data in zip(tree["inputs"], tensors, strict=True):
            if binary and isinstance(data, bytes):
                tensor["parameters"] = {"binary_data_size": len(data)}
                body += data
            elif isinstance(data, bytes):
                tensor["datatype"], tensor["shape"] = "BYTES", [1]
                tensor["parameters"] = {"content_type": "base64"}
                tensor["data"] = [base64.b64encode(data[4:]).decode()]
            else:
                tensor["data"] = data
        if rng.random() < 0.12:
            tree = hostile.changed(tree, rng)
        head = json.dumps(tree).encode()
        if binary:
            said = len(head) if rng.random() < 0.95 else hostile.integer(rng)
            draft.headers.append(("Inference-Header-Content-Length", str(said)))
            draft.headers.append(("Content-Type", "application/octet-stream"))
            draft.raw = head + body
        else:
            draft.tree, draft.has_tree = tree, True


def tensor_request(model: str, rng: random.Random) -> tuple[dict[str, Any], list[Any]]:
    """An infer request without data, and the data of its inputs: raw bytes of a tensor, or a list."""
    how = rng.random()
    inputs: list[dict[str, Any]]
    data: list[Any]
    if model == "sam_toy" or how < 0.4:
        image = archive_files.image_file(rng)
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [1]}]
        data = [struct.pack("<I", len(image)) + image]
    elif how < 0.7:
        height, width = rng.choice((1, 4, 32)), rng.choice((1, 4, 32))
        inputs = [{"name": "image", "datatype": "UINT8", "shape": [height, width, 3]}]
        data = [rng.randbytes(height * width * 3)]
    else:
        inputs = [{"name": rng.choice(("image", "input")), "datatype": "FP32", "shape": [1, 3, 32, 32]}]
        data = [struct.pack("<f", rng.choice((0.5, 1.0, -1e30, 3e38, 1e-40))) * 3072]
    if model == "sam_toy":
        corners = [1.0, 1.0, rng.choice((9.0, hostile.number(rng))), 9.0]
        inputs.append({"name": "boxes", "datatype": "FP32", "shape": [1, 4]})
        data.append([c if abs(c) < 1e30 else 0.0 for c in map(float, corners)])
    if rng.random() < 0.15:
        one = rng.choice(inputs)
        one["shape"] = rng.choice(
            ([], [0], [-1], [1], [2], [1, 1], [2**31], [2**63], [2**31, 2**31, 4], [1] * 40, [0, 3, 32, 32])
        )
    if rng.random() < 0.1:
        rng.choice(inputs)["datatype"] = rng.choice(
            ("FP16", "FP64", "BF16", "INT8", "BOOL", "UINT8", "BYTES", "INT64", "FP8", "")
        )
    tree: dict[str, Any] = {"inputs": inputs, "parameters": {}}
    if inputs[0]["datatype"] == "BYTES":
        tree["parameters"]["store"] = rng.random() < 0.2
    if model == "sam_toy" and rng.random() < 0.2:
        tree["parameters"] |= {"points_per_side": rng.choice((1, 2))}
        del inputs[1:], data[1:]
    if rng.random() < 0.2:
        tree["parameters"]["timeout"] = rng.choice((1, 10**6, 10**7, 10**7, 0, -1, 2**63))
    if rng.random() < 0.2:
        names = ("probs", "class_map", "masks", "output", "iou_predictions", "low_res_masks", "nope")
        tree["outputs"] = [{"name": rng.choice(names), "parameters": {"classification": hostile.integer(rng)}}]
        if rng.random() < 0.5:
            tree["outputs"][0]["parameters"] = {"binary_data": rng.random() < 0.5}
    return tree, data


def _content(operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = operation.get("requestBody", {}).get("content", {})
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


HEADERS: dict[str, tuple[str, ...]] = {
    "Prefer": (
        "respond-async", "respond-async, wait=0", "wait=10", 'respond-async=""', ";;;", '"', "respond-async;x=1", "x=y",
    ),
    "Range": (
        "bytes=0-0", "bytes=-1", "bytes=5-2", "bytes=0-18446744073709551616", "bytes=" + "0-1," * 200, "lines=1-2",
        "bytes=", "bytes=-0",
    ),
    "If-None-Match": ("*", '"x"', "W/*", ",", '"' + "a" * 3000, 'W/"x", "y"'),
    "If-Range": ('"x"', "Sat, 01 Jan 2000 00:00:00 GMT"),
    "If-Modified-Since": ("Sat, 01 Jan 2000 00:00:00 GMT", "never", "Sat, 99 Jan 99999 00:00:00 GMT"),
    "Idempotency-Key": ("k", "k" * 255, "k" * 256, "é", "", "a b", "key-1"),
    "Content-Encoding": ("gzip", "identity", "br", "deflate", "gzip, gzip", "", "x"),
    "Accept": (
        "*/*", "image/png", "application/zip", "application/x-ndjson", "text/html", "", ";q=", "a/b;q=nan",
        "image/*;q=1e308", "*/*;q=-1", "," * 900,
    ),
    "Accept-Encoding": ("gzip", "identity;q=0", "*;q=0", "br"),
    "Content-Type": (
        "", "text/plain", "application/json", "application/json; charset=utf-7", "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 300, 'multipart/form-data; boundary="fuzz7d93b1c2"',
        "multipart/mixed; boundary=fuzz7d93b1c2",
        "image/png", "image/svg+xml", "application/zip", "application/octet-stream",
        "application/x-www-form-urlencoded", "/", "a/b;c",
        "application/dicom", "application/x-nifti", "é/é",
    ),
    "X-Request-ID": ("", "x" * 4000, "a b", "é", "1"),
    "Last-Event-ID": ("0", "-1", "nan", "9223372036854775808", "", "x"),
    "Expect": ("100-continue", "200-ok"),
    "Inference-Header-Content-Length": ("0", "-1", "x", "9" * 30, "1e3", "", "\uff11"),
    "Accept-Language": ("de", "x" * 500),
    "Cookie": ("a=b; " * 100,),
    "Origin": ("null", "http://x"),
    "Host": ("", "x:99999", "[::1"),
    "X-Forwarded-For": ("1.2.3.4", "x", "é"),
}  # fmt: skip


def _header(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(sorted(HEADERS))
    return name, rng.choice(HEADERS[name]) if rng.random() < 0.9 else hostile.word(rng)


def mutate(draft: Draft, rng: random.Random) -> None:
    """Change one thing of ``draft``, and note what."""
    kinds = ["header"]
    kinds += ["query"] * (4 if draft.query else 1)
    if draft.parts:
        kinds += ["part"] * 6 + ["form"]
    if draft.has_tree:
        kinds += ["tree"] * 8
    if draft.raw:
        kinds += ["raw"]
    if any(segment not in draft.route for segment in draft.segments):
        kinds += ["path"]
    if rng.random() < 0.02:
        kinds = ["method", "path"]
    kind = rng.choice(kinds)
    draft.notes.append(kind)
    if kind == "header":
        name, value = _header(rng)
        kept = [] if rng.random() < 0.1 else [one for one in draft.headers if one[0].lower() != name.lower()]
        draft.headers = [*kept, (name, value)]
    elif kind == "query":
        _pairs(draft.query, rng)
    elif kind == "part":
        _part(draft, rng)
    elif kind == "form":
        draft.form_quirk = rng.choice(FORM_QUIRKS)
        if draft.parts and rng.random() < 0.3:
            quirk = rng.choice(
                (("Content-Transfer-Encoding", "base64"), ("Content-Type", hostile.word(rng)), ("X", "y"))
            )
            rng.choice(draft.parts).headers.append(quirk)
    elif kind == "tree":
        draft.tree = hostile.changed(draft.tree, rng)
    elif kind == "raw" and draft.raw:
        draft.raw = rng.choice((draft.raw[: len(draft.raw) // 2], draft.raw + b"\0" * 99, b"", draft.raw + draft.raw))
    elif kind == "path":
        at = rng.randrange(len(draft.segments)) if rng.random() < 0.2 else len(draft.segments) - 1
        old = draft.segments[at]
        new = (
            hostile.word(rng)[:200],
            old + "%00",
            old.upper(),
            old + "/",
            "%2e%2e",
            old + "%2F..",
            old[:-1],
            old + " ",
            "%ff",
        )
        draft.segments[at] = rng.choice(new)
    else:
        draft.method = rng.choice(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"))
        if draft.method == "HEAD":
            draft.parts = draft.raw = None
            draft.has_tree = False


def _pairs(pairs: list[tuple[str, str]], rng: random.Random) -> None:
    if not pairs or rng.random() < 0.1:
        extra = ("page", "limit", "model", "store", "image_id", "version", "after", "state", "x", "webhook")
        pairs.append((rng.choice(extra), hostile.word(rng)))
        return
    at = rng.randrange(len(pairs))
    name, value = pairs[at]
    kind = rng.random()
    if kind < 0.65:
        pairs[at] = (name, _text_mutation(value, rng))
    elif kind < 0.8:
        pairs.append((name, value if rng.random() < 0.5 else _text_mutation(value, rng)))
    elif kind < 0.9:
        del pairs[at]
    else:
        pairs[at] = (rng.choice((name.upper(), name + "[]", name + " ", hostile.word(rng)[:50])), value)


def _text_mutation(value: str, rng: random.Random) -> str:
    """Another value as text; JSON is changed inside."""
    if value[:1] in "[{" and rng.random() < 0.85:
        try:
            tree = hostile.changed(json.loads(value), rng)
        except ValueError:
            return hostile.word(rng)
        return json.dumps(tree, ensure_ascii=rng.random() < 0.7)
    if value.replace(".", "").replace("-", "").isdigit() and rng.random() < 0.7:
        return str(hostile.number(rng))
    return (
        hostile.word(rng)
        if rng.random() < 0.8
        else rng.choice((value + " ", value.upper(), " " + value, value * 2, value[:-1]))
    )


def _part(draft: Draft, rng: random.Random) -> None:
    parts = draft.parts or []
    at = rng.randrange(len(parts)) if parts else 0
    kind = rng.random()
    if not parts or kind < 0.1:
        parts.append(
            Part(
                hostile.word(rng)[:80] if rng.random() < 0.5 else "store", hostile.word(rng).encode("utf-8", "replace")
            )
        )
    elif kind < 0.6 and parts[at].filename is None:
        old = parts[at].data.decode("utf-8", "replace")
        parts[at].data = _text_mutation(old, rng).encode("utf-8", "surrogatepass")
    elif kind < 0.6:
        makers = {
            **raster_files.MAKERS,
            **medical_files.MAKERS,
            "onnx": archive_files.onnx,
            "archive": archive_files.archive,
        }
        parts[at].data = makers[rng.choice(sorted(makers))](rng)
    elif kind < 0.7:
        parts.append(Part(parts[at].name, parts[at].data, parts[at].filename))
    elif kind < 0.77:
        del parts[at]
    elif kind < 0.87:
        parts[at].filename = rng.choice((hostile.word(rng)[:300], None, "x.nii.gz", "x.dcm", "x.zip", "..", "a/b.png"))
    elif kind < 0.94:
        parts[at].name = rng.choice(("file", "image", "files", "archive", hostile.word(rng)[:80]))
    else:
        rng.shuffle(parts)
    draft.parts = parts
