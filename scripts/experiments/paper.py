"""The paper's configurations (Section 3, Appendix D), and its Tables 1 to 3 as printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from mlx_tlstm import VARIANTS
from mlx_tlstm.config import BY_LAG, TrainingConfig
from mlx_tlstm.tasks import TASKS, task_type
from mlx_tlstm.tasks.mnist import PIXELS, Mnist

#: The paper's configurations (a) to (g), in its order, from cheap to dear.
PAPER_VARIANTS = (
    "slstm",
    "2d-tlstm",
    "2d-tlstm-m",
    "2d-tlstm-f",
    "3d-tlstm",
    "3d-tlstm+ln",
    "3d-tlstm+cn",
)
#: The configuration that the paper's tables compare with others' models.
BEST_VARIANT = "3d-tlstm+cn"
#: Distinct bytes of enwik8, which is not downloaded for their number.
ENWIK8_SYMBOLS = 205


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Configurations of one of the paper's figures or tables.

    Args:
        tasks: Names of the tasks; those that share an entry have equal sizes.
        source: Where the paper has it, as in ``"Fig. 4"``.
        input_size: R, width of an input.
        output_size: S, number of classes.
        depths: L.
        hidden_sizes: M of each variant, in the paper's order.
        printed: The parameter count as the paper prints it; empty where it prints none.
    """

    tasks: tuple[str, ...]
    source: str
    input_size: int
    output_size: int
    depths: tuple[int, ...]
    hidden_sizes: dict[str, int]
    printed: str = ""


def _fixed(hidden_size: int) -> dict[str, int]:
    return dict.fromkeys(PAPER_VARIANTS, hidden_size)


def _generated(task: str, hidden_size: int) -> Experiment:
    symbols = len(TASKS[task].alphabet)
    return Experiment((task,), "Fig. 4", symbols, symbols, (1, 4, 7, 10), _fixed(hidden_size))


#: About equally many parameters (the paper's 10M) for each variant.
_WIKIPEDIA_SIZES = {name: 522 if VARIANTS[name].axes == 2 else 901 for name in PAPER_VARIANTS}
_WIKIPEDIA_SIZES |= {"slstm": 1120, "2d-tlstm-f": 1120}
_SYMBOLS = (ENWIK8_SYMBOLS, ENWIK8_SYMBOLS)

EXPERIMENTS = (
    Experiment(("wikipedia",), "Fig. 3", *_SYMBOLS, (1, 2, 3, 4), _WIKIPEDIA_SIZES, "10M"),
    Experiment(("wikipedia",), "Table 1", *_SYMBOLS, (6,), {BEST_VARIANT: 1200}, "50.1M"),
    _generated("addition", 400),
    _generated("memorization", 100),
    Experiment(
        ("mnist", "pmnist"), "Fig. 5", 1, TASKS["mnist"].output_size, (1, 3, 5), _fixed(100)
    ),
)


def as_printed(task: str) -> TrainingConfig:
    """A task's paper settings, from the paper's start where ours has another."""
    config = task_type(task).paper()
    return config.replace(forget_bias=1.0) if config.forget_bias == BY_LAG else config


def experiment(source: str, task: str) -> Experiment:
    """The entry of :data:`EXPERIMENTS` for one task of a figure or table."""
    return next(e for e in EXPERIMENTS if e.source == source and task in e.tasks)


def figure_of(task: str) -> Experiment:
    """The paper's figure over the depth for a task."""
    return next(e for e in EXPERIMENTS if task in e.tasks and e.source.startswith("Fig."))


def symbols_of(task: str, length: int) -> tuple[int, int]:
    """R and S of a task, of which R goes with the length where an image is read in parts."""
    ours = figure_of(task)
    rows = PIXELS // length if issubclass(TASKS[task], Mnist) else ours.input_size
    return rows, ours.output_size


#: The tasks that the paper has experiments on.
PAPER_TASKS = tuple(task for task in TASKS if any(task in e.tasks for e in EXPERIMENTS))


