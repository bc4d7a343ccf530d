"""`evaluate`: from images and from checkpoints to tables whose every number can be computed by hand."""

import csv
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import DIGITS, run
from image_sets import ENCODER, Encoder, as_uint8, image_sets, write_folder
from PIL import Image
from torch import Tensor

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.commands import evaluation_data
from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.datamodules import Digits
from lightning_tweedie.evaluation import samples as generation
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.evaluation.noisy_images import renoise
from lightning_tweedie.evaluation.quality import sample_quality
from lightning_tweedie.evaluation.restoration import restoration_quality, restore
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.randomness import item_noise
from lightning_tweedie.sampling import DPMSolverPP2M, Heun, SDEDPMSolverPP2M, sample

FD, KD = "fd_Encoder", "kd_Encoder"
PRC = ["precision_Encoder", "recall_Encoder", "density_Encoder", "coverage_Encoder"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, or left, in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    return image_sets()


@pytest.fixture
def folders(images: dict[str, Tensor], tmp_path: Path) -> dict[str, Path]:
    return {name: write_folder(its, tmp_path / name) for name, its in images.items()}


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, "fit", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


def evaluate(out: Path, *options: Any) -> dict[str, Any]:
    """Runs the command; answers the content of its JSON file."""
    given = [str(option) for option in options]
    extractor = [] if "--extractor" in given else ["--extractor", ENCODER]
    assert main(["evaluate", "--out", str(out), *given, *extractor]) == 0
    return json.loads(out.read_text())


def features(images: Tensor) -> FeatureStatistics:
    return extract_features(images, resolve_extractor(ENCODER))


# Images.


def test_the_plain_form(images: dict[str, Tensor], folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new/result.json"
    result = evaluate(out, "--generated", folders["generated"], "--reference", folders["reference"])
    expected = sample_quality(features(images["generated"]), features(images["reference"]), ["fid", "kid", "prc"])
    for name, estimate in expected.items():
        short = {"fid": "fd", "kid": "kd"}.get(name, name)
        assert result[f"{short}_Encoder"] == pytest.approx(estimate.value, rel=1e-9)
    assert [row["metric"] for row in result["rows"]] == [FD, KD, *PRC]
    row = result["rows"][0]
    assert row["standard_error"] == pytest.approx(expected["fid"].standard_error, rel=1e-6)
    assert (row["subject"], row["n"], row["n_reference"], row["seed"]) == ("generated", 40, 40, 0)
    assert (row["extractor"], row["resize"], row["device"]) == ("Encoder", "the network's own", "cpu")
    extractor = resolve_extractor(ENCODER)
    assert row["extractor_digest"] == extractor.digest
    for name in ("generated", "reference"):
        provenance = features(images[name]).provenance
        assert provenance is not None
        assert row[f"{name}_digest"] == provenance.data_digest
    assert row["checkpoint"] is row["sampler"] is row["nfe"] is row["sampling"] is None
    assert row["seconds"] >= 0

    with (tmp_path / "new/result.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["value"]) for line in table] == [row["value"] for row in result["rows"]]
    assert table[0]["checkpoint"] == ""
    assert FD in (tmp_path / "new/result.md").read_text()
    # One line is nothing to plot.
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "result.json", "result.csv", "result.md", "result_samples",
    }  # fmt: skip


WITHOUT_LIGHTNING = """
import sys

for blocked in ("lightning", "lightning_fabric", "pytorch_lightning"):
    sys.modules[blocked] = None  # importing it raises ImportError
from lightning_tweedie.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_the_plain_form_does_without_lightning(folders: dict[str, Path], tmp_path: Path) -> None:
    options = ["--generated", folders["generated"], "--reference", folders["reference"], "--out", tmp_path / "a.json"]
    torch.jit.trace(Encoder(), torch.zeros(2, 3, 8, 8)).save(tmp_path / "Encoder.pt")
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, "evaluate", "--extractor", tmp_path / "Encoder.pt", *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["metric"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]] == [FD, KD, *PRC]


def test_a_reference_in_any_form_gives_the_same(
    images: dict[str, Tensor], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = features(images["reference"])
    reference.save(tmp_path / "stats.npz")
    np.savez(tmp_path / "foreign.npz", mu=reference.mean.numpy(), sigma=reference.cov.numpy())
    np.savez(tmp_path / "arrays.npz", arr_0=as_uint8(images["reference"]))
    np.save(tmp_path / "floats.npy", images["reference"].numpy())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folders["reference"].iterdir():
            archive.write(path, f"some/{path.name}")
    forms = [folders["reference"], *(tmp_path / name for name in ("arrays.npz", "floats.npy", "images.zip"))]
    found = [
        evaluate(tmp_path / f"{i}.json", "--generated", folders["generated"], "--reference", form)
        for i, form in enumerate([*forms, tmp_path / "stats.npz"])
    ]
    for other in found[1:]:
        assert [row["value"] for row in other["rows"]] == [row["value"] for row in found[0]["rows"]]
        assert [row["reference_digest"] for row in other["rows"]] == [
            row["reference_digest"] for row in found[0]["rows"]
        ]
    assert "warning" not in capsys.readouterr().err

    options = ("--generated", folders["generated"], "--metrics", "fid", "--reference", tmp_path / "foreign.npz")
    foreign = evaluate(tmp_path / "foreign.json", *options)
    assert foreign[FD] == pytest.approx(found[0][FD], rel=1e-9)
    assert foreign["rows"][0]["n_reference"] is foreign["rows"][0]["reference_digest"] is None
    assert "does not say which network" in capsys.readouterr().err


def test_several_sets_give_one_table_and_one_plot(images: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / f"{name}/samples.npz", samples=images["generated" if name == "a" else "reference"].numpy())
    # A path that exists as it stands, comma and all, is one path.
    np.savez(tmp_path / "ref,1.npz", arr_0=as_uint8(images["reference"]))
    sets = f"{tmp_path}/a/samples.npz,{tmp_path}/b/samples.npz"
    result = evaluate(
        tmp_path / "r.json", "--generated", sets, "--reference", tmp_path / "ref,1.npz", "--metrics", "fid"
    )
    assert [row["subject"] for row in result["rows"]] == ["a/samples.npz", "b/samples.npz"]
    assert FD not in result
    assert result["rows"][0]["value"] > 0.05 > abs(result["rows"][1]["value"]) + 0.049
    assert Image.open(tmp_path / "r.png").size[0] > 100


def test_fewer_images_are_chosen_by_the_seed(
    images: dict[str, Tensor], folders: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--generated", folders["generated"], "--reference", folders["reference"], "--metrics", "fid")
    few = [
        evaluate(tmp_path / f"{i}.json", *options, "--num", 15, "--num_reference", 20, "--seed", seed)["rows"][0]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert (few[0]["n"], few[0]["n_reference"]) == (15, 20)
    assert few[0]["value"] == few[1]["value"] != few[2]["value"]
    assert few[0]["generated_digest"] != few[2]["generated_digest"]
    assert few[0]["reference_digest"] != few[2]["reference_digest"]


def test_nothing_is_overwritten_unasked(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    options = ("--generated", folders["generated"], "--reference", folders["reference"])
    evaluate(out, *options, "--metrics", "fid")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("r.*")}
    for left in (".json", ".csv", ".md"):
        # Whichever of the files is there.
        assert main(["evaluate", "--out", str(out), *map(str, options), "--extractor", ENCODER]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in tmp_path.glob("r.*")} == before
        (tmp_path / f"r{left}").unlink()
        del before[f"r{left}"]
        if not before:
            break
    np.savez(tmp_path / "r_neighbours.png", a=1)  # of an earlier call, which would pass for one of this
    result = evaluate(out, *options, "--metrics", "kid", "--overwrite")
    assert [row["metric"] for row in result["rows"]] == [KD]
    assert not (tmp_path / "r_neighbours.png").exists()


def test_copies_of_training_images_are_found(
    images: dict[str, Tensor], folders: dict[str, Path], tmp_path: Path
) -> None:
    mixed = images["generated"].clone()
    copies = [3, 11, 12, 30]
    mixed[copies] = (images["reference"][[5, 6, 7, 8]] + 0.01).clamp(-1, 1)
    np.savez(tmp_path / "mixed.npz", samples=mixed.numpy())
    options = ("--reference", folders["reference"], "--metrics", "memorisation")
    result = evaluate(tmp_path / "r.json", "--generated", tmp_path / "mixed.npz", *options)
    assert result["memorised_share"] == 4 / 40
    picture = np.asarray(Image.open(tmp_path / "r_neighbours.png")).astype(int)
    # The four are the first rows of the picture: sample and training image side by side, nearly the same.
    rows = picture[-8 * 122 :].reshape(-1, picture.shape[1], 3)
    left, right = rows[:, 12 : 12 + 120], rows[:, 144 : 144 + 120]
    assert np.abs(left[: 4 * 122 - 2] - right[: 4 * 122 - 2]).mean() < 4
    assert np.abs(left[4 * 122 :] - right[4 * 122 :]).mean() > 20
    # A control without copies.
    assert evaluate(tmp_path / "c.json", "--generated", folders["generated"], *options)["memorised_share"] == 0


def test_any_training_image_may_have_been_learnt_by_heart(
    images: dict[str, Tensor], folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Of those, too, that other measures leave out, and of the data module's beside another reference."""
    np.savez(tmp_path / "copies.npz", samples=(images["reference"] + 0.01).clamp(-1, 1).numpy())
    both = ("--generated", tmp_path / "copies.npz", "--metrics", "fid,memorisation")
    few = evaluate(tmp_path / "few.json", *both, "--reference", folders["reference"], "--num_reference", 12)
    assert few["memorised_share"] == 1
    rows = {row["metric"]: row["n_reference"] for row in few["rows"]}
    assert (rows[FD], rows["memorised_share"], rows["similarity_mean_Encoder"]) == (12, 40, 40)

    clean = digits().reference_set()
    assert clean is not None
    training = torch.stack([clean[i] for i in range(100)])
    others = torch.from_numpy(read_digits()[-60:]).float().reshape(-1, 1, 28, 28) / 127.5 - 1
    for name, its in (("trained", training), ("others", others)):
        np.savez(tmp_path / f"{name}.npz", samples=its.numpy())
    beside = ("--data", data, "--reference", tmp_path / "others.npz", "--metrics", "fid,memorisation")
    found = evaluate(tmp_path / "t.json", "--generated", tmp_path / "trained.npz", *beside)
    assert found["memorised_share"] == 1
    assert [row["n_reference"] for row in found["rows"]][:2] == [60, 100]
    # The control: they are no copies of the reference.
    alone = ("--reference", tmp_path / "others.npz", "--metrics", "memorisation")
    assert evaluate(tmp_path / "a.json", "--generated", tmp_path / "trained.npz", *alone)["memorised_share"] < 0.1


def test_grey_images_and_the_same_in_colour_are_one(images: dict[str, Tensor], tmp_path: Path) -> None:
    grey = {name: its[:, :1] for name, its in images.items()}
    folders = {name: write_folder(its, tmp_path / name) for name, its in grey.items()}  # read in colour
    for name, its in grey.items():
        np.savez(tmp_path / f"{name}.npz", samples=its.numpy())
    forms = [
        evaluate(tmp_path / f"{i}.json", "--generated", made, "--reference", reference, "--metrics", "fid,memorisation")
        for i, (made, reference) in enumerate(
            [
                (folders["generated"], folders["reference"]),
                (tmp_path / "generated.npz", folders["reference"]),
                (tmp_path / "generated.npz", tmp_path / "reference.npz"),
            ]
        )
    ]
    for row in zip(*(form["rows"] for form in forms), strict=True):
        assert row[1]["value"] == pytest.approx(row[0]["value"], rel=1e-5)
        assert row[2]["value"] == pytest.approx(row[0]["value"], rel=1e-5)


@pytest.mark.parametrize("form", ["folder", "arrays"])
@pytest.mark.parametrize("channels", [1, 3])
def test_proximal_distances_need_no_clean_image(
    images: dict[str, Tensor], form: str, channels: int, tmp_path: Path
) -> None:
    """Clean images of the right law, made noisy, are as near as noisy ones can be; noisy images as they are not."""
    sigma = 0.6
    clean = {name: its[:, :channels] for name, its in images.items()}
    noise = torch.stack([item_noise(5, "n", i, (channels, 12, 12)) for i in range(40)])
    noisy = (clean["reference"] + sigma * noise).clamp(-1, 1)
    if form == "folder":
        write_folder(noisy, tmp_path / "noisy")
        write_folder(clean["reference"], tmp_path / "right")
    else:
        for name, its in (("noisy", noisy), ("right", clean["reference"])):
            (tmp_path / name).mkdir()
            np.savez(tmp_path / name / "samples.npz", samples=its.numpy())
    options = ("--noisy", tmp_path / "noisy", "--sigma", sigma, "--metrics", "proximal_fid,proximal_kid")
    sets = ("right", "noisy")
    found = [evaluate(tmp_path / f"{name}.json", "--generated", tmp_path / name, *options)["rows"][0] for name in sets]
    assert [row["metric"] for row in found] == [f"proximal_{FD}"] * 2
    assert found[0]["sigma_n"] == sigma
    # Noise of one grey level in three channels is another noise than three independent ones: it must be the former.
    levels = torch.full((40,), sigma)
    expected = sample_quality(features(renoise(clean["reference"], levels, 0, range(40))), features(noisy), ["fid"])[
        "fid"
    ]
    assert found[0]["value"] == pytest.approx(expected.value, rel=1e-4)
    # Twice the noise is found out, in the control.
    assert found[1]["value"] > 3 * found[0]["value"]


# Checkpoints.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data module with 100 training images."""
    path = tmp_path / "digits.yaml"
    path.write_text("{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: 0.5, holdout: 4900}}")
    return path


def digits(holdout: int = 4900) -> Digits:
    module = Digits(sigma=0.5, holdout=holdout)
    module.setup("test")
    return module


def altered(ckpt: Path, path: Path) -> Path:
    """A checkpoint of the same network with other weights."""
    content = torch.load(ckpt, weights_only=True)
    for name, weight in content["state_dict"].items():
        if name.startswith("ema.averages.0.backbone") and weight.is_floating_point():
            weight += 0.01
    torch.save(content, path)
    return path


def test_checkpoints_samplers_and_steps_in_one_table(ckpt: Path, data: Path, tmp_path: Path) -> None:
    second = altered(ckpt, tmp_path / "second.ckpt")
    options = ("--ckpt_path", f"{ckpt},{second}", "--data", data, "--num", 12, "--num_reference", 30)
    ways = ("--sampler", "heun,dpmsolver++", "--steps", "2,3", "--sampling", "full,truncated", "--metrics", "fid")
    result = evaluate(tmp_path / "r.json", *options, *ways)
    assert [(r["subject"], r["sampler"], r["steps"], r["sampling"]) for r in result["rows"]] == [
        (subject, sampler, steps, sampling)
        for subject in ("last.ckpt", "second.ckpt")
        for sampler in ("heun", "dpmsolverpp2m")
        for steps in (2, 3)
        for sampling in ("full", "truncated")
    ]
    assert len({row["value"] for row in result["rows"]}) == 16
    assert Image.open(tmp_path / "r.png").size[0] > 100
    assert not (tmp_path / "r_restoration.png").exists()
    reference = clean_features(30, result["rows"][0]["reference_digest"])
    for row in result["rows"]:
        path = {"last.ckpt": ckpt, "second.ckpt": second}[row["subject"]]
        stop = 0.5 if row["sampling"] == "truncated" else None
        solver = {"heun": Heun, "dpmsolverpp2m": DPMSolverPP2M}[row["sampler"]](row["steps"])
        made = features(sample(load_denoiser(path).denoiser, (12, 1, 28, 28), solver, seed=0, truncate_at=stop))
        assert made.provenance is not None
        assert row["generated_digest"] == made.provenance.data_digest
        assert row["value"] == pytest.approx(sample_quality(made, reference, ["fid"])["fid"].value, rel=1e-9)
        assert row["nfe"] == solver.evaluations(len(solver.levels(truncate_at=stop)))
        assert row["checkpoint_digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["step"], row["ema_half_life"], row["sigma_n"]) == (3, 1000.0, 0.5)
        assert (row["checkpoint"], row["n"], row["n_reference"]) == (str(path), 12, 30)


def clean_features(count: int, digest: str) -> FeatureStatistics:
    """Those of the clean training images that have this digest."""
    clean = digits().reference_set()
    assert clean is not None
    chosen = evaluation_data.pick(len(clean), count, 0, "reference", "num_reference")  # type: ignore[arg-type]
    found = features(torch.stack([clean[i] for i in chosen]))
    assert found.provenance is not None and found.provenance.data_digest == digest
    return found


def test_the_configuration_of_a_run_names_its_data(ckpt: Path, tmp_path: Path) -> None:
    config = ckpt.parent.parent / "config.yaml"
    options = ("--ckpt_path", ckpt, "--steps", 1, "--metrics", "restoration", "--num_restored", 3, "--draws", 1)
    evaluate(tmp_path / "run.json", *options, "--data", config)
    # As the configurations of experiments do it: beside the file.
    (tmp_path / "experiment.yaml").write_text("name: a\ndata: other.yaml\n")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.read_text())["data"]))
    evaluate(tmp_path / "experiment.json", *options, "--data", tmp_path / "experiment.yaml")
    one, other = (json.loads((tmp_path / f"{name}.json").read_text())["psnr_draw"] for name in ("run", "experiment"))
    assert one == other


