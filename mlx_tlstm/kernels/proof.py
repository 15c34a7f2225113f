"""Has a layer's kernels proven on this device before any result depends on them.

What :mod:`~mlx_tlstm.kernels.trial` finds right is remembered on the disk, and proven anew when the
kernels, MLX, the system or the device change.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.files import cache_folder, read_json, replace_text
from mlx_tlstm.kernels import library, tuning
from mlx_tlstm.kernels.trial import Configuration, KernelError, prove
from mlx_tlstm.recurrence.transition import TensorTransition

#: Settings of Metal and MLX that change what is compiled, or what a pipeline is granted.
ENVIRONMENT = ("MLX_ENABLE_TF32", "MTL_DEBUG_LAYER", "MTL_SHADER_VALIDATION")


def choose(configuration: Configuration, explicit: bool) -> TensorTransition:
    """The step that a layer runs: its kernels once they are proven, else plain operations.

    Args:
        configuration: The layer's.
        explicit: The user named the kernels' backend, so that plain operations are no answer.

    Raises:
        KernelError: The kernels are not right here, and were named.
    """
    try:
        return proven(configuration)
    except KernelError as fault:
        if explicit:
            raise
        with _lock:
            known = str(fault) in _warned
            _warned.add(str(fault))
        if not known:
            warnings.warn(str(fault), RuntimeWarning, stacklevel=2)
        return configuration.plain


def proven(configuration: Configuration) -> TensorTransition:
    """The kernels' step, proven now or before; of threads that come at once the first proves it.

    Raises:
        KernelError: The kernels are not right here.
    """
    key = (configuration, tuning.device())
    outcome = _outcomes.get(key)
    if outcome is None:
        with _lock:
            outcome = _outcomes.get(key)
            if outcome is None:
                outcome = _outcomes[key] = _settled(configuration)
    if isinstance(outcome, str):
        raise KernelError(outcome)
    return outcome


def forget() -> None:
    """Forget what this process knows; the disk keeps it."""
    with _lock:
        _outcomes.clear()
        _warned.clear()


#: By configuration and device: the step that is right, or why there is none.
_outcomes: dict[tuple[Configuration, str], TensorTransition | str] = {}
_warned: set[str] = set()
_lock = threading.Lock()


def _settled(configuration: Configuration) -> TensorTransition | str:
    key = _key(configuration)
    text = json.dumps(key, sort_keys=True)
    path = cache_folder() / "proofs" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    variants = configuration.variants()
    if (stored := _read(path, key)) in range(len(variants)):
        return variants[stored]
    try:
        proof = prove(configuration)
    except KernelError as fault:
        return str(fault)
    record = {"key": key, "variant": variants.index(proof.kernels), "errors": proof.errors}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(record, indent=2) + "\n")
    except OSError:
        pass  # the next process proves it again
    return proof.kernels


def _key(configuration: Configuration) -> dict[str, Any]:
    texts = json.dumps(library.texts(), sort_keys=True)
    return {
        "kernels": hashlib.sha256(texts.encode()).hexdigest(),
        "mlx": mx.__version__,
        "device": tuning.device(),
        "system": platform.platform(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "configuration": repr(configuration),
    }


def _read(path: Path, key: dict[str, Any]) -> Any:
    """The number of the variant that is right, if the file is whole and of just this key."""
    try:
        record = read_json(path, "proof")
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    return record.get("variant")
