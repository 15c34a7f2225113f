"""Loading a model from a folder, a run or the Hugging Face hub, and pushing one there.

``huggingface_hub`` is imported where it is used. Nothing is sent but by :func:`push`, and nothing
is asked of the hub but by :func:`pull`, and by :func:`load` with a repository's name.
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
    """A trained model in evaluation mode; :attr:`SequenceModel.metadata` says where it comes from.

    No code is run: a model is JSON and safetensors.

    Args:
        path_or_repo: A folder that :meth:`SequenceModel.save` wrote, the folder of a training run,
            whose ``best`` and ``last`` are such folders, or, where there is no such folder, a
            string that names a repository of the Hugging Face hub, ``user/name``. Where ``user``
            is a folder here, a name that is not in it counts as mistyped, and the hub is asked
            only with a ``revision``.
        weights: Of a run: ``"best"`` or ``"last"``.
        revision: Of a repository: branch, tag or commit; ``None`` is the main branch.

    Raises:
        ValueError: There is no such folder or repository, it holds no model, or a file is damaged.
        HubError: There is no such folder, and the repository can neither be downloaded nor found
            in the cache.
    """
    require_choice("load", "weights", weights, WEIGHTS)
    path = to_path("load", "path_or_repo", path_or_repo)
    if os.path.lexists(path):
        if is_run(path):
            config = TrainingConfig.load(path / CONFIG_FILE)
            return load_trained(path, config, weights)
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
    """The model in a repository of the Hugging Face hub, ``user/name``, as :func:`load` gives it.

    Raises:
        ValueError: There is no such repository, it holds no model, or a file is damaged.
        HubError: It can neither be downloaded nor found in the cache.
    """
    _require_repository("pull", repo_id)
    return _pull(repo_id, revision, "[hub] ")


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
        path = to_path("push", "model_or_path", model)
        if not os.path.lexists(path):
            raise ValueError(f"[push] {absence(path)}")
        model = load(path)
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, CARD_FILE).write_text(model_card(model, repo_id, license))
        files = [
            CommitOperationAdd(name, Path(folder, name))
            for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
        ]
        with _hub_errors(f"[hub] cannot push to {repo_id!r}"):
            hub = HfApi()
            hub.create_repo(repo_id, private=private, exist_ok=True)
            commit = hub.create_commit(repo_id, files, commit_message="Upload a tensorized LSTM")
    return commit.commit_url


def _pull(repo_id: str, revision: str | None, start: str) -> SequenceModel:
    """The model in a repository; the message of an error begins with ``start``."""
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
    except ValueError:
        raise
    except Exception as error:  # of httpx or requests, by the client's version
        reason = " ".join(str(error).split())
        raise HubError(f"{failed} ({type(error).__name__}: {reason})") from error
