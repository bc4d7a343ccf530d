"""Two processes from the command line: killed without warning, resumed, and the end is the same bit by bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import RING, assert_same_state, checkpoint
from lightning import Callback, Trainer


class KillAt(Callback):
    """Kills every process at a step, with no chance to tidy up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lightning_tweedie", "fit", "--config", "ring.yaml", "--data.sigma", "0.3"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", *options]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(600)
def test_killed_and_resumed_with_two_processes(tmp_path: Path) -> None:
    (tmp_path / "ring.yaml").write_text(RING)
    (tmp_path / "kill.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: test_cli_ddp.KillAt\n      init_args: {step: 18}\n"
    )
    whole = fit(tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = fit(tmp_path, "--config", "kill.yaml")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Every process wrote to the same directory: there are just two.
    runs = tmp_path / "runs/ring"
    assert sorted(p.name for p in runs.iterdir()) == ["fit_0", "fit_1"]
    # 328 items, 10 batches of 2 x 16 an epoch: the state is from the middle of the second one.
    last = runs / "fit_1/checkpoints/last.ckpt"
    assert checkpoint(last)["global_step"] == 15
    resumed = fit(tmp_path, "--ckpt_path", str(last))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_state(runs / "fit_0/checkpoints/last.ckpt", runs / "fit_2/checkpoints/last.ckpt")


def test_a_mistake_ends_both_processes(tmp_path: Path) -> None:
    """One process must not wait for the other; the sentence is told."""
    (tmp_path / "ring.yaml").write_text(RING)
    failed = fit(tmp_path, "--data.batch_size=1000")
    assert failed.returncode == 2, failed.stderr
    assert "error: data.batch_size = 1000" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(tmp_path.glob("runs/ring/*"))
