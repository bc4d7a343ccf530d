"""Every draw is a pure function of what it is for."""

import torch
from checks import assert_mean
from scipy import stats

from lightning_tweedie.randomness import SampleNoise, item_generator, item_noise, step_generator


def test_an_items_noise_depends_on_its_keys_alone():
    noise = item_noise(3, "noise", 7, (2, 5))
    assert torch.equal(noise, item_noise(3, "noise", 7, (2, 5)))
    for other in [(4, "noise", 7), (3, "other", 7), (3, "noise", 8)]:
        assert not torch.equal(noise, item_noise(*other, (2, 5)))


def test_keys_do_not_run_together():
    """Seed 1 with stream "2" is not seed 12 with an empty stream, and a large index is as good as a small one."""
    draws = {item_generator(seed, stream, i).random() for seed, stream in [(1, "2"), (12, "")] for i in [0, 1, 2**62]}
    assert len(draws) == 6


def test_items_are_standard_normal_and_independent_of_their_neighbours():
    noise = torch.stack([item_noise(0, "noise", i, (64,)) for i in range(500)]).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert_mean(noise[1:] * noise[:-1], 0.0)
    assert_mean((noise[:, 1:] * noise[:, :-1]).flatten(), 0.0)


def test_nothing_touches_the_global_state():
    before = torch.get_rng_state()
    item_noise(0, "noise", 0, (3,))
    torch.randn(3, generator=step_generator(0, rank=0, step=0))
    SampleNoise(0, [0, 1]).normal((3,))
    assert torch.equal(before, torch.get_rng_state())


def test_a_steps_noise_differs_by_seed_rank_step_and_micro_batch():
    keys = [dict(seed=s, rank=r, step=t, micro_batch=m) for s in (0, 1) for r in (0, 1) for t in (0, 1) for m in (0, 1)]
    first = {torch.randn((), generator=step_generator(**key)).item() for key in keys}
    assert len(first) == len(keys)
    assert first == {torch.randn((), generator=step_generator(**key)).item() for key in keys}


def test_a_samples_noise_does_not_depend_on_its_batch():
    together, alone = SampleNoise(0, [5, 6, 7]), SampleNoise(0, [6])
    for _ in range(3):
        assert torch.equal(together.normal((2, 2))[1], alone.normal((2, 2))[0])
    like = torch.zeros(3, 4, dtype=torch.float64)
    assert together(like).dtype == torch.float64
    assert not torch.equal(SampleNoise(0, [0], stream="a").normal((4,)), SampleNoise(0, [0], stream="b").normal((4,)))
