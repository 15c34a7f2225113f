"""Character-level language modelling of Wikipedia (Section 3.1, Appendix D.3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlx_tlstm.checks import require, require_choice
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import to_path
from mlx_tlstm.tasks.base import Batch, Task
from mlx_tlstm.tasks.downloads import fetch_enwik8
from mlx_tlstm.tasks.texts import read_text

# Below it 90/5/5 leaves the validation or the test split empty.
SMALLEST_FILE = 20


class Wikipedia(Task):
    """Predict the next byte of enwik8, or of the file that ``config.data`` names.

    The symbols are the distinct byte values of the whole file, sorted; the file is split 90/5/5
    in order. Training reads ``config.batch_size`` equally long contiguous streams side by side,
    ``config.length`` bytes a step, and carries the state from step to step. Each epoch starts
    from the zero state and leaves out the few bytes at the streams' ends that fill no chunk.

    Evaluation predicts every byte of a split exactly once, in :attr:`eval_streams` contiguous
    streams that start from the zero state. The first byte of each is predicted from the byte
    before it, which for the first stream is the last byte of the split before. The fewer than
    :attr:`eval_streams` bytes that do not divide form one more stream.

    Args:
        config: ``length`` is the chunk in bytes; ``data`` is a text file, perhaps packed (see
            :func:`mlx_tlstm.tasks.texts.read_text`), or ``None`` for enwik8.

    Attributes:
        symbols: The byte value of each symbol.
        splits: First byte and end of each split in the file.
        eval_streams: N, at most ``config.batch_size``; fewer where a stream would be shorter than
            ``config.length``. BPC depends on it a little, so it is reported with the figure.

    Raises:
        ValueError: The file is no text, or too small for ``batch_size`` streams of ``length``
            bytes.
        FileNotFoundError: There is no such file.
        DataUnavailableError: enwik8 can neither be downloaded nor found in the cache.
    """

    name = "wikipedia"
    metric = "bpc"
    unit = "bytes"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        raw = fetch_enwik8() if config.data is None else _read(config.data)
        size = len(raw)
        # 90 % of the text must hold the bytes that the streams predict and the one before them.
        needed = max(SMALLEST_FILE, -(-10 * (config.batch_size * config.length + 1) // 9))
        if size < needed:
            raise ValueError(
                f"[Wikipedia] 'data' must hold at least {needed:,} bytes for batch_size "
                f"{config.batch_size} × length {config.length} but {config.data or 'enwik8'!r} "
                f"holds {size:,}; use a smaller batch_size or length"
            )
        self.symbols = bytes(value for value in range(256) if value in raw)
        numbers = np.zeros(256, dtype=np.uint8)
        numbers[np.frombuffer(self.symbols, dtype=np.uint8)] = np.arange(len(self.symbols))
        # One byte a symbol: 100 MB for enwik8, widened to int32 batch by batch.
        self._text = np.frombuffer(raw.translate(numbers.tobytes()), dtype=np.uint8)
        train_end, validation_end = size * 90 // 100, size * 95 // 100
        self.splits = {
            "train": (0, train_end),
            "validation": (train_end, validation_end),
            "test": (validation_end, size),
        }
        self.input_size = self.output_size = len(self.symbols)
        self.input_fan_in = 1
        self._stride = (train_end - 1) // config.batch_size
        self._chunks = self._stride // config.length
        self.samples_per_epoch = self._chunks * config.batch_size
        smallest = min(validation_end - train_end, size - validation_end)
        self.eval_streams = max(1, min(config.batch_size, smallest // config.length))
        self.evaluation_note = f"N = {self.eval_streams} streams"

    @classmethod
    def quick(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="2d-tlstm+cn",
            depth=2,
            hidden_size=200,
            length=50,
            batch_size=32,
            epochs=1,
            eval_every=100_000,
        )

    @classmethod
    def paper(cls) -> TrainingConfig:
        return TrainingConfig(
            task=cls.name,
            variant="3d-tlstm+cn",
            depth=6,
            hidden_size=1200,
            length=50,
            batch_size=100,
            epochs=50,
            eval_every=450_000,  # four times an epoch (chosen)
            clip_norm=1.0,  # our choice: the paper names no clipping
        )

    def train_batch(self, step: int) -> Batch:
        chunk = step % self._chunks
        starts = 1 + self._stride * np.arange(self.config.batch_size) + chunk * self.steps
        return self._batch(starts, self.steps, fresh=chunk == 0)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        require_choice("Wikipedia", "split", split, ("validation", "test"))
        start, end = self.splits[split]
        stride, rest = divmod(end - start, self.eval_streams)
        yield from self._streams(start + stride * np.arange(self.eval_streams), stride)
        yield from self._streams(np.array([end - rest]), rest)

    def split_sizes(self) -> dict[str, int | None]:
        return {name: end - start for name, (start, end) in self.splits.items()}

    def facts(self) -> dict[str, str]:
        shown = "".join(chr(value) for value in self.symbols if 0x20 < value < 0x7F)
        return {
            "symbols": f"{len(self.symbols)} byte values, with {shown}",
            "evaluation": self.evaluation_note,
        }

    def sample_lines(self, batch: Batch, row: int) -> list[str]:
        parts = {"input ": batch.inputs, "target": batch.targets}
        return [f"{name} {self.decode(part[row])!r}" for name, part in parts.items()]

    def decode(self, symbols: np.ndarray) -> str:
        """The text that symbols ``[T]`` stand for; bytes that are no UTF-8 are replaced."""
        raw = bytes(self.symbols[symbol] for symbol in np.asarray(symbols).tolist())
        return raw.decode(errors="replace")

    def _streams(self, starts: np.ndarray, length: int) -> Iterator[Batch]:
        """Batches that together predict the ``length`` bytes from each start on."""
        for offset in range(0, length, self.steps):
            steps = min(self.steps, length - offset)
            yield self._batch(starts + offset, steps, fresh=offset == 0)

    def _batch(self, starts: np.ndarray, steps: int, fresh: bool) -> Batch:
        """Predict ``steps`` bytes from each start on, each from the byte before it."""
        window = self._text[starts[:, None] + np.arange(-1, steps)].astype(np.int32)
        return Batch(window[:, :-1], window[:, 1:], fresh)


def _read(data: str) -> bytes:
    """The text in the user's file."""
    path = to_path("Wikipedia", "data", data)
    if not path.exists():
        raise FileNotFoundError(f"[Wikipedia] 'data' must be a file but {str(path)!r} is missing")
    require(path.is_file(), "Wikipedia", "data", "a file", str(path))
    return read_text(path, "Wikipedia")
