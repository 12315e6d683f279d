"""`python -m benchmarks.colours`: is colour jitter cheaper in batches on the training device?

Photos leave the loader as uint8 and are converted to float on the device. Only `jitter`, an affine map of each pixel,
could move there. This measures the map in the loader, on one core and together with all other processing of a photo,
and the same map for a batch on the device, as one matrix product.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch

from benchmarks.losses import medians
from benchmarks.modalities import GEOMETRY, photo
from modalities import RGB
from modalities.rgb import colour_map
from pipeline.common.host import keep_freed_memory

BATCH, SIZE = 64, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    data = cv2.imencode(".jpg", photo(320, 240))[1].tobytes()
    plain, coloured, rng = RGB(jitter=0.0), RGB(), np.random.default_rng(0)
    value = plain.decode(data, {})
    image = GEOMETRY.resize(value, SIZE)
    expected = cv2.transform(image, colour_map(image, 1.1, 0.9, 1.2))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = torch.from_numpy(np.stack([image] * BATCH)).to(device)  # [B, H, W, 3], the memory layout of `RGB.collate`
    maps = torch.from_numpy(np.stack([colour_map(image, 1.1, 0.9, 1.2)] * BATCH)).float().to(device)

    def on_device() -> torch.Tensor:
        pixels = batch.view(BATCH, -1, 3).float()
        changed = torch.baddbmm(maps[:, None, :, 3], pixels, maps[:, :, :3].mT).clamp_(0, 255).round_().byte()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return changed

    assert (on_device()[0].cpu().view(SIZE, SIZE, 3).int() - torch.from_numpy(expected).int()).abs().max() <= 1
    took = medians(
        {
            "loader, without the colours": lambda: plain.augment(plain.decode(data, {}), GEOMETRY, SIZE, rng),
            "loader, with the colours": lambda: coloured.augment(coloured.decode(data, {}), GEOMETRY, SIZE, rng),
            f"{device.type}, the colours of a batch": on_device,
        },
        arguments.seconds,
    )
    for (name, seconds), samples in zip(took.items(), (1, 1, BATCH), strict=True):
        print(f"{name:32s} {1e6 * seconds / samples:8.1f} us per photo")


if __name__ == "__main__":
    main()
