"""The same network in a plain MONAI script: ``python -m bench.peers.plain_monai PARTS.json [--epochs N]``.

As one writes it after the tutorials: CacheDataset, DataLoader, flips and turns by quarters, DiceCELoss, AdamW, the best
epoch by validation Dice, sliding windows. ``PARTS.json`` has for train, validation and test the pairs of files. Each
epoch is a line of JSON on stdout, the test Dice (mean over the images, threshold 0.5) the last one.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd
from PIL import Image

SIDE, BATCH = 256, 8
BOTH = ["image", "mask"]


def main() -> None:
    """Train, print a line of JSON per epoch, and the test Dice at last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", type=Path)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    began = time.monotonic()
    torch.manual_seed(0)
    parts = {name: [read(pair) for pair in pairs] for name, pairs in json.loads(given.parts.read_text()).items()}
    turned = Compose(
        [
            RandSpatialCropd(BOTH, (SIDE, SIDE), random_size=False),
            RandFlipd(BOTH, 0.5, 0),
            RandFlipd(BOTH, 0.5, 1),
            RandRotate90d(BOTH, 0.75),
        ]
    )
    loader = DataLoader(CacheDataset(parts["train"], turned, progress=False), batch_size=BATCH, shuffle=True)
    network = UNet(2, 3, 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    criterion = DiceCELoss(sigmoid=True)
    best, best_dice = copy.deepcopy(network.state_dict()), -1.0
    for epoch in range(1, given.epochs + 1):
        started = time.monotonic()
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = criterion(network(batch["image"].as_tensor()), batch["mask"].as_tensor())
            loss.backward()
            optimizer.step()
        dice = evaluate(network, parts["validation"])
        if dice > best_dice:
            best, best_dice = copy.deepcopy(network.state_dict()), dice
        print(json.dumps({"epoch": epoch, "seconds": time.monotonic() - started, "dice": dice}), flush=True)
        if time.monotonic() - began > given.minutes * 60:
            break
    network.load_state_dict(best)
    size = sum(parameter.numel() for parameter in network.parameters())
    print(json.dumps({"test_dice": evaluate(network, parts["test"]), "epochs": epoch, "parameters": size}), flush=True)


def read(pair: list[str]) -> dict[str, Any]:
    """Image float32 [3, H, W], normalised, and mask float32 [1, H, W], 0 or 1."""
    image, mask = (Image.open(path) for path in pair)
    pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    return {"image": (pixels - 0.2) / 0.2, "mask": (np.asarray(mask.convert("L")) > 127)[None].astype(np.float32)}


def evaluate(network: torch.nn.Module, samples: list[dict[str, Any]]) -> float:
    """The mean Dice over ``samples``, at a threshold of 0.5."""
    metric = DiceMetric(include_background=True)
    network.eval()
    with torch.inference_mode():
        for sample in samples:
            image = torch.from_numpy(sample["image"])[None]
            logits = sliding_window_inference(image, (SIDE, SIDE), BATCH, network, 0.5, "gaussian")
            metric((logits > 0).float(), torch.from_numpy(sample["mask"])[None])
    return float(metric.aggregate().item())


if __name__ == "__main__":
    main()
