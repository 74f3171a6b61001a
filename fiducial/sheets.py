"""Pictures side by side on one sheet."""

from collections.abc import Sequence

import numpy as np

GAP = 2  # pixels between pictures


def side_by_side(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of pictures (h, w, 3) uint8 of one size as a sheet (height, width, 3) uint8, white where there is none.

    Args:
        rows: at least one, the first of at least one picture.
    """
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            top, left = down * (height + GAP), right * (width + GAP)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture[:height, :width]
    return sheet
