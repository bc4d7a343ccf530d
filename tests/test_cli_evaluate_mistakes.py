"""What is wrong with a call of `evaluate` is told in one sentence, before the long work."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import DIGITS, run
from image_sets import ENCODER, image_sets, write_folder

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import resolve_extractor


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is needed to do things wrong."""
    folder = tmp_path_factory.mktemp("places")
    assert run(folder, "fit", config=DIGITS) == 0
    ckpt = folder / "runs/digits/fit_0/checkpoints/last.ckpt"
    images = image_sets()
    found = {"c": ckpt, "g": write_folder(images["generated"], folder / "generated")}
    found["r"] = write_folder(images["reference"], folder / "reference")
    found["grey"] = write_folder(images["reference"][:, :1], folder / "grey")
    configs = {
        "d": "{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: 0.5, holdout: 4900}}",
        "ring": "{class_path: lightning_tweedie.datamodules.ToyMixture, init_args: {sigma: 0.5}}",
        "none": "{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: 0.5, holdout: 0}}",
        "natural": "{class_path: lightning_tweedie.datamodules.Digits, "
        "init_args: {sigma: 0.5, holdout: 16, inject: false}}",
        "typo": "{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigmaa: 0.5}}",
        "negative": "{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: -1}}",
        "empty": "{trainer: {}}",
    }
    for name, text in configs.items():
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(text)
    found["mu"], found["other"] = folder / "mu.npz", folder / "other.npz"
    np.savez(found["mu"], mu=np.zeros(8), sigma=np.eye(8))
    stored = extract_features(images["reference"], resolve_extractor(ENCODER))
    assert stored.features is not None and stored.provenance is not None
    FeatureStatistics(stored.features, provenance=replace(stored.provenance, extractor="Other")).save(found["other"])
    content = torch.load(ckpt, weights_only=True)
    found["clean"] = folder / "clean.ckpt"
    torch.save(content | {"lightning_tweedie": content["lightning_tweedie"] | {"sigma_n": 0.0}}, found["clean"])
    assert run(folder, "fit", "--trainer.max_steps=1") == 0
    found["points"] = folder / "runs/ring/fit_0/checkpoints/last.ckpt"
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "nothing to measure"),
        ("--generated {g}", "give some with --reference"),
        ("--generated nowhere --reference {r}", "generated = 'nowhere' does not exist"),
        ("--generated {g} --reference nowhere", "reference = 'nowhere' does not exist"),
        ("--generated {g} --reference {r} --metrics fid,recall", "'recall' is unknown, did you mean prc?"),
        ("--generated {g} --reference {r} --metrics fdi", "did you mean fid?"),
        ("--generated {g} --reference {r} --metrics ,", "names nothing"),
        ("--generated {g} --reference {r} --num 41", "num = 41 is more than the 40"),
        ("--generated {g} --reference {r} --num_reference 41", "num_reference = 41 is more than the 40"),
        ("--generated {g} --reference {r} --num 5", "only 5 images in 'generated', and the measures need 6"),
        ("--generated {g} --reference {r} --num 1", "num = 1 is too small"),
        ("--generated {g},{g} --reference {r}", "named twice"),
        ("--generated {g} --reference {r} --extractor nothing", "extractor = 'nothing'"),
        ("--generated {g} --reference {r} --device tpu9", "device = tpu9"),
        ("--generated {g} --reference {r} --bogus 1", "--bogus is not an option"),
        ("--generated {g} --reference {r} --sigma 0.1", "--noisy, which is missing"),
        ("--generated {g} --reference {r} --noisy {r} --sigma 0.1", "name them in --metrics"),
        ("--generated {g} --reference {mu}", "kid compares single features"),
        ("--generated {g} --reference {mu} --metrics memorisation", "give the images"),
        ("--generated {g} --reference {mu} --metrics fid --num_reference 5", "num_reference = 5 chooses images"),
        ("--generated {g} --reference {other} --metrics fid", "extractor 'Other' instead of 'Encoder'"),
        ("--generated {mu} --reference {r}", "holds statistics, not images"),
        ("--generated {g} --metrics proximal_fid", "--noisy and --sigma"),
        ("--generated {g} --metrics proximal_fid --noisy {r}", "give it with --sigma"),
        ("--generated {g} --metrics proximal_fid --noisy {r} --sigma 25", "25 / 127.5"),
        ("--generated {g} --metrics proximal_fid --noisy {r} --sigma 0", "sigma is 0"),
        ("--generated {g} --metrics proximal_fid --data {d}", "12 x 12 pixels where the others have 28 x 28"),
        ("--generated {g} --metrics proximal_fid --noisy {grey} --sigma 0.1", "those of 'generated' are in colour"),
        ("--generated {g} --metrics memorisation --data {d}", "12 x 12 pixels where the others have 28 x 28"),
        ("--generated {g} --metrics restoration --data {d}", "restoration measures checkpoints"),
        ("--ckpt_path {c} --metrics restoration", "give --ckpt_path and --data"),
        ("--ckpt_path {c} --metrics restoration --data {ring}", "the items of --data have the shape (2,)"),
        ("--ckpt_path {c} --metrics restoration --data {none}", "set data.holdout above 0"),
        ("--ckpt_path {c} --metrics restoration --data {natural}", "noisy by nature"),
        ("--ckpt_path {c} --metrics fid --data {natural}", "proximal_fid and proximal_kid, which need none"),
        ("--ckpt_path {c} --data nowhere.yaml", "nowhere.yaml cannot be read"),
        ("--ckpt_path {c} --data {c}", "not YAML"),
        ("--ckpt_path {c} --data {empty}", "describes no data module"),
        ("--ckpt_path {c} --data {typo}", "did you mean sigma?"),
        ("--ckpt_path {c} --data {negative}", "data.sigma = -1 is negative"),
        ("--ckpt_path nowhere.ckpt --data {d}", "'nowhere.ckpt' does not exist"),
        ("--ckpt_path {c} --data {d} --steps 0", "steps = '0'"),
        ("--ckpt_path {c} --data {d} --steps 6,many", "steps = '6,many'"),
        ("--ckpt_path {c} --data {d} --sampler hen", "did you mean heun?"),
        ("--ckpt_path {c} --data {d} --sampling both", "'both' is unknown"),
        ("--ckpt_path {c} --data {d} --average 1", "average = 1 does not exist"),
        ("--ckpt_path {clean} --data {d} --sampling truncated", "were clean"),
        ("--ckpt_path {points} --data {d}", "not about images"),
        ("--ckpt_path {c} --data {d} --draws 0 --metrics restoration", "draws = 0"),
    ],
)
def test_what_is_wrong_is_told_at_once(
    places: dict[str, Path], options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options.format(**places).split()
    extractor = [] if "--extractor" in given else ["--extractor", ENCODER]
    assert main(["evaluate", "--out", str(tmp_path / "x.json"), *given, *extractor]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_what_a_checkpoint_says_of_its_averages(places: dict[str, Path], tmp_path: Path) -> None:
    assert load_denoiser(places["c"]).half_life == 1000.0
    content = torch.load(places["c"], weights_only=True)
    told = content["lightning_tweedie"]
    torch.save(content | {"lightning_tweedie": told | {"half_lives": []}}, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match="does not fit together"):
        load_denoiser(tmp_path / "damaged.ckpt")
    del told["half_lives"]  # as earlier versions wrote it
    torch.save(content, tmp_path / "older.ckpt")
    assert load_denoiser(tmp_path / "older.ckpt").half_life is None
