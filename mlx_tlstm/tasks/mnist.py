"""Sequential MNIST and sequential permuted MNIST (Section 3.3, Appendix D.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.tasks.base import Batch, Task
from mlx_tlstm.tasks.mnist_files import CLASSES, SIDE, load_mnist
from mlx_tlstm.tasks.seeding import Stream, random_generator

PIXELS = SIDE * SIDE
#: Seed of the one permutation of pMNIST; the run's seed has no part in it.
PERMUTATION_SEED = 0
# No gradients are kept, so the batches can be larger than in training; it divides 10,000.
EVAL_BATCH = 250
#: From dark to bright, two rows of pixels a line.
SHADES = np.array(list(" .:-=+*#%@"))


class Mnist(Task):
    """Classify a digit after reading its pixels, in [0, 1], in scan-line order.

    ``config.length`` steps read 784 / length pixels each: 784 is the paper's, 28 reads rows. The
    loss and the answer are at the last step. The last sixth of the training file, 10,000 of
    MNIST's 60,000 images, validates. Each epoch has an order of its own and leaves out the
    images that fill no batch.

    Args:
        config: ``data`` is a folder of IDX or parquet files, or ``None`` for the hub; see
            :func:`mlx_tlstm.tasks.mnist_files.load_mnist`, also for the errors.

    Raises:
        ValueError: ``length`` does not divide 784, or there are fewer images than a batch.
    """

    name = "mnist"
    unit = "images"
    loss_positions = slice(-1, None)
    answer_positions = slice(-1, None)
    output_size = CLASSES
    #: The pixel that is read at each place; ``None`` keeps scan-line order.
    permutation: np.ndarray | None = None

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        owner = type(self).__name__
        divides = PIXELS % config.length == 0
        require(divides, owner, "length", "a divisor of 784, such as 784 or 28,", config.length)
        self.input_size = self.input_fan_in = PIXELS // config.length
        train, test = load_mnist(config.data)
        train_count = len(train.images) - len(train.images) // 6
        enough = train_count < len(train.images) and config.batch_size <= train_count
        require(
            enough,
            owner,
            "data",
            f"of 6 training images or more, five sixths of them filling a batch of "
            f"{config.batch_size},",
            len(train.images),
        )
        self._splits = {
            "train": (train.images[:train_count], train.labels[:train_count]),
            "validation": (train.images[train_count:], train.labels[train_count:]),
            "test": test,
        }
        self._epoch_steps = train_count // config.batch_size
        self.samples_per_epoch = self._epoch_steps * config.batch_size

    @classmethod
    def quick(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="2d-tlstm+cn",
            depth=3,
            hidden_size=100,
            length=28,
            batch_size=50,
            epochs=1,
            eval_every=10_000,
            forget_bias=4.0,
        )

    @classmethod
    def paper(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="3d-tlstm+cn",
            depth=3,
            hidden_size=100,
            length=PIXELS,
            batch_size=50,
            epochs=100,  # chosen: the paper stops early and names no number
            eval_every=50_000,  # once an epoch (chosen)
            forget_bias=4.0,
            clip_norm=1.0,  # our choice: the paper names no clipping
        )

    @classmethod
    def shorter_lengths(cls, length: int) -> Sequence[int]:
        return [shorter for shorter in super().shorter_lengths(length) if PIXELS % shorter == 0]

    def train_batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self._epoch_steps)
        rng = random_generator(self.config.seed, Stream.TRAIN, epoch)
        order = rng.permutation(len(self._splits["train"][0]))
        size = self.config.batch_size
        return self._batch("train", order[index * size : (index + 1) * size])

    def eval_batches(self, split: str) -> Iterator[Batch]:
        require_choice(type(self).__name__, "split", split, ("validation", "test"))
        for start in range(0, len(self._splits[split][0]), EVAL_BATCH):
            yield self._batch(split, slice(start, start + EVAL_BATCH))

    def split_sizes(self) -> dict[str, int | None]:
        return {name: len(labels) for name, (_, labels) in self._splits.items()}

    def facts(self) -> dict[str, str]:
        return {
            f"digits 0 to 9, {name}": " ".join(map(str, np.bincount(labels, minlength=CLASSES)))
            for name, (_, labels) in self._splits.items()
        }

    def images(self, batch: Batch) -> np.ndarray:
        """The images ``[B, 28, 28]`` of a batch, pixels where they belong."""
        pixels = batch.inputs.reshape(-1, PIXELS)
        if self.permutation is not None:
            pixels = pixels[:, np.argsort(self.permutation)]
        return pixels.reshape(-1, SIDE, SIDE)

    def sample_lines(self, batch: Batch, row: int) -> list[str]:
        image = self.images(batch)[row].reshape(SIDE // 2, 2, SIDE).mean(axis=1)
        shades = SHADES[(image * (len(SHADES) - 1)).round().astype(int)]
        lines = ["".join(line).rstrip() for line in shades]
        return [f"target {batch.targets[row, -1]}, image", *lines]

    def _batch(self, split: str, rows: np.ndarray | slice) -> Batch:
        """Inputs ``[B, T, 784 / T]`` float32; targets ``[B, T]`` repeat the label at each step."""
        images, labels = (values[rows] for values in self._splits[split])
        pixels = images.reshape(len(images), PIXELS)
        if self.permutation is not None:
            pixels = pixels[:, self.permutation]
        inputs = pixels.astype(np.float32).reshape(-1, self.steps, self.input_size) / 255
        targets = np.broadcast_to(labels.astype(np.int32)[:, None], inputs.shape[:2])
        return Batch(inputs, targets)


class PermutedMnist(Mnist):
    """MNIST whose 784 pixels are read in one fixed random order, the same for every seed."""

    name = "pmnist"
    # RandomState's stream is frozen (NEP 19); a Generator's may change between NumPy versions.
    permutation = np.random.RandomState(PERMUTATION_SEED).permutation(PIXELS)

    @classmethod
    def paper(cls) -> TrainingConfig:
        return super().paper().replace(depth=5)