def test_samples_are_made_once_and_an_interrupted_call_continues(
    ckpt: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    true_sample = generation.sample

    def counting(*args: Any, indices: Any, **kwargs: Any) -> Tensor:
        if len(made) == limit:
            raise KeyboardInterrupt
        made.extend(indices)
        return true_sample(*args, indices=indices, **kwargs)

    monkeypatch.setattr(generation, "sample", counting)
    monkeypatch.setattr(generation, "CHUNK", 20)
    out = tmp_path / "a.json"
    options = ("--ckpt_path", ckpt, "--data", data, "--num", 30, "--steps", 1, "--batch_size", 20)
    limit = 20
    with pytest.raises(SystemExit, match="130"):
        evaluate(out, *options, "--metrics", "fid")
    assert not out.exists()
    assert made == list(range(20))
    limit = -1
    result = evaluate(out, *options, "--metrics", "fid")
    assert made == list(range(30))
    # Another measure of the same samples.
    evaluate(out, *options, "--metrics", "kid", "--overwrite")
    assert len(made) == 30
    fresh = evaluate(tmp_path / "b.json", *options, "--metrics", "fid")
    assert len(made) == 60
    assert fresh[FD] == result[FD]
    # Another seed, other samples.
    assert evaluate(tmp_path / "c.json", *options, "--metrics", "fid", "--seed", 1)[FD] != result[FD]


def test_proximal_distances_of_a_checkpoint_and_data_that_are_noisy_by_nature(ckpt: Path, tmp_path: Path) -> None:
    """No clean image exists, and levels differ from item to item."""
    (tmp_path / "natural.py").write_text(NATURAL)
    sys.path.insert(0, str(tmp_path))
    (tmp_path / "natural.yaml").write_text("{class_path: natural.Natural, init_args: {inject: false, holdout: 0}}")
    options = ("--data", tmp_path / "natural.yaml", "--metrics", "proximal_fid")
    try:
        clean = read_digits()[:60]
        np.save(tmp_path / "clean.npy", clean)
        right = evaluate(tmp_path / "r.json", "--generated", tmp_path / "clean.npy", *options)
        made = evaluate(tmp_path / "m.json", "--ckpt_path", ckpt, "--num", 60, "--steps", 2, *options)
    finally:
        sys.path.remove(str(tmp_path))
    name = f"proximal_{FD}"
    assert made["rows"][0]["sigma_n"] == right["rows"][0]["sigma_n"] == pytest.approx(0.6)
    assert made["rows"][0]["n_reference"] == 60
    # The clean images of these very noisy ones, against samples of a network that has learnt nothing.
    assert right[name] < 0.1 * made[name]


NATURAL = """
import torch
from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.randomness import item_noise


class Natural(NoisyDataModule):
    def train_set(self):
        images = torch.from_numpy(read_digits()[:60]).float().reshape(-1, 1, 28, 28) / 127.5 - 1
        levels = [0.2, 0.6]
        return [
            (image + levels[i % 2] * item_noise(9, "natural", i, image.shape), levels[i % 2])
            for i, image in enumerate(images)
        ]
"""


def test_restorations_and_their_calibration(ckpt: Path, tmp_path: Path) -> None:
    options = (
        "--ckpt_path",
        ckpt,
        "--data",
        ckpt.parent.parent / "config.yaml",
        "--metrics",
        "restoration",
        "--num_restored",
        5,
        "--draws",
        9,
        "--steps",
        "2,3",
    )
    result = evaluate(tmp_path / "r.json", *options)
    batch = evaluation_data.held_out(digits(16), 5, 0)
    assert batch.x_0 is not None
    torch.testing.assert_close(batch.x_n - batch.x_0, 0.5 * (batch.x_n - batch.x_0) / 0.5)
    trained = load_denoiser(ckpt)
    for steps in (2, 3):
        rows = {row["metric"]: row for row in result["rows"] if row["steps"] == steps}
        restored = restore(
            trained.denoiser, batch.x_n, batch.sigma_n, batch.index.tolist(), batch.x_0, draws=9,
            sampler=SDEDPMSolverPP2M(steps),
        )  # fmt: skip
        for name, estimate in restoration_quality(restored).items():
            row = rows.pop(name)
            assert row["value"] == pytest.approx(estimate.value, rel=1e-6)
            assert row["standard_error"] == pytest.approx(estimate.standard_error, rel=1e-6)
            assert (row["n"], row["nfe"], row["sampler"], row["sigma_n"]) == (5, steps, "sdedpmsolverpp2m", 0.5)
            assert row["extractor"] is row["sampling"] is None
        assert not rows
    for name in ("r_calibration.png", "r_restoration.png"):
        assert Image.open(tmp_path / name).size[0] > 100
    assert [path.name for path in (tmp_path / "r_samples").iterdir()] == ["restorations"]
    # Held-out items are no training items.
    training = digits(16).noisy_set().places.tolist()
    assert not set(training) & set(batch.index.tolist())


@pytest.mark.parametrize("out", ["result", "result.txt"])
def test_the_result_is_json(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--out", str(tmp_path / out), "--generated", "a", "--reference", "b"]) == 2
    assert "ends in .json" in capsys.readouterr().err


def test_images_of_several_sizes(images: dict[str, Tensor], folders: dict[str, Path], tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """They have features, and no distance in pixels."""
    Image.new("RGB", (20, 15)).save(folders["generated"] / "larger.png")
    options = ("--generated", folders["generated"], "--reference", folders["reference"])
    assert evaluate(tmp_path / "r.json", *options, "--metrics", "fid")["rows"][0]["n"] == 41
    given = ["evaluate", "--out", str(tmp_path / "m.json"), *map(str, options), "--extractor", ENCODER]
    assert main([*given, "--metrics", "memorisation"]) == 2
    assert "several sizes" in capsys.readouterr().err