@dataclasses.dataclass(frozen=True)
class PrintedRow:
    """What a table prints of one model.

    Args:
        model: Its name as printed, with the number of the reference.
        cells: By task, the figures as printed, in the order of the table's quantities.
        variant: Our name for it; ``None`` where it is not trained here.
        depth: L, of the paper's own models.
        sizes: By task, M and L of another's model in its own paper, where they are known.
    """

    model: str
    cells: dict[str, tuple[str, ...]]
    variant: str | None = None
    depth: int | None = None
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Whose model it is, and whether it is trained here."""
        if self.variant is None:
            return "printed only"
        return "ours" if self.depth is not None else "another's, retrained"


@dataclasses.dataclass(frozen=True)
class PrintedTable:
    """One of the paper's tables.

    Args:
        source: Its number in the paper.
        title: Its caption.
        quantities: What is printed of a model on a task; the first is the task's metric.
        rows: Top to bottom.
    """

    source: str
    title: str
    quantities: tuple[str, ...]
    rows: tuple[PrintedRow, ...]

    def cells(self) -> Iterator[tuple[PrintedRow, str, tuple[str, ...]]]:
        """Row, task and printed figures, a task after the other."""
        for task in self.rows[0].cells:
            for row in self.rows:
                yield row, task, row.cells[task]


def _others(model: str, **cells: tuple[str, ...]) -> PrintedRow:
    return PrintedRow(model, cells)


def _rival(
    model: str, variant: str, sizes: Mapping[str, tuple[int, int]], **cells: tuple[str, ...]
) -> PrintedRow:
    return PrintedRow(model, cells, variant, sizes=sizes)


def _ours(model: str, depth: int, **cells: tuple[str, ...]) -> PrintedRow:
    return PrintedRow(model, cells, BEST_VARIANT, depth)


def _on_pixels(hidden_size: int, depth: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(("mnist", "pmnist"), (hidden_size, depth))


TABLES = {
    "table-1": PrintedTable(
        "Table 1",
        "Test BPC on Wikipedia",
        ("BPC", "# Param."),
        (
            _others("MI-LSTM [51]", wikipedia=("1.44", "≈17M")),
            _rival("mLSTM [32]", "mlstm", {"wikipedia": (1900, 1)}, wikipedia=("1.42", "≈20M")),
            _others("HyperLSTM+LN [23]", wikipedia=("1.34", "26.5M")),
            _others("HM-LSTM+LN [11]", wikipedia=("1.32", "≈35M")),
            _rival("Large RHN [54]", "rhn", {"wikipedia": (1500, 10)}, wikipedia=("1.27", "≈46M")),
            _others("Large FS-LSTM-4 [38]", wikipedia=("1.245", "≈47M")),
            _others("2 × Large FS-LSTM-4 [38]", wikipedia=("1.198", "≈94M")),
            _ours("3D tLSTM+CN (L=6, M=1200)", 6, wikipedia=("1.264", "50.1M")),
        ),
    ),
    "table-2": PrintedTable(
        "Table 2",
        "Test accuracies on two algorithmic tasks",
        ("Acc.", "# Samp."),
        (
            _rival(
                "Stacked LSTM [21]",
                "stacked-lstm",
                {},
                addition=("51%", "5M"),
                memorization=(">50%", "900K"),
            ),
            _rival(
                "Grid LSTM [30]",
                "grid-lstm",
                {"addition": (400, 18), "memorization": (100, 43)},
                addition=(">99%", "550K"),
                memorization=(">99%", "150K"),
            ),
            _ours("3D tLSTM+CN (L=7)", 7, addition=(">99%", "298K"), memorization=(">99%", "115K")),
            _ours(
                "3D tLSTM+CN (L=10)", 10, addition=(">99%", "317K"), memorization=(">99%", "54K")
            ),
        ),
    ),
    "table-3": PrintedTable(
        "Table 3",
        "Test accuracies (%) on sequential MNIST/pMNIST",
        ("Acc. (%)",),
        (
            _rival("iRNN [33]", "irnn", _on_pixels(100, 1), mnist=("97.0",), pmnist=("82.0",)),
            _rival("LSTM [2]", "lstm", _on_pixels(128, 1), mnist=("98.2",), pmnist=("88.0",)),
            _others("uRNN [2]", mnist=("95.1",), pmnist=("91.4",)),
            _others("Full-capacity uRNN [49]", mnist=("96.9",), pmnist=("94.1",)),
            _others("sTANH [53]", mnist=("98.1",), pmnist=("94.0",)),
            _others("BN-LSTM [13]", mnist=("99.0",), pmnist=("95.4",)),
            _rival(
                "Dilated GRU [8]",
                "dilated-gru",
                _on_pixels(50, 9),
                mnist=("99.2",),
                pmnist=("94.6",),
            ),
            _others("Dilated CNN [40] in [8]", mnist=("98.3",), pmnist=("96.7",)),
            _ours("3D tLSTM+CN (L=3)", 3, mnist=("99.2",), pmnist=("94.9",)),
            _ours("3D tLSTM+CN (L=5)", 5, mnist=("99.0",), pmnist=("95.7",)),
        ),
    ),
}


def printed_networks() -> Iterator[Experiment]:
    """The paper's own configurations, then others' models of its tables, a network each."""
    yield from EXPERIMENTS
    for table in TABLES.values():
        for row in table.rows:
            tasks: dict[tuple[int, int], list[str]] = {}
            for task, size in row.sizes.items():
                tasks.setdefault(size, []).append(task)
            for (hidden_size, depth), names in tasks.items():
                ours = figure_of(names[0])
                yield Experiment(
                    tuple(names),
                    table.source,
                    ours.input_size,
                    ours.output_size,
                    (depth,),
                    {row.variant: hidden_size},
                    row.cells[names[0]][1] if "# Param." in table.quantities else "",
                )


#: What the text says of single points of Fig. 4 and 5, by task, variant and L; the figures' other
#: points are not in it.
PRINTED_POINTS = {
    ("addition", BEST_VARIANT, 7): "100% after 298K",
    ("memorization", BEST_VARIANT, 10): "100% after 54K",
    ("mnist", BEST_VARIANT, 5): "99.1",
    ("pmnist", BEST_VARIANT, 5): "95.6",
}
