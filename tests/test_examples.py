"""The files in examples/ run as the docs print them, and do what they say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import checkpoint

from lightning_tweedie.cli import main
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.objectives.term import Step
from lightning_tweedie.oracles import MixtureOracle

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/howto/extending.md").read_text()
FILES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
COMMANDS = [shlex.split(line) for line in re.findall(r"^lightning_tweedie (fit .*)$", PAGE.replace("\\\n", " "), re.M)]
SMALL = (
    "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.num_sanity_val_steps 0 --trainer.limit_val_batches 1 "
    "--trainer.log_every_n_steps 1 --trainer.enable_progress_bar false --data.batch_size 8 --trainer.callbacks []"
).split()


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a reader of the docs is."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_each_file_is_short_and_stands_in_the_docs_with_a_command() -> None:
    assert len(FILES) == 5
    for name in FILES:
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 40
        assert f"```{{literalinclude}} ../../examples/{name}\n" in PAGE
        assert any(f"examples.{Path(name).stem}." in " ".join(command) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(re.findall(r"examples\.\w+", " ".join(c))))
def test_the_commands_of_the_docs(command: list[str], tmp_path: Path) -> None:
    assert main([*command, *SMALL, "--runs", str(tmp_path / "runs")]) == 0
    (directory,) = tmp_path.glob("runs/*/fit_0")
    last = checkpoint(directory / "checkpoints/last.ckpt")
    assert last["global_step"] == 2
    own = set(re.findall(r"examples\.\w+\.\w+", " ".join(command)))
    written = (directory / "config.yaml").read_text()
    assert own and all(f"class_path: {name}" in written for name in own)
    assert ("train/mirror" in (directory / "metrics.csv").read_text()) == ("examples.mirror.Mirror" in own)
    given = ["--ckpt_path", str(directory / "checkpoints/last.ckpt"), "--num", "2"]
    network = any(name.startswith("examples.conv1d") for name in own)
    assert main(["sample", *given, "--out", str(tmp_path / "s"), "--steps", "2"]) == (2 if network else 0)
    if network:
        assert main(["export", *given, "--out", str(tmp_path / "model"), "--allow", "examples"]) == 0
        out = ["--out", str(tmp_path / "s"), "--steps", "2", "--allow", "examples"]
        assert main(["sample", "--ckpt_path", str(tmp_path / "model"), "--num", "2", *out]) == 0
        assert np.load(tmp_path / "s/samples.npz")["samples"].shape == (2, 1, 64)
        assert 'allow=["examples"]' in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize(("name", "shape"), [("discs", (1, 28, 28)), ("spiral", (2,)), ("waves", (1, 64))])
def test_items_are_on_the_scale_and_the_same_at_every_reading(name: str, shape: tuple[int, ...]) -> None:
    module = __import__(f"examples.{name}", fromlist=["x"])
    data: NoisyDataModule = getattr(module, name.capitalize())(items=600, sigma=0.1)
    first, second = data.train_set(), data.train_set()
    items = [torch.as_tensor(first[i]) for i in range(50)]
    assert len(first) == 600 and all(item.shape == shape for item in items)
    assert all(torch.equal(item, torch.as_tensor(second[i])) for i, item in enumerate(items))
    together = torch.stack(items)
    assert together.abs().max() <= 1 and together.std(0).max() > 0.1, "they are all alike"


def test_the_mirror_term_is_zero_for_a_law_without_sides_only() -> None:
    from examples.mirror import Mirror

    generator = torch.Generator().manual_seed(0)
    mean = 0.2 * torch.randn(1, 1, 3, 4, generator=generator)
    step_of = {"x_n": 0.4 * torch.randn(16, 1, 3, 4, generator=generator), "sigma_n": torch.full((16,), 0.4)}
    step_of["sigma_n"][0] = 0.0

    def loss(oracle: MixtureOracle) -> float:
        step = Step(**step_of, teacher=oracle, sigma_data=torch.tensor(0.5), generator=generator)
        query = Mirror().query(step)
        assert query is not None and len(query.x) == 4
        return float(query.loss(oracle(query.x, query.sigma)).mean())

    both = torch.cat([mean, mean.flip(-1)])
    assert loss(MixtureOracle(both, torch.full((2,), 0.1))) < 1e-10
    assert loss(MixtureOracle(both, torch.full((2,), 0.1), torch.tensor([0.9, 0.1]))) > 0.01


def test_the_network_for_signals_sees_the_whole_of_them() -> None:
    from examples.conv1d import ConvNet1d

    torch.manual_seed(0)
    network = ConvNet1d().double()
    torch.nn.init.normal_(network.leave.weight)
    x = torch.zeros(1, 1, 64, dtype=torch.float64, requires_grad=True)
    level = torch.zeros(1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network(x, level)[0, 0, 32], x)
    assert (gradient != 0).all()
    assert not torch.equal(network(x, level), network(x, level + 1)), "the level makes no difference"
