"""Pictures as others hold them, to the bytes a policy is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from discdiff.config import checked

SLACK = 1e-3  # beyond [0, 1], of resampling: cut


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture (height, width, 3), `size` pixels wide."""
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    return np.array(cut.resize((size, size), Image.Resampling.BOX))


def shown(name: str, picture: Any, size: int = 0) -> np.ndarray:
    """The middle square of a picture as uint8 (size, size, 3), as policies are trained on it; where size is 0 all of it.

    picture: (height, width, 3) or (3, height, width), uint8 or float in [0, 1]. Raises ValueError for anything else.
    """
    x = np.asarray(picture)
    first = x.ndim == 3 and x.shape[0] == 3 and x.shape[2] != 3
    x = x.transpose(1, 2, 0) if first else x
    checked(
        name, x.shape, x.ndim == 3 and x.shape[2] == 3 and x.size > 0, "give (height, width, 3) or (3, height, width)"
    )
    if np.issubdtype(x.dtype, np.floating):
        fits = bool(np.isfinite(x).all()) and float(x.min()) >= -SLACK and float(x.max()) <= 1 + SLACK
        checked(name, (float(x.min()), float(x.max())), fits, "floats are in [0, 1]; bytes are uint8")
        x = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    checked(name, str(x.dtype), x.dtype == np.uint8, "give uint8, or floats in [0, 1]")
    return np.ascontiguousarray(square(x, size) if size else x)
