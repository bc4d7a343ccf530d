"""`export`: a folder that says, and does, what the checkpoint does."""

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import DIGITS, run
from image_sets import ENCODER, write_folder
from PIL import Image

from lightning_tweedie.checkpoint import data_settings, load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.commands import model_card
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling import one_step, sample

ROOT = Path(__file__).resolve().parent.parent
AVERAGES = ("--model.ema=lightning_tweedie.ema.EMA", "--model.ema.init_args.half_lives=[0.5,2]")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # Without the shortened horizons of the first steps, in which both averages are the same.
    assert run(folder, "fit", *AVERAGES, "--model.ema.init_args.ramp_up=.inf", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def exported(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "digits"
    assert main(["export", "--ckpt_path", str(ckpt), "--out", str(out), "--num", "6", "--average", "1"]) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_chosen_average(ckpt: Path, exported: Path) -> None:
    assert set(files(exported)) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    ours, theirs, others = load_denoiser(exported), load_denoiser(ckpt, average=1), load_denoiser(ckpt, average=0)
    assert (ours.shape, ours.sigma_n, ours.half_life, ours.step) == ((1, 28, 28), 0.5, 2.0, 3)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    answers = [one_step(each.denoiser, x, 0.5) for each in (ours, theirs, others)]
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert not ours.denoiser.training


def test_the_config_says_what_the_checkpoint_says(ckpt: Path, exported: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    config = json.loads((exported / "config.json").read_text())
    assert config["library"].startswith("lightning_tweedie ")
    told = content["lightning_tweedie"]
    assert {**told, "half_lives": [2.0]} == {key: config[key] for key in told}
    assert config["denoiser"]["init_args"]["sigma_data"] > 0
    assert data_settings(exported, "Digits") == data_settings(ckpt, "Digits") == content["Digits"]
    assert data_settings(exported, "Others") is data_settings(ckpt, "Others") is None


def test_what_a_checkpoint_says_besides_is_carried_over(ckpt: Path, tmp_path: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    content["lightning_tweedie"]["scale"] = {"low": 0, "high": 65535}
    content["Digits"]["noise"]["sigma"] = "/home/me/secret/levels.csv"
    torch.save(content, tmp_path / "more.ckpt")
    assert main(["export", "--ckpt_path", str(tmp_path / "more.ckpt"), "--out", str(tmp_path / "m"), "--num=0"]) == 0
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["scale"] == {"low": 0, "high": 65535}
    assert "low = 0, high = 65535" in (tmp_path / "m/README.md").read_text()
    assert config["data"]["Digits"]["noise"]["sigma"] == "levels.csv"
    assert not any(b"/home" in written for written in files(tmp_path / "m").values())


def test_the_card_works_as_printed_without_lightning(exported: Path) -> None:
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    blocked = "import sys\nfor name in ('lightning', 'lightning_fabric', 'pytorch_lightning', 'torchmetrics'):\n"
    code = code.replace("(16, *model.shape)", "(6, *model.shape)").replace("draws=8", "draws=1")
    code = f"{blocked}    sys.modules[name] = None\nimport torch\nnoisy = torch.zeros(2, 1, 28, 28)\n{code}"
    code += "torch.save(samples, sys.argv[1])\nassert restored.shape == draws[0].shape == noisy.shape\n"
    out = exported.parent / "samples.pt"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=exported.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = torch.load(out, weights_only=True)
    expected = sample(load_denoiser(exported).denoiser, (6, 1, 28, 28))
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    # The picture shows the same ones: the second image of the first row, each pixel twice.
    pixels = np.asarray(Image.open(exported / "samples.png"))[0:56:2, 58:114:2, 0].astype(float)
    np.testing.assert_allclose(pixels, (samples[1, 0].clamp(-1, 1) + 1) * 127.5, atol=0.6)


def test_the_card_tells_facts(ckpt: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    parameters = sum(p.numel() for p in load_denoiser(ckpt).denoiser.parameters())
    for fact in ("Digits, items of shape 1 x 28 x 28", "sigma up to 0.5", f"{parameters:,} parameters", "3 steps of 8"):
        assert fact in card
    assert "24 in all" in card and "half-life of 2 steps" in card and load_denoiser(ckpt).digest in card
    assert "| objective                        | AmbientScoreMatching |" in card  # though no setting names it


def test_a_distilled_generator_says_how_it_is_sampled(ckpt: Path, tmp_path: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    content["hyper_parameters"] = {"_class_path": "lightning_tweedie.distillation.DistillationModule", "sigma_init": 2}
    torch.save(content, tmp_path / "g.ckpt")
    assert main(["export", "--ckpt_path", str(tmp_path / "g.ckpt"), "--out", str(tmp_path / "g"), "--num", "2"]) == 0
    card = (tmp_path / "g/README.md").read_text()
    assert "--steps 1 --sigma_max 2" in card and "DistillationModule" in card and "restored" not in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("(16,", "(2,")
    names: dict = {}
    exec(code.replace('"g"', repr(str(tmp_path / "g"))), names)
    noise = SampleNoise(0, range(2), torch.device("cpu")).normal((1, 28, 28)).float()
    expected = load_denoiser(tmp_path / "g").denoiser(2 * noise, 2.0)
    torch.testing.assert_close(names["samples"], expected, rtol=0, atol=1e-5)
    pixels = np.asarray(Image.open(tmp_path / "g/samples.png"))[0:56:2, 58:114:2, 0].astype(float)
    np.testing.assert_allclose(pixels, (expected[1, 0].clamp(-1, 1) + 1) * 127.5, atol=0.6)


def test_the_card_has_metrics_of_these_weights_only(ckpt: Path, tmp_path: Path) -> None:
    shutil.copytree(ckpt.parent.parent, tmp_path / "fit_0")
    here, lines = tmp_path / "fit_0", []
    for step, half_life in ((3, 2.0), (2, 2.0), (3, 0.5)):
        known, name = {"step": step, "ema_half_life": half_life}, f"{step}-{half_life}"
        (here / f"report_{name}").mkdir()
        (here / f"report_{name}/report.json").write_text(json.dumps(known))
        (here / f"report_{name}/report.md").write_text(f"report {name}\n")
        lines.append(json.dumps({**known, "subject": name, "metric": "fid", "value": 7.0, "note": None}))
    (here / "quality.jsonl").write_text("\n".join([*lines, '{"step": 3, "val']))
    given = ["--ckpt_path", str(here / "checkpoints/last.ckpt"), "--num", "0"]
    assert main(["export", *given, "--average", "1", "--out", str(tmp_path / "out")]) == 0
    metrics = (tmp_path / "out/README.md").read_text().partition("## Metrics")[2]
    assert "report 3-2.0" in metrics and "| 3-2.0, step 3 |" in metrics
    assert "2-2.0" not in metrics and "3-0.5" not in metrics


def test_commands_take_the_folder(ckpt: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    noisy = np.random.default_rng(0).normal(0, 0.7, (1, 28, 28)).astype(np.float32)
    np.save(tmp_path / "noisy/a.npy", noisy)
    (tmp_path / "data.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((ckpt.parent.parent / "config.yaml").read_text())["data"])
    )
    made = []
    for source, average in ((exported, "0"), (ckpt, "1")):
        out = tmp_path / source.name
        given = ["--ckpt_path", str(source), "--average", average]
        assert main(["sample", *given, "--out", str(out / "s"), "--num", "2", "--steps", "3"]) == 0
        assert main(["denoise", *given, "--out", str(out / "d"), "--input", str(tmp_path / "noisy")]) == 0
        restoring = ("--metrics", "restoration", "--num_restored", "4", "--steps", "2", "--draws", "2")
        evaluating = ["evaluate", *given, *restoring, "--data", str(tmp_path / "data.yaml")]
        assert main([*evaluating, "--out", str(out / "e.json")]) == 0
        # The folder remembers which items its training has not seen.
        assert main([*evaluating, "--out", str(out / "f.json"), "--data.seed", "1"]) == 2
        restored = np.load(out / "d/one_step/a.npy")
        rows = json.loads((out / "e.json").read_text())["rows"]
        made.append((np.load(out / "s/samples.npz")["samples"], restored, [row["value"] for row in rows]))
    for ours, theirs in zip(*made, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_page_of_the_docs(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and its Python, as printed, but with fewer samples."""
    page = (ROOT / "docs/howto/giving_away.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^lightning_tweedie (.*)$", page, re.M)]
    monkeypatch.chdir(tmp_path)
    place = Path(commands[0][commands[0].index("--ckpt_path") + 1])
    place.parent.mkdir(parents=True)
    shutil.copy(ckpt, place)
    (tmp_path / "noisy").mkdir()
    np.save(tmp_path / "noisy/a.npy", np.random.default_rng(0).normal(0, 0.7, (1, 28, 28)).astype(np.float32))
    write_folder(torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0)), tmp_path / "images")
    fewer = {
        "export": ["--num", "2"],
        "sample": ["--num", "2", "--steps", "2"],
        "denoise": [],
        "evaluate": ["--num", "12", "--steps", "2", "--metrics", "fid", "--extractor", ENCODER],
    }
    assert [command for command, *_ in commands] == list(fewer)
    for command, *options in commands:
        assert main([command, *options, *fewer[command]]) == 0
    assert {path.name for path in (tmp_path / "digits").iterdir()} == set(re.findall(r"^\| `([\w.]+)` ", page, re.M))
    shown = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        names: dict = {}
        exec(code.replace("(16,", "(2,").replace("num_inference_steps=18", "num_inference_steps=2"), names)
        shown[type(names["images"])] = names["images"]
    assert shown[torch.Tensor].shape == (2, 1, 28, 28)
    assert [image.size for image in shown[list]] == [(28, 28)] * 4


def test_nothing_is_overwritten_and_nothing_is_left_half_done(
    ckpt: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(out: Path, words: str) -> None:
        capsys.readouterr()
        assert main(["export", "--ckpt_path", str(ckpt), "--num", "0", "--out", str(out)]) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and words in told[0] and str(out) in told[0]

    before = files(exported)
    refused(exported, "exists already")
    assert files(exported) == before
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "exists already")
    refused(tmp_path / "file/below", "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"

    def full(*args: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model_card, "model_card", full)
        refused(tmp_path / "out", "No space left")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "out").mkdir()
    assert main(["export", "--ckpt_path", str(ckpt), "--num", "0", "--out", str(tmp_path / "out")]) == 0
    assert set(files(tmp_path / "out")) == {"README.md", "config.json", "model.safetensors"}


def test_a_training_does_not_start_from_the_folder(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("fit", "validate"):
        assert run(tmp_path, command, "--ckpt_path", str(exported), config=DIGITS) == 2
        assert "is a folder" in capsys.readouterr().err
    assert main(["export", "--ckpt_path", str(exported), "--out", str(tmp_path / "again")]) == 2
    assert main(["sample", "--ckpt_path", str(exported), "--out", str(tmp_path / "s"), "--average", "1"]) == 2
    assert "holds 1 averages" in capsys.readouterr().err
