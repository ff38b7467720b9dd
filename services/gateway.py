"""The gateway: the BentoML service that hosts Ekiben's HTTP application. ``bentoml serve services.gateway:Gateway``.

BentoML imports this module in its supervising process too, which never answers a request; so what a worker needs is
imported when a worker starts (in ``front``, ``open`` and the endpoints). Over HTTP the endpoints are answered by
services/routes/bento.py, for the reasons given there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from bentoml.validators import ContentType
from pydantic import Field

from ekiben import logs
from ekiben.settings import Settings
from services import defaults
from services.carried import CarriedModels
from services.hosting import HOSTING, App, FrontedService, access_line

if TYPE_CHECKING:
    from services.platform import Platform
    from services.vision import Source

SETTINGS = Settings.from_environ()


class GatewayService(FrontedService):
    @staticmethod
    def front(inner: App) -> App:
        from services.app import APP
        from services.front import Front

        access = access_line if SETTINGS.access_log else None
        # What waits for a slot is a quarter of what may be held: the rest is being sent, computed or stored.
        return Front(inner, APP, access, max_body_bytes=4 * SETTINGS.queue_mb * 1_000_000)


@bentoml.service(name="ekiben", service_class=GatewayService, workers=SETTINGS.gateways, **HOSTING)
class Gateway:
    """Classify and segment pictures; the HTTP API under /v1 is this service's own application (see /docs)."""

    carried = CarriedModels()
    platform: Platform

    def __init__(self) -> None:
        logs.configure(SETTINGS.log_level)

    @bentoml.on_startup
    async def open(self) -> None:
        from services.app import APP
        from services.bento_models import carried_folder
        from services.platform import Platform

        bento = Gateway.bento  # type: ignore[attr-defined]
        self.platform = await Platform.start(SETTINGS, carried_folder(bento))
        APP.state.platform = self.platform
        logging.getLogger(__name__).info("ready", extra={"topology": SETTINGS.topology})

    @bentoml.on_shutdown
    async def close(self) -> None:
        await self.platform.stop()

    @bentoml.api(route="/classify")
    async def classify(
        self,
        image: Annotated[Path, ContentType("image/*")],
        model: str = defaults.CLASSIFY,
        version: Annotated[int, Field(ge=1)] | None = None,
        top_k: Annotated[int, Field(ge=1)] | None = None,
        store: bool = True,
    ) -> dict[str, Any]:
        """The best classes of a picture; the same answer as POST /v1/classify."""
        vision = self.platform.vision
        return (await vision.classify(_source(image), model=model, version=version, top_k=top_k, store=store)).body

    @bentoml.api(route="/segment")
    async def segment(
        self,
        image: Annotated[Path, ContentType("image/*")],
        model: str = defaults.SEGMENT,
        version: Annotated[int, Field(ge=1)] | None = None,
        store: bool = True,
    ) -> dict[str, Any]:
        """The class of every pixel; the same answer as POST /v1/segment."""
        vision = self.platform.vision
        return (await vision.segment(_source(image), model=model, version=version, store=store)).body


def _source(image: Path) -> Source:
    from services.vision import Source

    return Source(image.read_bytes(), image.name)
