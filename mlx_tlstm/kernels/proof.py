"""Has a layer's kernels proven on this device before any result depends on them.

What :mod:`~mlx_tlstm.kernels.trial` finds right is remembered on the disk, and proven anew when the
kernels, MLX, the system or the device change. Before a proof begins, that is written there as well:
where it hangs or ends the process, the next one does not run into it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_tlstm.checks import is_number
from mlx_tlstm.files import cache_folder, read_json, replace_text, without_home
from mlx_tlstm.kernels import library, trial, tuning
from mlx_tlstm.kernels.trial import Configuration, KernelError, Proof, prove
from mlx_tlstm.recurrence.transition import TensorTransition

#: Settings of Metal and MLX that change what is compiled, or what a pipeline is granted.
ENVIRONMENT = ("MLX_ENABLE_TF32", "MTL_DEBUG_LAYER", "MTL_SHADER_VALIDATION")
#: Seconds that no proof takes: what began so long ago hangs or was ended, whoever has its number.
_LONGEST = 600.0


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


def prove_anew(configuration: Configuration, compiled: bool = False) -> Proof:
    """Prove the kernels whatever is known of them, and remember the outcome on the disk.

    Args:
        configuration: Which kernels.
        compiled: See :func:`mlx_tlstm.kernels.trial.prove`.

    Raises:
        KernelError: The kernels are not right here.
    """
    path, key = _place(configuration)
    begun = {"process": os.getpid(), "host": _host(), "time": time.time()}
    _write(path, {"key": key, "begun": begun})
    try:
        proof = prove(configuration, compiled)
    except BaseException:
        _remove(path)
        raise
    variant = configuration.variants().index(proof.kernels)
    _write(path, {"key": key, "variant": variant, "errors": proof.errors})
    return proof


def try_again(configuration: Configuration) -> None:
    """Have kernels tried at their next use though a process hung or ended in their proof."""
    path, key = _place(configuration)
    if _is_gone(_read(path, key).get("begun")):
        _remove(path)


def _settled(configuration: Configuration) -> TensorTransition | str:
    path, key = _place(configuration)
    stored = _read(path, key)
    variants = configuration.variants()
    if (variant := stored.get("variant")) in range(len(variants)):
        return variants[variant]
    if _is_gone(stored.get("begun")):
        reason = (
            "the process that last tried them hung or was ended; to try again, remove "
            f"{without_home(str(path))}"
        )
        return str(trial.fault(configuration, reason, found="were never proven"))
    try:
        return prove_anew(configuration).kernels
    except KernelError as fault:
        return str(fault)


def _is_gone(begun: Any) -> bool:
    """Whether a process that began a proof hangs or is no more; of another host only time tells."""
    if not isinstance(begun, dict) or not is_number(begun.get("time")):
        return False
    if time.time() - begun["time"] > _LONGEST:
        return True
    if begun.get("host") != _host():
        return False
    process = begun.get("process")
    if process == os.getpid():
        return True  # an earlier one of this number: here one thread at a time proves
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError):
        pass  # somebody else's, or none that was ever written here
    return False


def _host() -> str:
    """Tells machines that share a home folder; a Mac's own name changes with the network."""
    return "" if sys.platform == "darwin" else platform.node()


def _place(configuration: Configuration) -> tuple[Path, dict[str, Any]]:
    """The file of a configuration's proof, and what it is of."""
    key = _key(configuration)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "proofs" / f"{name}.json", key


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


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """What the file says, if it is whole and of just this key."""
    try:
        record = read_json(path, "proof")
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("key") == key else {}


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(record, indent=2) + "\n")
    except OSError:
        _remove(path)  # the next process proves the kernels again


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
