"""Loading a model from a folder, a run or the Hugging Face hub, and pushing one there.

``huggingface_hub`` is imported where it is used. Nothing is sent but by :func:`push`, and nothing
is asked of the hub but by :func:`load` with a repository's name.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_tlstm.checks import require, require_choice, require_flag
from mlx_tlstm.model import SequenceModel
from mlx_tlstm.model_card import model_card
from mlx_tlstm.runs import WEIGHTS
from mlx_tlstm.saving import CONFIG_FILE, WEIGHTS_FILE, is_saved_model
from mlx_tlstm.trained import load_run_model

CARD_FILE = "README.md"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class HubError(ConnectionError):
    """The hub does not answer, or refuses."""


def load(
    path_or_repo: str | Path, weights: str = "best", revision: str | None = None
) -> SequenceModel:
    """A trained model in evaluation mode; :attr:`SequenceModel.metadata` says where it comes from.

    No code is run: a model is JSON and safetensors.

    Args:
        path_or_repo: A folder that :meth:`SequenceModel.save` wrote, the folder of a training run,
            or, where there is no such folder, a repository of the Hugging Face hub, ``user/name``.
        weights: Of a run: ``"best"`` or ``"last"``.
        revision: Of a repository: branch, tag or commit; ``None`` is the main branch.

    Raises:
        ValueError: There is no such folder or repository, it holds no model, or a file is damaged.
        HubError: The repository can neither be downloaded nor found in the cache.
    """
    require_choice("load", "weights", weights, WEIGHTS)
    path = Path(path_or_repo)
    if not path.exists():
        path = _download(str(path_or_repo), revision)
    elif is_run(path):
        return load_run_model(path, weights)
    return SequenceModel.load(path)


def is_run(path: str | Path) -> bool:
    """Whether :func:`load` would take the best or last weights of a training run."""
    return (Path(path) / CONFIG_FILE).is_file() and not is_saved_model(path)


def push(
    model_or_path: SequenceModel | str | Path,
    repo_id: str,
    private: bool = True,
    license: str | None = None,
) -> str:
    """Upload a model with a model card to the Hugging Face hub, where you are logged in.

    ``config.json``, ``model.safetensors`` and ``README.md`` are sent in one commit, and nothing
    else: of a run neither its log nor the path of its data.

    Args:
        model_or_path: A model, the folder of one, or the folder of a training run, whose best
            weights go.
        repo_id: ``user/name``; it is made where it is not there.
        private: Make a new repository private; one that is there stays as it is.
        license: The licence that you give the model, such as ``"mit"``; ``None`` names none.

    Returns:
        The commit's address.

    Raises:
        ValueError: An argument is wrong, or the folder holds no whole model.
        HubError: The hub does not answer, or refuses.
    """
    _require_repository("push", repo_id)
    private = require_flag("push", "private", private)
    named = license is None or (isinstance(license, str) and re.fullmatch(r"[\w.+-]+", license))
    require(bool(named), "push", "license", "an identifier such as 'mit'", license)
    model = model_or_path
    if not isinstance(model, SequenceModel):
        require(Path(model).is_dir(), "push", "path", "a folder", str(model))
        model = load(model)
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, CARD_FILE).write_text(model_card(model, repo_id, license))
        files = [
            CommitOperationAdd(name, Path(folder, name))
            for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
        ]
        with _hub_errors(f"cannot push to {repo_id!r}"):
            hub = HfApi()
            hub.create_repo(repo_id, private=private, exist_ok=True)
            commit = hub.create_commit(repo_id, files, commit_message="Upload a tensorized LSTM")
    return commit.commit_url


def _download(repo_id: str, revision: str | None) -> Path:
    """The folder in the hub's cache that holds a repository's model."""
    _require_repository("load", repo_id)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

    with _hub_errors(f"cannot load {repo_id!r}"):
        try:
            files = [CONFIG_FILE, WEIGHTS_FILE]
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ValueError(
                f"[load] 'path_or_repo' must be a folder or a repository of the hub but there is "
                f"neither a folder {repo_id!r} nor, that you may read, such a repository"
                + (f" with the revision {revision!r}" if revision else "")
            ) from error


def _require_repository(owner: str, repo_id: object) -> None:
    valid = isinstance(repo_id, str) and _REPOSITORY.fullmatch(repo_id) is not None
    expected = "a folder that is there or a repository 'user/name'"
    argument = "path_or_repo"
    if owner == "push":
        argument, expected = "repo_id", "a repository 'user/name'"
    require(valid, owner, argument, expected, repo_id)


@contextlib.contextmanager
def _hub_errors(failed: str) -> Iterator[None]:
    """Turn the errors of the hub's client into a :class:`HubError` that begins with ``failed``."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # of httpx or requests, by the client's version
        reason = " ".join(str(error).split())
        raise HubError(f"[hub] {failed} ({type(error).__name__}: {reason})") from error
