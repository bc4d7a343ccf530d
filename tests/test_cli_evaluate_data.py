"""What `evaluate` compares with: batches of others with images and statistics, noisy sets, the data of the training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import DIGITS, run
from image_sets import ENCODER, as_uint8, image_sets, write_folder
from torch import Tensor

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.evaluation.quality import sample_quality
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import resolve_extractor


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    return image_sets()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, "fit", config=DIGITS) == 0
    return folder / "runs/digits/fit_0"


def evaluate(out: Path, *options: Any) -> dict[str, Any]:
    assert main(["evaluate", "--out", str(out), "--extractor", ENCODER, *map(str, options)]) == 0
    return json.loads(out.read_text())


def test_a_batch_of_adm_serves_every_measure(
    images: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its mean and covariance are those of more images than it holds: they are for the Frechet distance."""
    generated = write_folder(images["generated"], tmp_path / "generated")
    extractor = resolve_extractor(ENCODER)
    batch = extract_features(images["reference"], extractor)
    many = FeatureStatistics(mean=batch.mean + 0.1, cov=1.2 * batch.cov)
    np.savez(tmp_path / "adm.npz", arr_0=as_uint8(images["reference"]), mu=many.mean.numpy(), sigma=many.cov.numpy())
    metrics = "fid,kid,prc,memorisation"
    found = evaluate(
        tmp_path / "a.json", "--generated", generated, "--reference", tmp_path / "adm.npz", "--metrics", metrics
    )
    ours = extract_features(images["generated"], extractor)
    expected = sample_quality(ours, many, ["fid"]) | sample_quality(ours, batch, ["kid", "prc"])
    for name, estimate in expected.items():
        assert found[extractor.key(name)] == pytest.approx(estimate.value, rel=1e-6)
    assert expected["fid"].value != pytest.approx(sample_quality(ours, batch, ["fid"])["fid"].value, rel=0.1)
    known = {row["metric"]: row["n_reference"] for row in found["rows"]}
    assert known["fd_Encoder"] is None and known["kd_Encoder"] == known["memorised_share"] == 40
    assert "does not say which network" in capsys.readouterr().err


def test_noisy_images_may_lie_anywhere_and_samples_may_not(
    images: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = images["reference"] + torch.randn(images["reference"].shape, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "noisy.npz", noisy.numpy())
    generated = write_folder(images["generated"], tmp_path / "generated")
    found = evaluate(
        *(tmp_path / "a.json", "--generated", generated, "--noisy", tmp_path / "noisy.npz", "--sigma", 1),
        *("--metrics", "proximal_fid"),
    )
    assert found["rows"][0]["sigma_n"] == 1
    out = str(tmp_path / "b.json")
    assert (
        main(["evaluate", "--out", out, "--generated", str(tmp_path / "noisy.npz"), "--reference", str(generated)]) == 2
    )
    assert "looks like an unknown scale" in capsys.readouterr().err


def settings(trained: Path, folder: Path, **changes: Any) -> Path:
    """The data of the run with some settings changed."""
    content = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    content["init_args"] |= changes
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def restore(trained: Path, data: Path, out: Path) -> int:
    return main(
        [
            *(
                "evaluate",
                "--out",
                str(out),
                "--ckpt_path",
                str(trained / "checkpoints/last.ckpt"),
                "--data",
                str(data),
            ),
            *("--metrics", "restoration", "--steps", "2", "--draws", "2", "--num_restored", "4"),
        ]
    )


def test_items_of_the_training_are_not_restored(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = yaml.safe_load((trained / "config.yaml").read_text())["data"]["init_args"]
    assert restore(trained, settings(trained, tmp_path), tmp_path / "same.json") == 0
    assert "warning" not in capsys.readouterr().err
    for changes in ({"seed": given["seed"] + 1}, {"holdout": given["holdout"] + 1}):
        assert restore(trained, settings(trained, tmp_path, **changes), tmp_path / "other.json") == 2
        told = capsys.readouterr().err
        assert f"data.{next(iter(changes))} = " in told and "in part those of its training" in told
    # Fewer are among those that were kept out; another noise is a fair question.
    changed = settings(trained, tmp_path, holdout=given["holdout"] - 1, sigma=0.31)
    assert restore(trained, changed, tmp_path / "fewer.json") == 0
    assert "warning: data.sigma = 0.31 was " in capsys.readouterr().err


def test_draws_are_kept_for_the_next_call(trained: Path, tmp_path: Path) -> None:
    assert restore(trained, settings(trained, tmp_path), tmp_path / "r.json") == 0
    (kept,) = (tmp_path / "r_samples/restorations").glob("*.npy")
    rows, stamp = json.loads((tmp_path / "r.json").read_text())["rows"], kept.stat().st_mtime_ns
    for name in ("r.json", "r.csv", "r.md", "r_calibration.png"):
        (tmp_path / name).unlink(missing_ok=True)
    assert restore(trained, settings(trained, tmp_path), tmp_path / "r.json") == 0
    assert kept.stat().st_mtime_ns == stamp
    again = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["value"] for row in again] == [row["value"] for row in rows]


def test_a_checkpoint_that_was_written_anew_has_no_digest(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes((trained / "checkpoints/last.ckpt").read_bytes())
    known, other = load_denoiser(path), load_denoiser(path)
    digest = known.digest
    path.write_bytes(path.read_bytes() + b" ")
    assert known.digest == digest
    for _ in range(2):
        with pytest.raises(UserError, match="has been removed or written anew since it was loaded"):
            other.digest  # noqa: B018
        path.unlink(missing_ok=True)
