"""`statistics`: reference features that are kept, by one process or several."""

import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from image_sets import ENCODER, image_sets, write_folder

from lightning_tweedie.cli import main
from lightning_tweedie.commands.evaluation_data import pick
from lightning_tweedie.datamodules import Digits
from lightning_tweedie.evaluation import extraction
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import resolve_extractor

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, or left, in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(image_sets()["reference"], tmp_path / "images")


def statistics(out: Path, *options: object) -> FeatureStatistics:
    assert main(["statistics", "--out", str(out), "--extractor", ENCODER, *map(str, options)]) == 0
    return FeatureStatistics.load(out)


def test_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = statistics(tmp_path / "new/stats.npz", "--images", folder)
    expected = extract_features(image_sets()["reference"], resolve_extractor(ENCODER))
    assert found.features is not None and expected.features is not None
    assert torch.equal(found.features, expected.features)
    assert found.provenance == expected.provenance
    np.testing.assert_allclose(found.mean, expected.features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, expected.features.double().T.cov(), rtol=1e-12)
    assert "40 images" in capsys.readouterr().out


def test_fewer_images_are_those_that_evaluate_would_take(folder: Path, tmp_path: Path) -> None:
    found = statistics(tmp_path / "stats.npz", "--images", folder, "--num", 15, "--seed", 3)
    chosen = pick(40, 15, 3, "reference", "num_reference")
    assert len(set(chosen)) == 15
    expected = extract_features(image_sets()["reference"][chosen], resolve_extractor(ENCODER))
    assert found.provenance == expected.provenance


def test_the_clean_images_of_a_data_module(tmp_path: Path) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text("{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: 0.5, holdout: 4970}}")
    found = statistics(tmp_path / "stats.npz", "--images", path)
    data = Digits(sigma=0.5, holdout=4970)
    data.setup("test")
    clean = data.reference_set()
    assert clean is not None
    expected = extract_features(clean, resolve_extractor(ENCODER))
    assert found.n == 30
    assert found.provenance == expected.provenance


TWO = """
import sys

from lightning_tweedie.evaluation import extraction

extraction.CHUNK = 7  # of 40 images both processes then have some
from lightning_tweedie.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_that_torchrun_started_write_the_same_file(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--images", str(folder), "--num", "39", "--extractor", ENCODER, "--out", str(tmp_path / "two.npz")]
    # Without the dashes the launcher would take --num for an option of its own.
    command = [*launcher, "--", str(script), "statistics", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote") == 1
    one, two = (
        statistics(tmp_path / "one.npz", "--images", folder, "--num", 39),
        FeatureStatistics.load(tmp_path / "two.npz"),
    )
    assert one.features is not None and two.features is not None
    assert torch.equal(one.features, two.features)


def test_a_mistake_that_one_process_finds_ends_them_all_and_is_told_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 7)
    picture = folder / "010.png"  # in the second chunk, which the second process has
    picture.write_bytes(picture.read_bytes()[:200])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(mp.ProcessExitedException) as ended:
        mp.start_processes(_as_launched, (port, folder, tmp_path), nprocs=2, start_method="fork")
    assert ended.value.exit_code == 2
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert "010.png cannot be read" in told[0]
    assert told[0].count("error: ") == 1
    assert "error" not in told[1]


def _as_launched(rank: int, port: int, folder: Path, out: Path) -> None:
    """One of two processes in the environment that torchrun makes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in place.items()})
    with (out / f"{rank}.txt").open("w") as file, redirect_stderr(file):
        given = ["--images", str(folder), "--extractor", ENCODER, "--out", str(out / "stats.npz")]
        sys.exit(main(["statistics", *given]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--images nowhere --out {new}", "images = 'nowhere' does not exist"),
        ("--images {folder} --out {folder}/s.txt", "ends in .npz"),
        ("--images {folder} --out {stats}", "exists already"),
        ("--images {stats} --out {new}", "holds statistics already"),
        ("--images {folder} --out {new} --num 41", "num = 41 is more than the 40"),
        ("--images {folder} --out {new} --num 1", "num = 1 at least 2"),
        ("--images {folder} --out {new} --extractor nothing", "extractor = 'nothing'"),
        ("--images {natural} --out {new}", "noisy by nature"),
        ("--images nowhere.yaml --out {new}", "nowhere.yaml cannot be read"),
        ("--images {folder}", "out must be given"),
    ],
)
def test_what_is_wrong_is_told_at_once(
    folder: Path, options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    natural = tmp_path / "natural.yaml"
    natural.write_text("{class_path: lightning_tweedie.datamodules.Digits, init_args: {sigma: 0.5, inject: false}}")
    stats = tmp_path / "stats.npz"
    np.savez(stats, mu=np.zeros(8), sigma=np.eye(8))
    before = stats.read_bytes()
    given = options.format(folder=folder, stats=stats, natural=natural, new=tmp_path / "new.npz").split()
    extractor = [] if "--extractor" in given else ["--extractor", ENCODER]
    assert main(["statistics", *given, *extractor]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert stats.read_bytes() == before
    assert not (tmp_path / "new.npz").exists()
