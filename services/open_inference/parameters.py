"""Parameters of an infer request: those that Ekiben reads or the protocol reserves; others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ekiben.errors import BadInput, Unsupported
from models.catalog import family_row
from models.sam.auto_options import AutoOptions
from services.model_registry.index import ServableModel
from services.schemas.validation import check, short

MAX_INPUTS: Final = 16
MAX_OUTPUTS: Final = 64
MAX_PARAMETERS: Final = 64
"""More than any model has. Counted before each one is read."""

_RESERVED: Final = ("binary_data_output", "headers", "content_type")
"""Read by the transport, or meant for other servers."""
_SEQUENCE: Final = ("sequence_id", "sequence_start", "sequence_end")
_SHARED_MEMORY: Final = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, slots=True)
class Parameters:
    """``auto``: options of automatic masks, where any was given. ``prompts``: JSON text. ``names``: those given."""

    timeout_s: float | None = None
    store: bool = True
    flips: bool = False
    multimask: bool = True
    prompts: str | None = None
    auto: AutoOptions | None = None
    names: frozenset[str] = field(default=frozenset())

    def given(self, name: str) -> bool:
        """Whether the request has this parameter."""
        return name in self.names


def read_parameters(served: ServableModel, given: Mapping[str, Any], timeout_s: float | None) -> Parameters:
    """The checked parameters. BadInput names what is wrong or unknown; Unsupported an extension that is not offered."""
    refuse_unsupported(given)
    known = ("store", *family_row(served.family).parameters)
    names = {name for name in given if not _reserved(name)}
    for name in sorted(names - {"timeout", "priority"}):
        if name not in known:
            there_are = ", ".join((*known, "timeout"))
            raise BadInput(f"model {served.key.name} knows no parameter {short(name)!r}; there are {there_are}")
    options = {name: given[name] for name in names if name in AutoOptions.model_fields}
    prompts = given.get("prompts")
    if prompts is not None and not isinstance(prompts, str):
        raise BadInput("the parameter prompts is JSON, as text")
    return Parameters(
        timeout_s=_shorter(timeout_s, given.get("timeout")),
        store=_flag(given, "store", True),
        flips=_flag(given, "flips", False),
        multimask=_flag(given, "multimask", True),
        prompts=prompts,
        auto=check(AutoOptions, options) if options else None,
        names=frozenset(names),
    )


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """A requested output. ``class_count`` > 0: so many best classes as text instead of its values."""

    name: str
    class_count: int = 0


def check_counts(inputs: int, outputs: int, parameters: int) -> None:
    """BadInput for a request with no inputs, or more parts than any model has."""
    for count, most, what in (
        (inputs, MAX_INPUTS, "inputs"),
        (outputs, MAX_OUTPUTS, "outputs"),
        (parameters, MAX_PARAMETERS, "parameters"),
    ):
        if count > most:
            raise BadInput(f"the request has {count} {what}; at most {most} are read")
    if not inputs:
        raise BadInput("the request has no inputs")


def requested_outputs(name: Any, parameters: Mapping[str, Any]) -> RequestedOutput:
    """A requested output, by its name and parameters. BadInput, Unsupported."""
    refuse_unsupported(parameters)
    count = parameters.get("classification", 0)
    if not isinstance(name, str):
        raise BadInput("an output that is asked for has a name")
    if isinstance(count, bool) or not isinstance(count, int):
        raise BadInput("the parameter classification is the number of classes")
    return RequestedOutput(name, count)


def refuse_unsupported(given: Mapping[str, Any]) -> None:
    """Unsupported for parameters of the extensions shared memory and sequences."""
    for name in _SHARED_MEMORY:
        if name in given:
            raise Unsupported("shared memory is not offered: send the tensors with the request")
    for name in _SEQUENCE:
        if given.get(name) not in (None, 0, "", False):
            raise Unsupported("sequences are not offered: every request stands for itself")


def _reserved(name: str) -> bool:
    return name.startswith("triton_") or name in _RESERVED or name in _SEQUENCE


def _flag(given: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = given.get(name, otherwise)
    if isinstance(value, str) and value.lower() in ("true", "false"):  # some clients send every parameter as text
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadInput(f"the parameter {name} is true or false")
    return value


def _shorter(timeout_s: float | None, timeout: Any) -> float | None:
    """The shorter of the two, in seconds. ``timeout`` (extension schedule_policy) is in microseconds, 0 is none."""
    if timeout is None or timeout == 0:
        return timeout_s
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e15:
        raise BadInput("the parameter timeout is a number of microseconds")
    return min(timeout / 1e6, timeout_s) if timeout_s is not None else timeout / 1e6
