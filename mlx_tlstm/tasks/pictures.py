"""Pictures of MNIST's digits, as they are and in the order in which they are read.

matplotlib is imported where it is used: it takes a second, and most commands need none of it.
"""

from __future__ import annotations

from pathlib import Path

from mlx_tlstm.checks import require
from mlx_tlstm.tasks.base import Batch
from mlx_tlstm.tasks.mnist import Mnist
from mlx_tlstm.tasks.mnist_files import SIDE

FORMATS = (".png", ".pdf", ".svg")
#: Digits across.
COLUMNS = 10


def require_picture_format(path: Path) -> None:
    """Raise ``ValueError`` unless the name of a picture ends in one of :data:`FORMATS`."""
    expected = f"a file name that ends in {', '.join(FORMATS)}"
    require(path.suffix.lower() in FORMATS, "draw_images", "picture", expected, str(path))


def draw_images(task: Mnist, batch: Batch, path: Path) -> None:
    """Draw the first digits of a batch with their labels into a file.

    Where the task permutes pixels, a second row has each in the order in which it is read, line by
    line.

    Raises:
        ValueError: The file's name has another ending than :data:`FORMATS`.
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    require_picture_format(path)
    images = task.images(batch)[:COLUMNS]
    rows = [images]
    if task.permutation is not None:
        rows.append(batch.inputs[:COLUMNS].reshape(-1, SIDE, SIDE))
    figure = Figure(figsize=(COLUMNS, len(rows) + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(str(batch.targets[column, -1]))
    figure.savefig(path)
