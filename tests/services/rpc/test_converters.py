"""ekiben.v1 and the JSON of /v1 have the same fields, of the same kinds, optional where the others may be null."""

from __future__ import annotations

import types
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from ekiben.errors import BadInput
from ekiben.v1 import ekiben_pb2 as pb
from models.sam.auto_options import AutoOptions
from models.sam.prompts import MAX_POINTS_IN_ALL, MAX_PROMPTS
from services.rest import async_requests, pagination
from services.rpc import converters
from services.rpc import jobs_servicer as rpc_jobs
from services.schemas import body, jobs, masks
from services.schemas.inference import ClassifyBody, ClassifyOptions, SegmentBody, SegmentOptions
from services.schemas.masks import AutoMasksOptions, CutoutsOptions, MasksOptions
from services.schemas.models import ModelBody

Kind = FieldDescriptor

ANSWERS: Final[dict[type[BaseModel], Any]] = {
    ClassifyBody: pb.ClassifyResponse,
    SegmentBody: pb.SegmentResponse,
    masks.MasksBody: pb.PromptMasksResponse,
    masks.AutoMasksBody: pb.AutoMasksResponse,
    masks.CutoutsBody: pb.CutoutsResponse,
    jobs.AcceptedBody: pb.SubmitJobResponse,
    jobs.JobBody: pb.Job,
    jobs.ItemBody: pb.JobItem,
    ModelBody: pb.Model,
    body.PageBody[jobs.JobBody]: pb.ListJobsResponse,
    body.PageBody[jobs.ItemBody]: pb.ListJobItemsResponse,
}

ONLY_IN_MESSAGES: Final = {
    "SegmentResponse.rendered": "over HTTP the body itself, chosen by Accept",
    "Cutout.png": "over HTTP the files of a ZIP, chosen by Accept",
    "SubmitJobResponse.replayed": "over HTTP the header Idempotency-Replayed",
}
OTHERWISE: Final = {
    "artifacts": "map",  # a field of each kind there, URL by kind here
    "segmentation": "Segmentation",  # any JSON there, a choice of forms here
    "point_coords": "Point2",  # lists in a list there, which protobuf has not
}
"""Fields whose kind is another: what they are here."""

REQUESTS: Final[dict[Any, type[BaseModel]]] = {
    pb.ClassifyRequest: ClassifyOptions,
    pb.SegmentRequest: SegmentOptions,
    pb.PromptMasksRequest: MasksOptions,
    pb.AutoMasksRequest: AutoMasksOptions,
    pb.CutoutsRequest: CutoutsOptions,
}
APART: Final = {"image", "image_id", "prompts"}
"""Image and prompts are messages: not options that may be set."""

_SCALARS: Final[dict[type, tuple[int, ...]]] = {
    bool: (Kind.TYPE_BOOL,),
    int: (Kind.TYPE_INT32, Kind.TYPE_INT64, Kind.TYPE_UINT32),
    float: (Kind.TYPE_DOUBLE,),
    str: (Kind.TYPE_STRING,),
    datetime: (Kind.TYPE_STRING,),  # as the JSON has it
}


@pytest.mark.parametrize("body", ANSWERS, ids=lambda body: body.__name__)
def test_answers_have_the_fields_of_the_json(body: type[BaseModel]) -> None:
    compare(body, ANSWERS[body].DESCRIPTOR)


def test_all_models_are_one_page() -> None:
    (items,) = pb.ListModelsResponse.DESCRIPTOR.fields
    assert (items.name, items.message_type, items.is_repeated) == ("items", pb.Model.DESCRIPTOR, True)


def test_no_exception_is_stale() -> None:
    for name in ONLY_IN_MESSAGES:
        message, _, field = name.partition(".")
        assert field in pb.DESCRIPTOR.message_types_by_name[message].fields_by_name, name


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda message: message.DESCRIPTOR.name)
def test_requests_have_the_options_of_http(request_type: Any) -> None:
    fields = {field.name: field for field in request_type.DESCRIPTOR.fields if field.name not in APART}
    known = {name: info for name, info in REQUESTS[request_type].model_fields.items() if name not in APART}
    assert fields.keys() == known.keys()
    for name, field in fields.items():
        # What is not set is told from what is set to 0, "" or false; and then the default is the options' own.
        assert field.has_presence and not field.is_repeated, name
        assert not known[name].is_required(), name
        check_kind(known[name].annotation, field, name)
    assert ("prompts" in request_type.DESCRIPTOR.fields_by_name) == ("prompts" in REQUESTS[request_type].model_fields)
    assert converters.options(request_type()) == {}


def test_automatic_masks_take_every_option_of_the_generator() -> None:
    for request_type in (pb.AutoMasksRequest, pb.CutoutsRequest):
        assert set(AutoOptions.model_fields) <= set(request_type.DESCRIPTOR.fields_by_name)


def test_options_are_what_was_set() -> None:
    image = pb.Picture(data=b"x")
    request = pb.AutoMasksRequest(image=image, model="", store=False, points_per_side=0, pred_iou_thresh=0.5)
    assert converters.options(request) == {"model": "", "store": False, "points_per_side": 0, "pred_iou_thresh": 0.5}


def test_prompts_are_worded_as_in_json() -> None:
    given = [
        pb.Prompt(points=[pb.Point(x=1.5, y=2, label=1), pb.Point(x=3, y=4)]),
        pb.Prompt(box=pb.Box(x0=0, y0=1, x1=20, y1=30.25), mask_input="some id"),
        pb.Prompt(),
    ]
    assert converters.prompts(pb.PromptMasksRequest(prompts=given)) == [
        {"points": [[1.5, 2, 1], [3, 4, 0]]},
        {"box": [0, 1, 20, 30.25], "mask_input": "some id"},
        {},
    ]
    assert converters.prompts(pb.PromptMasksRequest()) is None


