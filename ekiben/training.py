"""The options of a training, shared by the API, the training program and the lineage of models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Architecture = Literal["unet", "attention_unet", "resnet34_unet"]
Loss = Literal["dice_ce", "dice", "ce", "focal", "dice_focal", "tversky"]
Augmentation = Literal["none", "light", "standard", "strong"]

SIDE_MULTIPLE = 32
"""Sides of a network's input are multiples of this: with the largest depth, 6, they are halved five times."""

FEW_IMAGES = 20
"""With fewer images (or volumes) a training uses cross-validation, unless shares or folds are given.

The metrics of a single split would then rest on two or three test images.
"""

DEFAULT_TILE = 256
"""Side of the patches in pixels."""


class TrainingOptions(BaseModel):
    """The options of one training. The defaults train a U-Net of 1.6 million parameters on patches of 256 pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture = Field(default="unet", description="The kind of network.")
    width: int = Field(
        default=16, ge=4, le=64, description="Channels of the first level; each level has twice as many."
    )
    depth: int = Field(
        default=5, ge=3, le=6, description="Levels of unet and attention_unet; resnet34_unet has its own."
    )
    epochs: int = Field(default=60, ge=1, le=2000, description="Passes over the training images at most.")
    max_minutes: float | None = Field(
        default=None, gt=0, le=10_080, description="End after so long at the latest; the schedule is made to fit."
    )
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="At its highest; it falls along a cosine.")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="Of AdamW.")
    batch_size: int = Field(default=8, ge=1, le=256, description="Patches, or whole images, in one step.")
    tile: int | None = Field(
        default=None,
        ge=32,
        le=2048,
        multiple_of=SIDE_MULTIPLE,
        description="Side of the patches cut from images at their own size; 256 unless image_size is given.",
    )
    image_size: int | None = Field(
        default=None,
        ge=32,
        le=2048,
        multiple_of=SIDE_MULTIPLE,
        description="Instead of patches: every image resized to a square of this side.",
    )
    loss: Loss = Field(default="dice_ce", description="dice_ce is the sum of Dice and cross-entropy.")
    augmentation: Augmentation = Field(default="standard", description="How much the training images are varied.")
    validation_share: float = Field(
        default=0.15, gt=0, lt=0.9, description="Of the images: chooses the checkpoint and the threshold."
    )
    test_share: float = Field(default=0.15, gt=0, lt=0.9, description="Of the images: gives the reported metrics.")
    folds: int | None = Field(
        default=None, ge=3, le=10, description="Cross-validation instead of shares; 5 with fewer than 20 images."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of the split, the weights and the augmentation.")
    patience: int = Field(
        default=20, ge=0, le=2000, description="Epochs without a better validation Dice before it ends; 0: never early."
    )
    precision: Literal["auto", "float32", "mixed"] = Field(
        default="auto", description="mixed: float16 or bfloat16 where it is safe; auto: mixed on a GPU."
    )
    start_from: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(/[1-9][0-9]*)?$",
        description="A trained model (name or name/version) to start from; same architecture and classes.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingOptions:
        if self.tile is not None and self.image_size is not None:
            raise ValueError("give tile or image_size, not both")
        if self.validation_share + self.test_share >= 0.95:
            raise ValueError("validation_share and test_share leave too little to train on")
        # At least two pixels per side must be left at the deepest level: normalising a single pixel always gives 0.
        levels = 6 if self.architecture == "resnet34_unet" else self.depth
        if self.side < 2**levels:
            raise ValueError(f"patches of {self.side} pixels are too small for {levels} levels; {2**levels} at least")
        return self

    @property
    def side(self) -> int:
        """Side in pixels of the network's square input."""
        return self.image_size or self.tile or DEFAULT_TILE
