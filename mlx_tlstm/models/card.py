"""The card of a model: the README.md of its repository on the Hugging Face hub."""

from __future__ import annotations

from mlx.utils import tree_flatten

from mlx_tlstm.layers import Recurrent
from mlx_tlstm.layers.layer import Layer
from mlx_tlstm.layers.variants import VARIANTS, CellVariant
from mlx_tlstm.models.folder import ModelConfig
from mlx_tlstm.models.sequence import SequenceModel, class_count

_PAPER = (
    "He et al., *Wider and Deeper, Cheaper and Faster: Tensorized LSTMs for Sequence Learning* "
    "(NIPS 2017)"
)
_MLX = "https://github.com/ml-explore/mlx"
#: What a layer is called, and its tag on the hub.
_NETWORKS = {
    "TLSTM": "tensorized LSTM",
    "TRNN": "tensorized RNN",
    "StackedLSTM": "stacked LSTM",
    "Recurrent": "recurrent network",
}
#: The hub's name for what a task asks of a model; of the others it has none.
_PIPELINES = {"wikipedia": "text-generation", "mnist": "image-classification"}


def model_card(model: SequenceModel, repo_id: str, license: str | None = None) -> str:
    """Write a model's card: YAML front matter, and what is known of the model as Markdown.

    Args:
        model: The model, with its metadata.
        repo_id: The repository that the card is for.
        license: Identifier of the licence; left out where ``None``.
    """
    metadata = model.metadata
    parameters = sum(array.size for _, array in tree_flatten(model.parameters()))
    config = ModelConfig.of(model, metadata)
    facts = {
        "task": metadata.task,
        "variant": metadata.variant,
        "layer": _layer(model.layer),
        "parameters": f"{parameters:,} ({config.dtype})",
        **{name.replace("_", " "): _cell(value) for name, value in metadata.metrics.items()},
        "command": f"`{metadata.command}`" if metadata.command else None,
    }
    rows = [f"| {name} | {value or 'not known'} |" for name, value in facts.items()]
    parts = [
        _front_matter(model, license),
        f"# {repo_id.rpartition('/')[2]}",
        f"A {_NETWORKS[config.layer]} for [MLX]({_MLX}), {_source(model.layer)}.",
        "\n".join(["| | |", "|---|---|", *rows]),
        _use(model, repo_id),
    ]
    if not model.causal:
        parts.append(
            "The model is not causal: its layer normalisation lets later inputs leak into earlier "
            "outputs, so that its figures are no measure of a language model."
        )
    return "\n\n".join(parts) + "\n"


def _layer(layer: Layer) -> str:
    """The layer's class, the cell's where that is another's, and the depth."""
    if isinstance(layer, Recurrent):
        cell = type(layer.cell).__name__
        return f"`{cell}` in a `Recurrent`, depth L = {layer.made_by.depth}"
    return f"`{type(layer).__name__}`, depth L = {layer.depth}"


def _source(layer: Layer) -> str:
    if not isinstance(layer, Recurrent):
        return f"after {_PAPER}"
    if _is_rival(layer):
        return "by `mlx_tlstm.rivals`, which names its paper"
    return "around a cell that is not part of `mlx_tlstm`"


def _front_matter(model: SequenceModel, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    metadata = model.metadata
    network = _NETWORKS[type(model.layer).__name__].lower().replace(" ", "-")
    data = ModelCardData(
        library_name="mlx-tlstm",
        tags=["mlx", network, *filter(None, (metadata.task, metadata.variant))],
        license=license,
        pipeline_tag=_PIPELINES.get(metadata.task),
    )
    return f"---\n{data.to_yaml()}\n---"


def _use(model: SequenceModel, repo_id: str) -> str:
    lines = [
        "```python",
        "import mlx_tlstm",
        *_own_cell(model.layer),
        "",
        f'model = mlx_tlstm.load("{repo_id}")',
        f"logits, state = model(x)  # x [batch, time, {model.layer.input_size}], "
        f"logits [batch, time, {class_count(model)}]",
        "```",
    ]
    if model.metadata.symbols:
        prompt = " --prompt Once" if set(b"Once") <= set(model.metadata.symbols) else ""
        lines += ["", "```sh", f"python -m mlx_tlstm.generate {repo_id}{prompt}", "```"]
    return "\n".join(lines)


def _own_cell(layer: Layer) -> list[str]:
    """The line without which a model of a user's own cell cannot be loaded."""
    if not isinstance(layer, Recurrent) or _is_rival(layer):
        return []
    name, cell = layer.made_by.variant, type(layer.cell)
    variant = VARIANTS.get(name)
    if isinstance(variant, CellVariant) and variant.cell is cell:
        made = f"mlx_tlstm.CellVariant({cell.__name__})  # the cell's class"
    else:  # a function made it, perhaps with other arguments
        made = "…  # the CellVariant that the author put there"
    return ["", f"mlx_tlstm.VARIANTS[{name!r}] = {made}"]


def _is_rival(layer: Recurrent) -> bool:
    return type(layer.cell).__module__.startswith("mlx_tlstm.rivals.")


def _cell(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
