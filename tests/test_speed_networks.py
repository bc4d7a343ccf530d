"""The benchmark of speed of networks and objectives: it compares like with like, and runs."""

from pathlib import Path

import pytest
import torch
from checks import Exact, assert_mean, generator
from torch import nn

SPEED = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPEED))


def test_peers_have_as_many_parameters_and_the_same_convolutions():
    from networks import CPU, GPU, diffusers, ours, parameters

    def convolutions(network: nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(p.shape) for p in network.parameters() if p.ndim == 4 and p.shape[-1] == 3)

    for problem in (*CPU, *GPU):
        with torch.device("meta"):
            network, peer = ours(problem), diffusers(problem, 8)
        assert parameters(peer) == pytest.approx(parameters(network), rel=0.03)
        assert convolutions(peer) == convolutions(network)


def test_networks_are_timed_and_a_peer_that_is_not_installed_is_left_out(monkeypatch, capsys):
    import networks

    monkeypatch.setattr(networks, "PeerUNet", None)
    rows = networks.rows(quick=True)
    assert "left out" in capsys.readouterr().out
    against = {row.against for row in rows if row.against}
    assert against == {"diffusers, heads like ours, 8x8x1", "diffusers, 8x8x1"}
    assert {"images/s", "share of the matrix peak", "seconds of the first call"} <= {row.what for row in rows}


def test_phases_are_a_whole_training():
    from objectives import make_objective, phases

    parts = phases(make_objective("default", {}))
    assert [round(part.share, 3) for part in parts] == [0.25, 0.55, 0.2]
    # Replay renews its draws once in 8 steps, from its start on.
    assert [part.cycle for part in parts] == [1, 8, 8]
    for name in ("naive", "consistency", "replay_consistency", "sure"):
        assert sum(part.share for part in phases(make_objective(name, {}))) == pytest.approx(1)


def test_objectives_are_timed_and_their_memory_measured():
    from objectives import rows

    found = {(row.name, row.what): row.ratio for row in rows(quick=True)}
    assert {name for name, what in found if what.startswith("time")} == {"ambient", "default"}
    assert found["score matching", "peak memory, MiB"] > 1
    assert 0.3 < found["default", "peak memory"] < 3


def test_what_was_published_has_the_same_expectation():
    from consistency import published_loss

    from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective
    from lightning_tweedie.objectives.term import Step

    wrong = Exact(lambda x, sigma: x / (1 + sigma[:, None]))  # no martingale, so that there is something to find
    source, count = generator(), 4096
    x_n, sigma_n = torch.randn(count, 2, generator=source), torch.full((count,), 0.4)
    term = Consistency(start=0.0, ramp=0.0, weight=10.0, share=0.25, origin="x_n", chain=2)
    ambient = AmbientScoreMatching()
    step = Step(x_n, sigma_n, wrong, wrong.sigma_data, source, room=count // 2)

    def both() -> tuple[float, float]:
        theirs = published_loss(wrong, wrong, ambient, term, step, count // 4)
        query = ambient.query(step)
        alone = query.loss(wrong(query.x, query.sigma)).mean()
        ours = Objective(ambient, term)(wrong, x_n, sigma_n, generator=source).terms["consistency"]
        return float((theirs - alone) / term.weight), float(ours)

    theirs, ours = torch.tensor([both() for _ in range(40)], dtype=torch.float64).unbind(1)
    assert_mean(theirs - ours, 0.0)
    with pytest.raises(AssertionError):
        assert_mean(ours, 0.0)


def test_what_was_published_asks_more_of_the_network():
    from consistency import rows

    equal, own = (row.details for row in rows(quick=True))
    assert (equal["with_gradient"], equal["without"], equal["passes"]) == (8, 6, 4)
    assert (equal["with_gradient_against"], equal["without_against"]) == (10, 8)
    assert (own["with_gradient_against"], own["passes_against"]) == (14, 8)
