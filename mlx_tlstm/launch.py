"""``python -m mlx_tlstm.launch -n 2 -- [TASK] [options]``: train in several processes.

The same as ``mlx.launch -n 2 -- python -m mlx_tlstm.train …``, but it fails when a process fails:
``mlx.launch`` itself exits with 0 whatever becomes of them. Its options stand before ``--`` and
training's behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from mlx_tlstm.training.signals import STOP_SIGNALS

#: What mlx.launch says of a process that failed; colours may stand around it.
_FAILURE = re.compile(r"Node with rank (\d+) exited with code (-?\d+)")


def launcher() -> str:
    """The ``mlx.launch`` beside this Python, else the one on the path.

    Raises:
        click.ClickException: There is none.
    """
    beside = Path(sys.executable).with_name("mlx.launch")
    found = str(beside) if beside.is_file() else shutil.which("mlx.launch")
    if found is None:
        raise click.ClickException("mlx.launch is missing; it comes with mlx")
    return found


def run(options: Sequence[str], training: Sequence[str]) -> int:
    """Start ``mlx_tlstm.train`` in every process that ``options`` name; the exit code.

    Output goes on as it comes. The code is that of the first process that failed (128 + n after
    signal n), 1 where mlx.launch says nothing of it, and 0 where all went well.
    """
    # A --python among the options, for other hosts, takes the place of this one.
    python = ["--python", sys.executable]
    # Without the dashes mlx.launch would take what it knows, such as --backend, from training's.
    arguments = [launcher(), *python, *options, "--", "-m", "mlx_tlstm.train", *training]
    code = 0
    with _signals() as (passed, follow):
        process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
        follow(process.pid)
        with process:
            for line in process.stderr:
                sys.stderr.write(line)
                sys.stderr.flush()
                failure = _FAILURE.search(line)
                if failure and code == 0:
                    code = int(failure[2])
    code = (-passed[0] if passed else 0) or code or process.returncode
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _signals() -> Iterator[tuple[list[int], Callable[[int], None]]]:
    """Pass Ctrl-C and SIGTERM on to a process group.

    What is started inside ignores them until it sets handlers of its own: training does, and
    mlx.launch lives to pass on what training says. The signals that came, and a function that
    takes the group.
    """
    passed: list[int] = []
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}

    def follow(group: int) -> None:
        def forward(number: int, frame: object) -> None:
            passed.append(number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

        for number in STOP_SIGNALS:
            signal.signal(number, forward)

    try:
        yield passed, follow
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> None:
    """The command; see the module."""
    arguments = sys.argv[1:]
    if "--" not in arguments or "--help" in arguments[: arguments.index("--")]:
        click.echo(__doc__)
        click.echo("usage: python -m mlx_tlstm.launch [mlx.launch's options] -- [TASK] [options]")
        sys.exit(0 if "--help" in arguments else 2)
    split = arguments.index("--")
    try:
        sys.exit(run(arguments[:split], arguments[split + 1 :]))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
