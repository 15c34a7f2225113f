"""Load a model from a folder, a training run or the Hugging Face hub; upload one to the hub.

Only :func:`push` uploads anything. Only :func:`pull`, and :func:`load` with the name of a
repository, download anything. ``huggingface_hub`` is imported only when one of them needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_tlstm.checks import require, require_choice, require_flag
from mlx_tlstm.config import TrainingConfig
from mlx_tlstm.files import absence, to_path
from mlx_tlstm.models.card import model_card
from mlx_tlstm.models.folder import CONFIG_FILE, WEIGHTS_FILE
from mlx_tlstm.models.sequence import SequenceModel
from mlx_tlstm.models.trained import WEIGHTS, is_run, load_trained

CARD_FILE = "README.md"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class HubError(ConnectionError):
    """The hub does not answer, or refuses."""


def load(
    path_or_repo: str | Path, weights: str = "best", revision: str | None = None
) -> SequenceModel:
    """Load a trained model, in evaluation mode.

    :attr:`SequenceModel.metadata` says where it comes from. A model consists of JSON and
    safetensors, so that loading one runs no code of its author's.

    Args:
        path_or_repo: One of three: a folder that :meth:`SequenceModel.save` wrote; the folder of a
            training run, which holds two such folders, ``best`` and ``last``; or a repository on
            the Hugging Face hub, as a string ``"user/name"``. A folder of that name comes before
            the repository. If there is a folder ``user`` without ``name`` in it, the path is
            taken for mistyped and is an error; name a ``revision`` to ask the hub all the same.
        weights: For a run: ``"best"`` or ``"last"``.
        revision: For a repository: a branch, tag or commit; ``None`` is the main branch.

    Raises:
        ValueError: There is no such folder or repository, it holds no model, a file is damaged, or
            ``weights`` or ``revision`` is given for what has none.
        HubError: The repository can neither be downloaded nor found in the hub's local cache.
    """
    require_choice("load", "weights", weights, WEIGHTS)
    path = to_path("load", "path_or_repo", path_or_repo)
    here = os.path.lexists(path)
    if here:
        require(revision is None, "load", "revision", "None for a folder", revision)
    if here and is_run(path):
        config = TrainingConfig.load(path / CONFIG_FILE)
        return load_trained(path, config, weights)
    expected = f"{WEIGHTS[0]!r} where the model is not that of a run's folder"
    require(weights == WEIGHTS[0], "load", "weights", expected, weights)
    if here:
        return SequenceModel.load(path)
    missing = absence(path)
    if not isinstance(path_or_repo, str) or not _REPOSITORY.fullmatch(path_or_repo):
        raise ValueError(f"[load] {missing}, nor is that a repository's name as in 'user/name'")
    if revision is None and path.parent.exists():
        raise ValueError(
            f"[load] {missing}; since {str(path.parent)!r} is here, the hub was not asked for such "
            "a repository (mlx-tlstm pull asks it, and load does where a revision is given)"
        )
    return _pull(path_or_repo, revision, f"[load] {missing}, and ")


def pull(repo_id: str, revision: str | None = None) -> SequenceModel:
    """Load a model from a repository ``"user/name"`` of the Hugging Face hub; see :func:`load`.

    Raises:
        ValueError: There is no such repository, it holds no model, or a file is damaged.
        HubError: The repository can neither be downloaded nor found in the hub's local cache.
    """
    _require_repository("pull", repo_id)
    return _pull(repo_id, revision, "[hub] ")


def push(
    model_or_path: SequenceModel | str | Path,
    repo_id: str,
    private: bool = True,
    license: str | None = None,
) -> str:
    """Upload a model with a model card to the Hugging Face hub. You have to be logged in there.

    Three files are sent, in one commit: ``config.json``, ``model.safetensors`` and ``README.md``.
    Nothing else leaves this machine; a run's log and the path of its data stay here.

    Args:
        model_or_path: A model, the folder of one, or the folder of a training run, of which the
            best model is sent.
        repo_id: The repository, ``"user/name"``; it is created if it does not exist.
        private: Whether a repository that is created is private; an existing one stays as it is.
        license: The licence that you give the model, such as ``"mit"``; with ``None`` the card
            names none.

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
        path = to_path("push", "model_or_path", model)
        if not os.path.lexists(path):
            raise ValueError(f"[push] {absence(path)}")
        model = load(path)
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        card = model_card(SequenceModel.load(folder), repo_id, license)  # of what is sent
        Path(folder, CARD_FILE).write_text(card, encoding="utf-8", errors="replace")
        files = [
            CommitOperationAdd(name, Path(folder, name))
            for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
        ]
        with _hub_errors(f"[hub] cannot push to {repo_id!r}"):
            hub = HfApi()
            hub.create_repo(repo_id, private=private, exist_ok=True)
            commit = hub.create_commit(repo_id, files, commit_message="Upload a model of mlx_tlstm")
    return commit.commit_url


def _pull(repo_id: str, revision: str | None, start: str) -> SequenceModel:
    """Download a repository and load its model; ``start`` begins the message of every error."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

    with _hub_errors(f"{start}cannot load {repo_id!r} from the hub"):
        try:
            files = [CONFIG_FILE, WEIGHTS_FILE]
            path = snapshot_download(repo_id, revision=revision, allow_patterns=files)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ValueError(
                f"{start}the hub has no repository {repo_id!r} that you may read"
                + (f" with the revision {revision!r}" if revision else "")
            ) from error
    return SequenceModel.load(path)


def _require_repository(owner: str, repo_id: object) -> None:
    valid = isinstance(repo_id, str) and _REPOSITORY.fullmatch(repo_id) is not None
    require(valid, owner, "repo_id", "a repository 'user/name'", repo_id)


@contextlib.contextmanager
def _hub_errors(failed: str) -> Iterator[None]:
    """Turn the errors of the hub's client into a :class:`HubError` that begins with ``failed``."""
    try:
        yield
    except Exception as error:  # of httpx or requests, by the client's version
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise  # ours, or of a name that the hub does not take
        reason = " ".join(str(error).split())
        raise HubError(f"{failed} ({type(error).__name__}: {reason})") from error
