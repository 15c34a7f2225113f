"""``python -m mlx_tlstm.launch -n 2 -- [TASK] [options]``: train in several processes.

The same as ``mlx.launch -n 2 -- python -m mlx_tlstm.train …``, but it fails when a process fails:
``mlx.launch`` itself exits with 0 whatever becomes of them. Its options stand before ``--``:
``-n N`` for processes here, ``--hostfile FILE --backend ring`` for several machines, and others
(``mlx.launch --help``). Those of training stand behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from mlx_tlstm.streams import forgiving, safe_streams
from mlx_tlstm.training.signals import Handled, stop_signals

#: What mlx.launch says of a process that failed; colours may stand around it.
_FAILURE = re.compile(rb"Node with rank (\d+) exited with code (-?\d+)")


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
    signal n), else mlx.launch's own, which is 0 where all went well.
    """
    # A --python among the options, for other hosts, takes the place of this one.
    python = ["--python", sys.executable]
    # Without the dashes mlx.launch would take what it knows, such as --backend, from training's.
    arguments = [launcher(), *python, *options, "--", "-m", "mlx_tlstm.train", *training]
    failures: list[int] = []

    def watch(line: bytes) -> None:
        if failure := _FAILURE.search(line):
            failures.append(int(failure[2]))

    with _signals() as (passed, follow):
        # Both pass through here: mlx.launch ends where nobody reads its output.
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        follow(process.pid)
        with process:
            output = threading.Thread(target=_pass_on, args=(process.stdout, sys.stdout))
            output.start()
            _pass_on(process.stderr, sys.stderr, watch)
            output.join()
    code = next((code for code in failures if code), 0) or process.returncode
    code = -passed[0] if passed else code
    return 128 - code if code < 0 else code


def _pass_on(
    source: Iterable[bytes], target: TextIO, watch: Callable[[bytes], None] = lambda line: None
) -> None:
    """Copy lines to a stream as they come, if it can be written, and give each to ``watch``."""
    target = forgiving(target)
    for line in source:
        target.write_bytes(line)
        watch(line)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[list[int], Callable[[int], None]]]:
    """Pass Ctrl-C and SIGTERM on to a process group, and SIGHUP as a SIGTERM.

    What is started inside ignores them until it sets handlers of its own: training does, and
    mlx.launch lives to pass on what training says. A SIGHUP that was ignored would stay so in
    training. The signals that came, and a function that takes the group.
    """
    passed: list[int] = []
    numbers = stop_signals()

    def follow(group: int) -> None:
        def forward(number: int, frame: object) -> None:
            if number == signal.SIGHUP and passed:
                return  # no second signal: a closed terminal may send several
            passed.append(number)
            # macOS says of a group that is ending that it may not be signalled.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGTERM if number == signal.SIGHUP else number)

        for number in numbers:
            signal.signal(number, forward)

    with Handled(signal.SIG_IGN, numbers):
        yield passed, follow


@safe_streams(keeps_results=True)
def main() -> None:
    """The command; see the module."""
    arguments = sys.argv[1:]
    if "--" not in arguments or "--help" in arguments[: arguments.index("--")]:
        click.echo((__doc__ or "").replace("``", ""))
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
