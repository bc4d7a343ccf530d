"""Samples are the same however they were made: batches, interruptions, what was there before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checks import Exact, awake
from torch import Tensor

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.samples import CHUNK, generate
from lightning_tweedie.networks import UNet
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.sampling import Ancestral, Euler, Heun, Sampler, sample

SHAPE = (1, 4, 4)
N = CHUNK + 20
TENTH = 0.1 / 127.5
"""A tenth of the distance of two 8-bit levels."""


def network() -> Denoiser:
    """A real network, whose rounding depends on the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = UNet(channels=1, width=8, multipliers=[1], blocks=1, attention=[])
    return awake(Denoiser(backbone, sigma_data=0.5)).eval()  # type: ignore[return-value]


class Counting(Exact):
    """The denoiser of white data, which counts its items and breaks down after so many."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__(lambda x, sigma: x / (1 + (sigma / 0.5).square()).reshape(-1, 1, 1, 1), sigma_data=0.5)
        self.items = 0
        self.limit = limit

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.items += len(x)
        if self.items > self.limit:
            raise KeyboardInterrupt
        return super().forward(x, sigma)


@pytest.mark.parametrize("sampler", [Heun(3), Ancestral(3)])
@pytest.mark.parametrize("stop", [None, 0.3])
def test_a_sample_does_not_depend_on_the_batch(sampler: Sampler, stop: float | None) -> None:
    denoiser = network()
    many, few = (generate(denoiser, SHAPE, N, sampler, truncate_at=stop, batch_size=size) for size in (64, 7))
    # Rounding at values of 80, where sampling starts, is all there is: a tenth of an 8-bit level at most.
    torch.testing.assert_close(many, few, rtol=0, atol=TENTH)
    assert (to_uint8(many) != to_uint8(few)).float().mean() < 0.01, "only what lies on the edge of two levels"
    alone = sample(denoiser, (1, *SHAPE), sampler, indices=[N - 1], truncate_at=stop)
    torch.testing.assert_close(many[-1:], alone, rtol=0, atol=TENTH)
    other = generate(denoiser, SHAPE, 3, sampler, seed=1, truncate_at=stop)
    assert (other - many[:3]).abs().mean() > 0.05, "another seed, other samples"


def test_autocast_of_the_caller_does_not_reach_the_samples() -> None:
    denoiser = network()
    exact = generate(denoiser, SHAPE, 9, Heun(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(denoiser, SHAPE, 9, Heun(3)), exact)
        rounded = sample(denoiser, (9, *SHAPE), Heun(3))
    assert not torch.equal(rounded, exact), "the control"


def test_an_interrupted_call_continues(tmp_path: Path) -> None:
    # Batches of 50, 3 evaluations of each sample: it stops in the second chunk.
    n, each = 2 * CHUNK, 50
    whole = generate(Counting(), SHAPE, n, Euler(3), batch_size=each)
    with pytest.raises(KeyboardInterrupt):
        generate(Counting(limit=3 * (CHUNK + each)), SHAPE, n, Euler(3), batch_size=each, store=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.npy", "conditions.json"]
    denoiser = Counting()
    assert torch.equal(generate(denoiser, SHAPE, n, Euler(3), batch_size=each, store=tmp_path), whole)
    assert denoiser.items == 3 * CHUNK, "the first chunk was made again"
    denoiser = Counting()
    assert torch.equal(generate(denoiser, SHAPE, n, Euler(3), batch_size=each, store=tmp_path), whole)
    assert denoiser.items == 0


def test_more_and_fewer_samples_later(tmp_path: Path) -> None:
    whole = generate(Counting(), SHAPE, 2 * CHUNK, Euler(3))
    for n, new in ((CHUNK + 10, CHUNK + 10), (5, 0), (CHUNK + 3, 0), (2 * CHUNK, CHUNK - 10)):
        denoiser = Counting()
        assert torch.equal(generate(denoiser, SHAPE, n, Euler(3), store=tmp_path), whole[:n])
        assert denoiser.items == 3 * new


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    whole = generate(Counting(), SHAPE, N, Euler(3), store=tmp_path)
    file = tmp_path / "00000000.npy"
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(generate(Counting(), SHAPE, N, Euler(3), store=tmp_path), whole)
    np.save(file, np.zeros((CHUNK, 1, 5, 5), np.float32))  # another shape
    assert torch.equal(generate(Counting(), SHAPE, N, Euler(3), store=tmp_path), whole)
    assert torch.equal(torch.from_numpy(np.load(file)), whole[:CHUNK])


def test_samples_of_something_else_are_never_taken_for_these(tmp_path: Path) -> None:
    denoiser = network()
    generate(denoiser, SHAPE, 3, Heun(3), store=tmp_path / "a")
    for difference, change in {
        "seed = 0, not 1": {"seed": 1},
        "truncate_at = None, not 0.3": {"truncate_at": 0.3},
        "sampler = heun, not euler": {"sampler": Euler(3)},
        "sampler.steps = 3, not 4": {"sampler": Heun(4)},
        "sampler.sigma_max = 80.0, not 40.0": {"sampler": Heun(3, sigma_max=40.0)},
        r"shape = \[1, 4, 4\], not \[1, 8, 8\]": {"shape": (1, 8, 8)},
    }.items():
        with pytest.raises(UserError, match=difference):
            generate(denoiser, **{"shape": SHAPE, "n": 3, "sampler": Heun(3), "store": tmp_path / "a", **change})
    with torch.no_grad():
        next(denoiser.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(UserError, match="network = "):
        generate(denoiser, SHAPE, 3, Heun(3), store=tmp_path / "a")
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b/mine.npy", np.zeros(3))
    with pytest.raises(UserError, match="holds files of something else"):
        generate(denoiser, SHAPE, 3, Heun(3), store=tmp_path / "b")
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        generate(denoiser, SHAPE, 3, Heun(3), store=tmp_path / "c")


def test_progress_counts_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(Counting(), SHAPE, CHUNK, Euler(3), store=tmp_path, progress="samples")
    assert f"{CHUNK}/{CHUNK}" not in capsys.readouterr().out
    generate(Counting(), SHAPE, 2 * CHUNK, Euler(3), store=tmp_path, batch_size=CHUNK, progress="samples")
    said = capsys.readouterr().err
    assert f"samples:  50%|█████     | {CHUNK}/{2 * CHUNK} [00:00<?, ?image/s]" in said
    assert "\n" not in said, "it leaves nothing behind"
    generate(Counting(), SHAPE, 3, Euler(3))
    assert capsys.readouterr().err == ""