def test_prompts_are_counted_before_they_are_read() -> None:
    most = pb.PromptMasksRequest(prompts=[pb.Prompt()] * MAX_PROMPTS)
    assert converters.prompts(most) == [{}] * MAX_PROMPTS
    most.prompts.add()
    with pytest.raises(BadInput, match=f"{MAX_PROMPTS} prompts"):
        converters.prompts(most)
    half = pb.Prompt(points=[pb.Point(x=1, y=2, label=1)] * (MAX_POINTS_IN_ALL // 2))
    both = converters.prompts(pb.CutoutsRequest(prompts=[half, half]))
    assert both == [{"points": [[1, 2, 1]] * (MAX_POINTS_IN_ALL // 2)}] * 2
    with pytest.raises(BadInput, match=f"{MAX_POINTS_IN_ALL} points"):
        converters.prompts(pb.PromptMasksRequest(prompts=[half, half, pb.Prompt(points=[pb.Point()])]))


def test_an_image_is_bytes_or_an_id() -> None:
    source = converters.source(pb.ClassifyRequest(image=pb.Picture(data=b"x", filename="a.png")))
    assert (source.data, source.image_id, source.filename) == (b"x", None, "a.png")
    source = converters.source(pb.ClassifyRequest(image=pb.Picture(image_id="an id")))
    assert (source.data, source.image_id, source.filename) == (None, "an id", None)
    for nothing in (None, pb.Picture(), pb.Picture(data=b"")):
        source = converters.source(pb.ClassifyRequest(image=nothing))
        assert (source.data, source.image_id) == (None, None)


def test_jobs_are_asked_for_with_the_same_bounds() -> None:
    over_http, here = async_requests.AsyncRequestOptions.model_fields, rpc_jobs.SubmitJobOptions.model_fields
    assert here.keys() == {*over_http, "idempotency_key"}  # a header over HTTP
    for name, info in over_http.items():
        assert (here[name].annotation, here[name].default) == (info.annotation, info.default), name
        assert here[name].metadata == info.metadata, name
    fields = pb.SubmitJobRequest.DESCRIPTOR.fields_by_name
    assert set(fields) == {"classify", "segment", "masks", "auto_masks", "cutouts", *here}
    for name in here:
        assert fields[name].has_presence
        check_kind(here[name].annotation, fields[name], name)
    for name in ("ListJobsRequest", "ListJobItemsRequest"):
        requested = pb.DESCRIPTOR.message_types_by_name[name].fields_by_name
        assert set(requested) - {"id"} == set(rpc_jobs.ListJobsOptions.model_fields) - (
            {"kind"} if "id" in requested else set()
        )


def test_pages_have_the_same_bounds() -> None:
    known = rpc_jobs.ListJobsOptions.model_fields
    for name, over_http, default in (("page", pagination.Page, 1), ("limit", pagination.Limit, 50)):
        query = get_args(over_http)[1]
        assert known[name].metadata == query.metadata, name
        assert known[name].default == default


# ---- comparing ----


def compare(body: type[BaseModel], message: Descriptor) -> None:
    there, here = body.model_fields, {field.name: field for field in message.fields}
    beside = {name for name in here if f"{message.name}.{name}" in ONLY_IN_MESSAGES}
    assert there.keys() == here.keys() - beside, message.name
    assert not beside & there.keys()
    for name, info in there.items():
        check_kind(info.annotation, here[name], f"{message.name}.{name}")


def check_kind(annotation: Any, field: FieldDescriptor, where: str) -> None:
    given = [one for one in parts(annotation) if one is not type(None)]
    nullable = len(given) < len(parts(annotation))
    if (other := OTHERWISE.get(field.name)) is not None:
        assert field.message_type is not None, where
        is_map = field.message_type.GetOptions().map_entry
        assert ("map" if is_map else field.message_type.name) == other, where
        return
    kinds = {kind_of(one) for one in given}
    assert len(kinds) == 1, where
    kind = kinds.pop()
    # A repeated field cannot be absent, a message always may be.
    assert not nullable or field.has_presence, f"{where} may be null"
    if get_origin(kind) in (list, tuple):
        inner = set(get_args(kind)) - {Ellipsis}
        assert field.is_repeated and len(inner) == 1, where
        check_one(inner.pop(), field, where)
    elif get_origin(kind) is dict and get_args(kind)[1] is Any:
        assert field.message_type is Struct.DESCRIPTOR and not field.is_repeated, where
    elif get_origin(kind) is dict:
        assert field.message_type.GetOptions().map_entry, where
        entry = field.message_type.fields_by_name
        check_one(get_args(kind)[0], entry["key"], where)
        check_one(get_args(kind)[1], entry["value"], where)
    else:
        assert not field.is_repeated, where
        check_one(kind, field, where)
        # Proto's zero stands for what is not there: a plain field that may be null would be 0 or "".
        assert nullable or field.message_type is not None or not optional_without_reason(field), where


def check_one(kind: Any, field: FieldDescriptor, where: str) -> None:
    kind = kind_of(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        assert field.message_type is not None, where
        compare(kind, field.message_type)
    else:
        assert field.type in _SCALARS[kind], where


def optional_without_reason(field: FieldDescriptor) -> bool:
    """Of an answer; in requests every option may be absent."""
    return bool(field.has_presence and not field.containing_type.name.endswith("Request"))


def parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def kind_of(annotation: Any) -> Any:
    """``str`` for a literal of texts; else what it is."""
    if get_origin(annotation) is Literal:
        assert all(isinstance(one, str) for one in get_args(annotation))
        return str
    if get_origin(annotation) is Annotated:  # a text whose values are listed elsewhere
        return get_args(annotation)[0]
    return annotation
