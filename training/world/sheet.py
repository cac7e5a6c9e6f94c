"""Contact sheets, for human eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_sheet(images: Sequence[np.ndarray], columns: int, path: Path, *, scale: int = 1) -> None:
    """Writes uint8 (H, W, 3) pictures as one PNG, row by row, with a thin light gap."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 4) + 4, columns * (width + 4) + 4, 3), 250, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet[4 + row * (height + 4) :, 4 + column * (width + 4) :][:height, :width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST).save(path)
