"""One run of a sweep: a directory that knows its parameters, how far it came and what it logged."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Any

from lightning_tweedie.errors import UserError
from lightning_tweedie.files import write_whole
from lightning_tweedie.sweeps.parameters import Point, flat
from lightning_tweedie.sweeps.sweep_file import Sweep, agent_command

__all__ = ["Run", "short_names", "text"]


class Run:
    """A run and its directory, ``<folder>/<name>``.

    There are ``parameters.json``, ``log.txt`` with what all attempts printed, ``run.json`` with how the last one ended,
    and a directory ``fit_<number>`` of each attempt. The name holds the values of the parameters and a digest of them
    and of the command: a run of another sweep never gets it.

    Args:
        sweep: The sweep.
        point: The run's parameters.
        folder: The sweep's directory.

    Attributes:
        values: The value of each parameter, by its dotted name.
    """

    def __init__(self, sweep: Sweep, point: Point, folder: Path) -> None:
        self.sweep = sweep
        self.point = point
        self.values = {".".join(path): _at(point, path) for path, _ in flat(sweep.parameters)}
        identity = json.dumps([sweep.command, sweep.program, point], sort_keys=True, default=str)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        varied = [path for path, spec in flat(sweep.parameters) if "value" not in spec]
        names = short_names([".".join(path) for path in varied])
        told = "_".join(f"{names[key]}-{text(self.values[key])}" for key in names)
        self.name = f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', told)[:80]}_{digest}".lstrip("_.+-")
        self.directory = folder / self.name
        self._process: Popen[bytes] | None = None
        self._lock: int | None = None
        self._began = 0.0
        self._stopped = False
        self._logged: dict[str, float] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """How the last attempt ended; empty before the end of the first one."""
        try:
            content = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``interrupted`` or ``waiting``."""
        return self.record.get("state") or ("interrupted" if self._attempts() else "waiting")

    @property
    def reason(self) -> str:
        """Why it failed: the last mistake told in its log, or the last line there."""
        try:
            lines = (self.directory / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        told = [line.strip() for line in lines if line.strip()]
        mistakes = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
        return (mistakes or told or ["it said nothing"])[-1]

    def metrics(self) -> dict[str, float]:
        """The last value of everything that its attempts logged."""
        if self.state != "finished":
            return self._read_metrics()
        if self._logged is None:  # from now on it stays as it is
            self._logged = self._read_metrics()
        return self._logged

    def _read_metrics(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for attempt in self._attempts():
            try:
                with (attempt / "metrics.csv").open(newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        for name, value in row.items():
                            if name and value:
                                values[name] = float(value)
            except (OSError, ValueError):  # an attempt that was killed before it logged, or in the middle of a line
                continue
        return values

    def value(self) -> float | None:
        """What the sweep compares runs by, if this one is finished and logged it as a finite number."""
        value = self.metrics().get(self.sweep.metric) if self.state == "finished" else None
        return value if value is not None and math.isfinite(value) else None

    def checkpoint(self) -> Path | None:
        """The latest state that the run can go on from."""
        for attempt in reversed(self._attempts()):
            paths = (attempt / "checkpoints" / name for name in ("last.ckpt", "interrupted.ckpt"))
            if found := [path for path in paths if path.exists()]:
                return max(found, key=lambda path: path.stat().st_mtime_ns)
        return None

    def command(self) -> list[str]:
        """As an agent's, with the run's directory and, if it was interrupted, its checkpoint added."""
        command = agent_command(self.sweep, self.point, self.directory / "parameters.json")
        command += ["--runs", str(self.directory.parent), "--name", self.name]
        checkpoint = self.checkpoint()
        return command if checkpoint is None else [*command, "--ckpt_path", str(checkpoint)]

    def reserve(self) -> bool:
        """Whether the run is nobody else's: another sweep's, or still going on after its sweep was killed.

        The reservation is kept by the running process as well, and ends with the last one that has it.

        Raises:
            UserError: Its directory cannot be made.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{str(self.directory)!r} cannot be made ({error}): make room, or set --out to another folder"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Leaves the run to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts a process that trains, or goes on training; the run must be reserved.

        Args:
            environment: Variables of the process.

        Raises:
            OSError: There is no such program.
        """
        assert self._lock is not None
        write_whole(self.directory / "parameters.json", json.dumps(self.point).encode())
        command = self.command()
        with (self.directory / "log.txt").open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            self._began = time.monotonic()
            self._process = Popen(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=dict(environment),
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which tells its runs to save their state
            )

    def poll(self) -> bool:
        """Whether the process has ended; if so, its end is recorded and the run released."""
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return False
        if self._lock is None:  # its end is recorded
            return True
        state = "finished" if status == 0 else "interrupted" if self._stopped else "failed"
        before = self.record
        record = {
            "state": state,
            "exit_status": status,
            "attempts": before.get("attempts", 0) + 1,
            "seconds": round(before.get("seconds", 0.0) + time.monotonic() - self._began, 1),
            "parameters": self.point,
            "command": self._process.args,
        }
        write_whole(self.directory / "run.json", f"{json.dumps(record, indent=1)}\n".encode())
        self.release()
        return True

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tells the process and all that it has started to end: SIGTERM lets it save its state."""
        self._stopped = True
        if self._process is None or self._process.poll() is not None:
            return
        if number == signal.SIGTERM:
            self._process.terminate()  # further processes of a training agree with the first one where to stop
        else:
            os.killpg(self._process.pid, number)

    def _attempts(self) -> list[Path]:
        """The directories of all attempts, the latest last."""
        found = [path for path in self.directory.glob("fit_*") if path.name.removeprefix("fit_").isdigit()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("fit_")))


def _at(point: Point, path: Sequence[str]) -> Any:
    value: Any = point
    for name in path:
        value = value[name]
    return value


def short_names(keys: list[str]) -> dict[str, str]:
    """Dotted names by as many of their last parts as tell them apart.

    Examples:
        >>> short_names(["data.sigma", "data.seed", "model.seed"])
        {'data.sigma': 'sigma', 'data.seed': 'data.seed', 'model.seed': 'model.seed'}
    """
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        names[key] = next((end for end in endings if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return names


def text(value: Any) -> str:
    """A value in a few letters: of a path the name of the file, of a class its own name.

    Examples:
        >>> [text(value) for value in ("configs/objective/naive.yaml", "torch.optim.Adam", 0.1, 1 / 3)]
        ['naive', 'Adam', '0.1', '0.3333']
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    words = str(value)
    if words.endswith((".yaml", ".yml")):
        return Path(words).stem
    return words.rpartition(".")[2] if re.fullmatch(r"[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)+", words) else words
