"""`sample` from a checkpoint alone."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from command_line import DIGITS, run
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.noisy import collate
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import MLP
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling import Heun, sample


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, "fit", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


def samples(ckpt: Path, out: Path, *options: str) -> np.ndarray:
    assert main(["sample", "--ckpt_path", str(ckpt), "--out", str(out), "--steps", "4", *options]) == 0
    return np.load(out / "samples.npz")["samples"]


def test_the_averaged_weights_sample(ckpt: Path, tmp_path: Path) -> None:
    trained = load_denoiser(ckpt)
    assert trained.shape == (1, 28, 28)
    assert trained.sigma_n == 0.5
    weights = torch.load(ckpt, weights_only=True)["state_dict"]
    for name, value in trained.denoiser.state_dict().items():
        assert torch.equal(value, weights[f"ema.averages.0.{name}"])
    assert not all(torch.equal(v, weights[f"denoiser.{k}"]) for k, v in trained.denoiser.state_dict().items())
    made = samples(ckpt, tmp_path / "out", "--num", "5", "--seed", "3")
    expected = sample(trained.denoiser, (5, 1, 28, 28), Heun(steps=4), seed=3)
    np.testing.assert_array_equal(made, expected.numpy())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(f"000{i}.png" for i in range(5)), "grid.png", "samples.npz",
    ]  # fmt: skip
    pixels = np.asarray(Image.open(tmp_path / "out/0003.png").convert("L"))
    np.testing.assert_array_equal(pixels, np.round((made[3, 0].clip(-1, 1) + 1) * 127.5))


def test_samples_do_not_depend_on_the_batch(ckpt: Path, tmp_path: Path) -> None:
    options = ("--num", "7", "--sampler", "ancestral")
    one = samples(ckpt, tmp_path / "one", *options, "--batch_size", "1")
    three = samples(ckpt, tmp_path / "three", *options, "--batch_size", "3")
    # Sums in another order, nothing more: other noise would differ by about 1.
    np.testing.assert_allclose(one, three, atol=2e-4)


def test_truncated(ckpt: Path, tmp_path: Path) -> None:
    made = samples(ckpt, tmp_path / "out", "--num", "2", "--truncated")
    expected = sample(load_denoiser(ckpt).denoiser, (2, 1, 28, 28), Heun(steps=4), truncate_at=0.5)
    np.testing.assert_array_equal(made, expected.numpy())


def test_one_step_from_a_given_level(ckpt: Path, tmp_path: Path) -> None:
    """How a distilled generator is sampled: what the denoiser answers to noise of that level."""
    made = samples(ckpt, tmp_path / "out", "--num", "2", "--steps", "1", "--sigma_max", "2.5")
    noise = SampleNoise(0, range(2)).normal((1, 28, 28))
    with torch.no_grad():
        expected = load_denoiser(ckpt).denoiser(2.5 * noise, 2.5)
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-6)


def test_nothing_is_overwritten_unasked(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    samples(ckpt, out, "--num", "2")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    options = ["sample", "--ckpt_path", str(ckpt), "--out", str(out), "--num", "2", "--steps", "4", "--seed", "1"]
    assert main(options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert main([*options, "--overwrite", "true"]) == 0
    after = {p.name: p.read_bytes() for p in out.iterdir()}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_fewer_samples_leave_no_earlier_ones(ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    samples(ckpt, out, "--num", "3")
    for name in ("notes.txt", "001.png", "mine.png"):
        (out / name).write_text("not of this command")
    samples(ckpt, out, "--num", "1", "--overwrite", "true")
    assert sorted(p.name for p in out.iterdir()) == [
        "0000.png", "001.png", "grid.png", "mine.png", "notes.txt", "samples.npz",
    ]  # fmt: skip


def test_every_average_can_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_lives = "--model.ema=lightning_tweedie.ema.EMA", "--model.ema.init_args.half_lives=[0.5,2]"
    # Without the shortened horizons of the first steps, in which both averages are the same.
    assert run(tmp_path, "fit", *half_lives, "--model.ema.init_args.ramp_up=.inf", config=DIGITS) == 0
    ckpt = tmp_path / "runs/digits/fit_0/checkpoints/last.ckpt"
    weights = torch.load(ckpt, weights_only=True)["state_dict"]
    for average in (0, 1):
        for name, value in load_denoiser(ckpt, average=average).denoiser.state_dict().items():
            assert torch.equal(value, weights[f"ema.averages.{average}.{name}"])
    made = [samples(ckpt, tmp_path / str(i), "--num", "1", "--average", str(i)) for i in (0, 1)]
    np.testing.assert_array_equal(
        made[1], sample(load_denoiser(ckpt, average=1).denoiser, (1, 1, 28, 28), Heun(steps=4)).numpy()
    )
    assert not np.array_equal(*made)
    given = ["--ckpt_path", str(ckpt), "--out", str(tmp_path / "out")]
    for command in (["sample"], ["denoise", "--input", str(tmp_path)]):
        for average in ("2", "-1"):
            assert main([*command, *given, "--average", average]) == 2
            assert f"average = {average} does not exist" in capsys.readouterr().err


def test_a_checkpoint_of_a_training_without_a_data_module(tmp_path: Path) -> None:
    items = [NoisyBatch(torch.zeros(2), torch.tensor(0.5), torch.tensor(i)) for i in range(4)]
    loader = DataLoader(items, batch_size=2, collate_fn=collate)
    trainer = Trainer(default_root_dir=tmp_path, max_steps=1, accelerator="cpu", logger=False)
    trainer.fit(TweedieModule(Denoiser(MLP(2, width=8), sigma_data=0.5)), loader)
    (path,) = tmp_path.rglob("*.ckpt")
    with pytest.raises(UserError, match="trained without a NoisyDataModule"):
        load_denoiser(path)


def test_samples_in_the_units_of_the_data(ckpt: Path, tmp_path: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    content["lightning_tweedie"]["scale"] = {"low": 0.0, "high": 4095.0, "dtype": "uint16"}
    torch.save(content, tmp_path / "deep.ckpt")
    made = samples(tmp_path / "deep.ckpt", tmp_path / "out", "--num", "2")
    for number in range(2):
        pixels = tifffile.imread(tmp_path / f"out/000{number}.tif")
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, np.rint((made[number, 0].astype(float) + 1) * 2047.5).clip(0, 65535))
    samples(ckpt, tmp_path / "out", "--num", "1", "--overwrite", "true")
    assert not list((tmp_path / "out").glob("*.tif"))  # of 8-bit data the PNGs are enough
