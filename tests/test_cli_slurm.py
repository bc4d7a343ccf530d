"""The batch script of the docs, with stand-ins for `srun` and `scontrol`: interrupted, and gone on with."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from command_line import RING, checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/howto/many_gpus.md").read_text()
SRUN = """#!{python}
# Starts as many processes as SLURM would on one machine, hands its signals on, and ends as the worst of them does.
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
for rank in map(str, range(int(os.environ["SLURM_NTASKS"]))):
    place = dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NODEID="0")
    tasks.append(subprocess.Popen(command, env=dict(os.environ, **place)))
sys.exit(max(task.wait() for task in tasks))
"""
COMMANDS = {
    "srun": SRUN,
    "scontrol": '#!/bin/sh\necho "$@" > requeued\n',
    "lightning_tweedie": '#!/bin/sh\nexec {python} -m lightning_tweedie "$@"\n',
}
HERE = {
    "configs/experiment/folder.yaml": "ring.yaml",
    "--data.root my_images --data.sigma 0.2": "",
    "accelerator gpu": "accelerator cpu",
    "devices 4": "devices $SLURM_NTASKS",
    "num_nodes 2": "num_nodes 1",
    "bf16-mixed": "32-true",
}
"""What the script says of a cluster, and what stands for it here."""


def test_a_job_that_runs_out_of_time_goes_on_in_its_next_turn(tmp_path: Path) -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for theirs, ours in HERE.items():
        assert theirs in script
        script = script.replace(theirs, ours)
    (tmp_path / "job.sh").write_text(script)
    config = RING.replace("max_steps: 30", "max_steps: 200").replace(
        "every_n_train_steps: 5", "every_n_train_steps: 20"
    )
    (tmp_path / "ring.yaml").write_text(config)
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)
    environment = {
        **os.environ,
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_NAME": "photos",
        "SLURM_JOB_ID": str(os.getpid()),  # Lightning makes the number of a port of it
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    runs = tmp_path / "runs/photos"

    def job(tasks: int) -> subprocess.Popen[str]:
        given = {**environment, "SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=given, text=True, **pipes)  # type: ignore[call-overload]

    first = job(2)
    while not (runs / "fit_0/checkpoints/last.ckpt").exists() and first.poll() is None:
        time.sleep(0.1)
    # SLURM signals what srun has started, and not the script.
    (srun,) = children(first.pid)
    os.kill(srun, signal.SIGTERM)
    told = first.communicate(timeout=120)[0]
    assert first.returncode == 143, told
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    step = checkpoint(runs / "fit_0/checkpoints/interrupted.ckpt")["global_step"]
    assert 20 <= step < 200

    second = job(1)  # two would do the same and take twice as long
    told = second.communicate(timeout=240)[0]
    assert second.returncode == 0, told
    assert f"interrupted.ckpt, after {step} steps" in told
    assert sorted(path.name for path in runs.iterdir()) == ["fit_0", "fit_1"]
    assert checkpoint(runs / "fit_1/checkpoints/last.ckpt")["global_step"] == 200


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
