"""Expected errors as one line and an exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

import click

from mlx_tlstm import training
from mlx_tlstm.checks import shortened
from mlx_tlstm.kernels import BackendError
from mlx_tlstm.kernels.faults import device_failed
from mlx_tlstm.kernels.trial import KernelError
from mlx_tlstm.tasks import DataUnavailableError

#: A shell reports a program that a signal ended by the signal's number above this one.
SIGNALLED = 128
#: Characters of an error; the system's own repeat a path of any length.
LONGEST = 2000
DEVICE_ADVICE = (
    "Less memory is needed with a smaller batch, and in training with accumulate or recompute; "
    "other programs may be using the device; --backend ops leaves out this package's kernels, and "
    "--device cpu the GPU. A run goes on from its last checkpoint with --resume."
)


@contextlib.contextmanager
def clean_errors(bad_input: bool, go_on: str = "") -> Iterator[None]:
    """Turn expected errors into one line and an exit code: 2 for bad input, 1 for a failure.

    Args:
        bad_input: Whether a ``ValueError`` or a missing file is the user's mistake: true while
            arguments are checked and files are loaded. A backend that is not here always is.
        go_on: Options to add to the printed command that goes on with a stopped run.
    """
    callers = (ValueError, FileNotFoundError) if bad_input else (BackendError,)
    try:
        yield
    except callers as error:
        raise click.UsageError(shortened(str(error), LONGEST)) from error
    except BrokenPipeError:
        raise  # click ends quietly where the reader, such as head, has gone
    except (
        DataUnavailableError,
        KernelError,
        training.CheckpointError,
        training.NonFiniteError,
        training.TrackerError,
        training.WorkerLostError,
        FloatingPointError,
        OSError,
    ) as error:
        raise click.ClickException(shortened(str(error), LONGEST)) from error
    except MemoryError as error:
        raise click.ClickException(f"There is too little memory. {error}".strip()) from error
    except RuntimeError as error:
        if not device_failed(error):
            raise
        reason = shortened(str(error), LONGEST).rstrip(".")
        raise click.ClickException(f"The device has failed: {reason}. {DEVICE_ADVICE}") from error
    except training.TrainingInterrupted as error:
        click.echo(f"{error}{go_on}", err=True)
        sys.exit(SIGNALLED + error.signal_number)
    except KeyboardInterrupt as error:
        click.echo(str(error) or "Interrupted", err=True)
        sys.exit(SIGNALLED + signal.SIGINT)
