"""Look-ups of models and versions inside a transaction, and the refusals when there is none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlmodel import Session, col, select

from db.tables import Model, ModelVersion
from ekiben.errors import BadInput, NotFound, Refusal, Unavailable

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Listed:
    """A model and its versions, newest first. Without versions ``model.unavailable_reason`` says why."""

    model: Model
    versions: tuple[ModelVersion, ...]

    @property
    def active(self) -> ModelVersion | None:
        """The active version, if there is one."""
        return next((version for version in self.versions if version.active), None)


def check_name(name: str) -> None:
    """BadInput for a name that a model cannot have: it becomes part of blob keys and folders."""
    if not NAME.fullmatch(name):
        raise BadInput("a model's name is 1 to 63 of a-z, 0-9, - and _, and starts with a letter or digit")


def location(owner: str, name: str, version: int) -> str:
    """The blob key prefix of a version's files."""
    return f"models/{name}/{version}/" if owner == "local" else f"models/{owner}/{name}/{version}/"


def listed(session: Session, owner: str) -> list[Listed]:
    """Every model that has a version or a reason why it has none, by name.

    A name of which the first version is being published has neither.
    """
    versions: dict[str, list[ModelVersion]] = defaultdict(list)
    newest = col(ModelVersion.version).desc()
    for version in session.exec(select(ModelVersion).where(ModelVersion.owner == owner).order_by(newest)):
        versions[version.name].append(version)
    models = session.exec(select(Model).where(Model.owner == owner).order_by(col(Model.name)))
    every = [Listed(model, tuple(versions[model.name])) for model in models]
    return [each for each in every if each.versions or each.model.unavailable_reason is not None]


def model_of(session: Session, owner: str, name: str) -> Model | None:
    """The row of a name, listed or not; None when there is none."""
    return session.exec(select(Model).where(Model.owner == owner, Model.name == name)).first()


def versions_of(session: Session, owner: str, name: str) -> list[ModelVersion]:
    """The versions of a name, newest first."""
    chosen = select(ModelVersion).where(ModelVersion.owner == owner, ModelVersion.name == name)
    return list(session.exec(chosen.order_by(col(ModelVersion.version).desc())))


def active_of(session: Session, owner: str, name: str) -> ModelVersion | None:
    """The active version of a name, if there is one."""
    chosen = select(ModelVersion).where(ModelVersion.owner == owner, ModelVersion.name == name)
    return session.exec(chosen.where(col(ModelVersion.active))).first()


def version_of(session: Session, owner: str, name: str, version: int) -> ModelVersion:
    """One version of a name. NotFound names those that exist; else the refusal of ``absent``."""
    versions = versions_of(session, owner, name)
    for each in versions:
        if each.version == version:
            return each
    if not versions:
        raise absent(session, owner, name)
    raise NotFound(f"model {name} has no version {version}; there is: {numbers(versions)}")


def expected(session: Session, owner: str, name: str) -> Model:
    """The model of a name. The refusal of ``absent`` when it is not listed."""
    model = model_of(session, owner, name)
    if model is None or (model.unavailable_reason is None and not versions_of(session, owner, name)):
        raise absent(session, owner, name)
    return model


def absent(session: Session, owner: str, name: str) -> Refusal:
    """The refusal for a name without a version: Unavailable with the reason, or NotFound with the models there are."""
    model = model_of(session, owner, name)
    if model is not None and model.unavailable_reason is not None:
        return Unavailable(f"model {name} is not available: {model.unavailable_reason}")
    names = ", ".join(each.model.name for each in listed(session, owner))
    # The name comes from outside and may be anything.
    shown = name if NAME.fullmatch(name) else "of that name"
    return NotFound(f"there is no model {shown}; there is: {names or 'none yet'}")


def numbers(versions: Iterable[ModelVersion]) -> str:
    """The version numbers in ascending order, separated by commas, for messages."""
    return ", ".join(str(number) for number in sorted(each.version for each in versions))
