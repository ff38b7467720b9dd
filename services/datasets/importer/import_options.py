"""The options of an import: ``import.json`` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from models.artifact import MAX_MASK_CLASSES

ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class DatasetImportOptions(BaseModel):
    """Where the files come from, and what their mask values mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    source: Literal["upload", "url", "pairs"] = Field(
        description="upload: upload.zip lies in the folder; pairs: pairs/images and pairs/masks do; url: it is fetched."
    )
    url: str | None = None
    classes: list[ClassName] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_MASK_CLASSES,
        description="Names by class index; the first is the background.",
    )
    background: list[int] | None = Field(
        default=None, max_length=1000, description="Mask values that count as background, such as 255 for VOC's border."
    )
    max_mb: int = Field(default=20_000, ge=1)
    timeout_s: float = Field(default=3600.0, gt=0)
    allow_private: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> DatasetImportOptions:
        if (self.source == "url") != (self.url is not None):
            raise ValueError("a url is given exactly where the source is url")
        return self

    @classmethod
    def read(cls, folder: Path) -> DatasetImportOptions:
        """The options in ``folder``. ValidationError."""
        return cls.model_validate_json((folder / "import.json").read_bytes())
