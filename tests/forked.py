"""A process that is forked from the test's own: it has imported everything already."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from lightning_tweedie.cli import main

__all__ = ["Forked", "forked"]


def forked(work: Callable[[], Any], output: int | None = None) -> int:
    """Does the work in a process of its own, which ends with the status that the work returns; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if output is not None:
            sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w", buffering=1)
        status = work() or 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


class Forked:
    """Stands in for ``subprocess.Popen`` of ``lightning_tweedie ...``, without the seconds that the imports take."""

    def __init__(self, command: Sequence[str], stdout: Any, env: dict[str, str], **_: Any) -> None:
        assert command[0] == "lightning_tweedie"

        def work() -> int:
            os.environ |= env
            return main(command[1:])

        self.args = list(command)
        self.pid = forked(work, stdout.fileno())
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
