"""The benchmark of methods: its yardsticks are right, and a finished cell is never run again."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import trained_digits

from lightning_tweedie import datamodules
from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.sampling import one_step

METHODS = Path(__file__).resolve().parent.parent / "benchmarks" / "methods"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(METHODS))


@pytest.mark.parametrize("name", ["ring", "moons", "spectrum", "blobs"])
def test_the_exact_denoiser_is_perfect_and_another_is_not(name: str) -> None:
    from oracle import evaluate
    from problems import PROBLEMS

    problem = PROBLEMS[name]()
    clean = problem.oracle.sample(10_000, torch.Generator().manual_seed(1))
    assert float(clean.std()) == pytest.approx(problem.sigma_data, rel=0.05)
    exact = evaluate(problem, problem.oracle, clean, 0)
    assert all(value == 0 for metric, value in exact.items() if metric.startswith("excess_risk"))
    assert exact.get("spread", 1.0) == pytest.approx(1.0, abs=0.02)
    noisy = clean + problem.sigma_n * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    other = evaluate(problem, lambda x, level: x, noisy, 0)
    assert other["excess_risk_0.2"] > 0.05
    assert other["sliced_wasserstein"] > 1.5 * exact["sliced_wasserstein"]
    # With noise on both sides the difference is smaller, but still there.
    assert other["proximal_sliced_wasserstein"] > 1.2 * exact["proximal_sliced_wasserstein"]


def test_the_choice_without_clean_data_is_among_those_that_see_none() -> None:
    from cells import PRESETS
    from tables import page

    def row(title: str, proximal: float, distance: float, **config: object) -> dict[str, object]:
        metrics = {"sliced_wasserstein": distance, "proximal_sliced_wasserstein": proximal}
        cell = {"problem": "ring", "method": title, "title": title, "seed": 0, "steps": 8000, "batch": 512, "num": 10}
        costs = {"seconds_per_step": 1.0, "relative_cost": 1.0, "peak_memory_mb": 1}
        known = {"sigma_n": 0.2, "images_seen": 1, "device": "a core", "config": {"data": "noisy", "clean_fraction": 0}}
        return {**cell, **costs, **known, "metrics": metrics, "config": {**known["config"], **config}}

    rows = [
        *(row("ceiling", 0.1, 0.1, data="clean"), row("mixed", 0.2, 0.2, clean_fraction=0.1)),
        *(row("worst", 0.8, 0.9), row("lost", float("nan"), float("nan"))),
        *(row("second", 0.4, 0.3), row("best", 0.3, 0.4)),
    ]
    text = page(rows, PRESETS["oracle"], "rows", "command", 6, 6)
    assert "one would choose best (0.3), then second (0.4) or worst (0.8)" in text
    assert "the 3 ways" in text
    assert "(Spearman) of 0.50" in text  # one pair of neighbours is in the wrong order


def test_noise_has_the_moments_that_its_name_promises() -> None:
    from noise import NOISE, noisy

    x_0, one = torch.zeros(20_000, 64), torch.ones(20_000)
    generator = torch.Generator().manual_seed(0)
    for kind in NOISE:
        noise = noisy(x_0, one, kind, generator).double()
        assert noise.mean().abs() < 0.01
        assert float(noise.var()) == pytest.approx(0.516 if kind == "clipped" else 1.0, rel=0.01)
        kurtosis = float((noise**4).mean() / noise.var() ** 2)
        image = noise.reshape(-1, 8, 8)
        neighbours = float((image[:, :, 1:] * image[:, :, :-1]).mean())
        if kind in ("", "laplace", "uniform"):
            assert kurtosis == pytest.approx({"": 3.0, "laplace": 6.0, "uniform": 1.8}[kind], rel=0.03)
        assert neighbours == pytest.approx(2 / 3 if kind == "correlated" else 0.0, abs=0.01)


def test_every_method_has_its_objective() -> None:
    from registry import METHODS as METHODS_BY_NAME
    from registry import make_objective

    for method in METHODS_BY_NAME.values():
        assert make_objective(method.objective, method.settings).terms
        assert method.first in (None, "nonlocal_means") or make_objective(method.first, {}).terms
    ambient = make_objective("default", {"ambient.weighting": "x_n", "replay.share": 0.125, "consistency": None})
    assert ambient.terms["ambient"].power == 0 and ambient.terms["replay"].share == 0.125
    assert "consistency" not in ambient.terms


def test_a_configuration_is_known_again_and_another_is_not() -> None:
    from registry import METHODS as METHODS_BY_NAME
    from registry import method_config, same_method

    configs = {name: method_config(name) for name in METHODS_BY_NAME}
    before = json.dumps(configs)
    for name, other in itertools.pairwise(configs):
        assert same_method(configs[name], name) and not same_method(configs[name], other), name
    gone = json.loads(json.dumps(configs["default"]))
    gone["objective"]["init_args"]["replay"]["init_args"]["gone"] = 1
    assert not same_method(gone, "default")
    assert json.dumps(configs) == before


def test_a_generator_is_measured_by_its_samples_alone() -> None:
    from cells import Cell
    from oracle import run_oracle

    found = run_oracle(Cell("ring", "distilled", 0, 20, 32, 50))
    assert {way: set(metrics) for way, metrics in found["measured"].items()} == {
        "one step": {"sliced_wasserstein", "proximal_sliced_wasserstein", "spread"}
    }
    assert found["seconds_per_step"] > 0


def test_nonlocal_means_takes_noise_away() -> None:
    from images import nonlocal_means

    clean = torch.zeros(4, 1, 28, 28)
    clean[:, :, 8:20, 4:9] = 1
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert ((nonlocal_means(noisy.numpy(), 0.3) - clean.numpy()) ** 2).mean() < 0.25 * 0.3**2


def test_restored_images_become_training_data(tmp_path: Path) -> None:
    from images import ArrayData, denoise_all

    digits = datamodules.Digits(sigma=0.5, batch_size=4, holdout=4500)
    digits.setup("fit")
    noisy = digits.noisy_set()
    checkpoint = trained_digits(tmp_path)
    denoiser = load_denoiser(str(checkpoint)).denoiser
    for its in (checkpoint, None):
        denoise_all(digits, its, tmp_path / "denoised.npy")
        data = ArrayData(str(tmp_path / "denoised.npy"), sigma=0, inject=False, batch_size=4, holdout=0)
        data.setup("fit")
        assert len(data.noisy_set()) == len(noisy) == 500
        for k in (0, 321):
            item, found = noisy[k], data.noisy_set()[k]
            assert found.sigma_n == 0
            if its:
                torch.testing.assert_close(found.x_n, one_step(denoiser, item.x_n[None], 0.5)[0])
            else:
                clean = digits.reference_set()[k]
                assert (found.x_n - clean).square().mean() < 0.5 * (item.x_n - clean).square().mean()


def test_finished_cells_are_read_and_others_are_run(tmp_path: Path) -> None:
    options = ["--problems", "ring", "--methods", "clean", "ambient", "--seeds", "1", "--steps", "20", "--batch", "32"]
    options += ["--cells", str(tmp_path / "cells"), "--out", str(tmp_path / "oracle.json")]
    call = [sys.executable, str(METHODS), *options]
    subprocess.run(call, check=True, capture_output=True)
    (cell,) = tmp_path.glob("cells/ring-ambient-*.json")
    full, truncated = json.loads(cell.read_text())
    assert full["images_seen"] == 20 * 32 and full["method"] == "ambient" and truncated["sampling"] == "truncated"
    cell.write_text(json.dumps([full | {"metrics": full["metrics"] | {"spread": 4321.0}}, truncated]))
    # One whose figures are missing is not invented; the finished ones make the page.
    told = subprocess.run([*call, "--known", "--seeds", "2"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    rows = json.loads((tmp_path / "oracle.json").read_text())
    spreads = [row["metrics"]["spread"] for row in rows]
    assert len(spreads) == 3 and spreads[1] == 4321.0
    assert [row["relative_cost"] for row in rows] == [1.0, 1.0, 1.0]  # one pass there and back, however long it takes
    assert "4321" in (tmp_path / "oracle.md").read_text()
    for plot in ("oracle_levels.png", "oracle_cost.png"):
        assert (tmp_path / plot).stat().st_size > 1000

    # What diverged is told, and the plots are made without it.
    lost = {name: float("nan") for name in full["metrics"]}
    cell.write_text(json.dumps([full | {"metrics": lost}, truncated | {"metrics": lost}]))
    alone = [*call[:-1], str(tmp_path / "lost.json"), "--known", "--methods", "ambient"]
    told = subprocess.run(alone, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "| ambient | diverged |" in (tmp_path / "lost.md").read_text()

    # Of a method that has changed since, it is not taken.
    stale = full["config"] | {"clean_fraction": 0.5}
    cell.write_text(json.dumps([full | {"config": stale}, truncated]))
    told = subprocess.run([*call, "--known"], capture_output=True, text=True)
    assert "is of another ambient: move" in told.stderr and "4321" not in (tmp_path / "oracle.md").read_text()
    cell.write_text(json.dumps([full, truncated]))
    subprocess.run(call, check=True, capture_output=True)

    # In a fresh clone there are the results alone: their cells are finished too, and what is not asked for stays.
    for file in tmp_path.glob("cells/*"):
        file.unlink()
    table = json.loads((tmp_path / "oracle.json").read_text())
    some = [option for option in call if option != "clean"]
    # What a class has anyway may be written or not; a method that is no longer there is left out.
    for row in table[1:]:
        row["config"]["objective"]["init_args"]["ambient"]["init_args"]["weighting"] = "precision"
    gone = table[0] | {"method": "gone"}
    (tmp_path / "oracle.json").write_text(json.dumps([*table, gone]))
    subprocess.run(some, check=True, capture_output=True)
    assert json.loads((tmp_path / "oracle.json").read_text()) == table and not [*tmp_path.glob("cells/*")]
    # Unless the method was another one.
    for row in table[1:]:
        row["config"]["clean_fraction"] = 0.5
    (tmp_path / "oracle.json").write_text(json.dumps(table))
    subprocess.run(some, check=True, capture_output=True)
    again = json.loads((tmp_path / "oracle.json").read_text())
    assert again[1]["metrics"]["spread"] == full["metrics"]["spread"] and again[0] == table[0]


def test_kinds_of_noise_stand_in_one_table(tmp_path: Path) -> None:
    options = ["--preset", "mismatch", "--problems", "blobs", "blobs+laplace", "--methods", "ambient"]
    options += ["--steps", "2", "--batch", "32", "--num", "50", "--cells", str(tmp_path / "cells")]
    call = [sys.executable, str(METHODS), *options, "--out", str(tmp_path / "mismatch.json")]
    subprocess.run(call, check=True, capture_output=True)
    rows = {
        (row["noise"], row["title"]): row["metrics"]["sliced_wasserstein"]
        for row in json.loads((tmp_path / "mismatch.json").read_text())
    }
    text = (tmp_path / "mismatch.md").read_text()
    table = text[text.index("## sliced wasserstein") :].splitlines()[2:6]
    assert table[0] == "| noise | ambient | ambient, truncated |"
    for line, kind in zip(table[2:], ("as assumed", "Laplace"), strict=True):
        values = [rows[kind, title] for title in table[0][10:-2].split(" | ")]
        assert line == f"| {kind} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
    assert (tmp_path / "mismatch_kinds.png").stat().st_size > 1000


def test_the_fid_of_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import images
    from cells import Cell

    calls = []

    def command(*arguments: str) -> None:
        calls.append(arguments[0])
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        assert options["--extractor"] == "inception"
        if arguments[0] == "statistics":
            Path(options["--out"]).touch()
        else:
            assert Path(options["--reference"]).name == "fashion_mnist-inception.npz"
            rows = [
                {"metric": metric, "sampling": sampling, "value": len(metric) + len(sampling)}
                for metric in ("fid", "fid_n")
                for sampling in options["--sampling"].split(",")
            ]
            Path(options["--out"]).write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(images, "command", command)
    for method, expected in {"ambient": {"full": 7, "truncated": 12}, "clean": {"full": 7}}.items():
        checkpoint = tmp_path / method / "final/fit_0/checkpoints/last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        assert images.true_fid(Cell("fashion_mnist@0.5", method, 0, 2, 4, 8), tmp_path / method) == expected
    # The features of the clean images are computed once.
    assert calls == ["statistics", "evaluate", "evaluate"]


def test_a_cell_that_fails_is_named_and_the_others_are_run(tmp_path: Path) -> None:
    # Non-local means is for images.
    options = ["--problems", "ring", "--methods", "nonlocal_means", "naive", "--seeds", "1", "--steps", "20"]
    told = subprocess.run(
        [sys.executable, str(METHODS), *options, "--batch", "32", "--cells", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1 and "ring-nonlocal_means-seed0-20x32-10000 failed: see" in told.stderr
    assert "noisy as if clean" in told.stdout


def test_no_scene_of_the_photos_is_on_both_sides() -> None:
    place = METHODS.parent / "photos.py"
    spec = importlib.util.spec_from_file_location("photos_benchmark", place)  # tests have a module `photos` too
    assert spec is not None and spec.loader is not None
    photos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(photos)
    for seed in range(2):
        train, test = photos.clean_photos(seed)
        assert len(train) + len(test) == 20
        assert ("motorcycle_left" in train) == ("motorcycle_right" in train)
        assert not {name.split("_")[0] for name in train} & {name.split("_")[0] for name in test}
    noise = torch.cat([(x - test[name]).flatten() for name, x in photos.noisy(test, "test", 0).items()])
    assert float(noise.std()) == pytest.approx(photos.SIGMA, rel=5 / (2 * len(noise)) ** 0.5)
    # What the classical methods may choose from takes noise away, on average over shifts most.
    edge = {"edge": torch.cat([torch.full((1, 64, 40), -0.5), torch.full((1, 64, 24), 0.5)], 2)}
    noised = photos.noisy(edge, "test", 0)
    scores = [
        photos.mean_psnr(restore, edge, noised)
        for restore in (
            lambda x: x,
            photos.wavelets("BayesShrink", "db2", 1.0, "soft", 1),
            photos.wavelets("BayesShrink", "db2", 1.0, "soft", 4),
            photos.nonlocal_means(5, 6, 0.6),
        )
    ]
    assert scores == sorted(scores) and scores[1] > scores[0] + 3
