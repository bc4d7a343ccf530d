"""A checkpoint or a folder from a stranger runs nothing, takes nothing, and is refused in one sentence."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.model_folder import write_model_folder
from lightning_tweedie.networks import MLP, UNet
from lightning_tweedie.serialization import to_config

BUILT: list[str] = []


class Witness(torch.nn.Module):
    """A network of a package that nobody has allowed."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        BUILT.append("built")


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.witness,)


def description(denoiser: Denoiser, shape: list[int]) -> dict[str, Any]:
    return {"format": 1, "denoiser": to_config(denoiser), "shape": shape, "sigma_n": 0.3, "half_lives": [10.0]}


@pytest.fixture(params=["unet", "mlp"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An honest model."""
    unet = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), patch=2)
    backbone, shape = (unet, [1, 8, 8]) if request.param == "unet" else (MLP(2, width=8, depth=2), [2])
    denoiser = Denoiser(backbone, 0.5)
    (tmp_path / "model").mkdir()
    write_model_folder(tmp_path / "model", description(denoiser, shape), denoiser.state_dict())
    assert load_denoiser(tmp_path / "model").shape == tuple(shape)
    return tmp_path / "model"


def as_checkpoint(folder: Path) -> Path:
    """The same model as a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    state = {f"ema.averages.0.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    path = folder.parent / "model.ckpt"
    torch.save({"lightning_tweedie": config, "state_dict": state}, path)
    return path


def refused(path: Path) -> str:
    """The one sentence, which names the file."""
    with pytest.raises(UserError) as told:
        load_denoiser(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    return str(told.value)


def edit(config: dict[str, Any], place: str, value: Any) -> None:
    *parents, name = place.split("/")
    for parent in parents:
        config = config[parent]
    config[name] = value


BACKBONE = "denoiser/init_args/backbone"
ANY: list[tuple[str, Any, str]] = [
    (f"{BACKBONE}/class_path", "os.system", "not one of this library's"),
    ("denoiser/class_path", "subprocess.Popen", "not one of this library's"),
    (f"{BACKBONE}/class_path", "test_hostile_models.Witness", "--allow test_hostile_models"),
    (f"{BACKBONE}/class_path", "lightning_tweedie.networks.../../test_hostile_models.Witness", "not one of"),
    (f"{BACKBONE}/class_path", "lightning_tweedie.networks.unet.torch.hub.load", "cannot be imported"),
    (f"{BACKBONE}/class_path", "lightning_tweedie.commands.export.export", "not one of this library's"),
    (f"{BACKBONE}/class_path", 3, "not one of this library's"),
    ("denoiser", "os.system", "does not fit together"),
    ("denoiser", {}, "does not fit together"),
    ("denoiser/init_args", [1, 2], "does not fit together"),
    ("denoiser/class_path", "lightning_tweedie.networks.MLP", "does not fit together"),
    (f"{BACKBONE}/init_args/path", "../../etc/passwd", "does not fit together"),
    (f"{BACKBONE}/init_args/width", "../../etc/passwd", "does not fit together"),
    (f"{BACKBONE}/init_args/width", 4 * 10**6, "larger than its weights"),
    (f"{BACKBONE}/init_args/width", 4 * 10**30, "does not fit together"),
    (f"{BACKBONE}/init_args/width", 12, "does not fit together"),
    (f"{BACKBONE}/init_args/width", -4, ""),
    ("shape", [10**6, 10**6], "the shape"),
    ("shape", [1, 8, -8], "the shape"),
    ("shape", [], "does not fit together"),
    ("shape", [True, 8, 8], "the shape"),
    ("shape", ["../8", 8], "the shape"),
    ("shape", 8, "does not fit together"),
    ("shape", [3, 8, 8], "does not fit together"),
    ("sigma_n", -1, "sigma_n"),
    ("sigma_n", "nan", "sigma_n"),
    ("sigma_n", {}, "does not fit together"),
    ("half_lives", "x", "does not fit together"),
    ("step", [], "does not fit together"),
]
OF_ONE = {
    "unet": [
        (f"{BACKBONE}/init_args/blocks", 10**9, "larger than its weights"),
        (f"{BACKBONE}/init_args/patch", 10**9, "does not fit together"),
        (f"{BACKBONE}/init_args/multipliers", [1] * 100_000, "larger than its weights"),
        (f"{BACKBONE}/init_args/channels", 3, "does not fit together"),
        ("shape", [1, 8, 7], "does not fit together"),
    ],
    "mlp": [
        (f"{BACKBONE}/init_args/depth", 10**12, "larger than its weights"),
        (f"{BACKBONE}/init_args/embedding", 10**6, "larger than its weights"),
        (f"{BACKBONE}/init_args/dim", 10**12, "larger than its weights"),
        ("shape", [3], "does not fit together"),
    ],
}


def test_lies(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each wrong word of a description, in a folder and, where it is no matter of JSON, in a checkpoint."""
    honest = (folder / "config.json").read_text()
    checkpoint = torch.load(as_checkpoint(folder), weights_only=True)
    for place, value, words in ANY + OF_ONE[request.node.callspec.params["folder"]]:
        config = json.loads(honest)
        edit(config, place, value)
        (folder / "config.json").write_text(json.dumps(config))
        assert words in refused(folder), (place, value)
        if place != "step":  # which is elsewhere
            torch.save({**checkpoint, "lightning_tweedie": config}, tmp_path / "lie.ckpt")
            assert words in refused(tmp_path / "lie.ckpt"), (place, value)
    assert not BUILT
    # Nor were the larger networks: there is no such memory.
    (folder / "config.json").write_text(honest)
    load_denoiser(folder)


def test_a_network_that_is_allowed_is_built(folder: Path) -> None:
    """The control of the test above: with the user's word the stranger's class is run."""
    config = json.loads((folder / "config.json").read_text())
    config["denoiser"]["init_args"]["backbone"]["class_path"] = f"{__name__}.Witness"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit together"):  # for it has no weights
        load_denoiser(folder, allow=[__name__])
    assert BUILT
    BUILT.clear()


@pytest.mark.parametrize(
    "text",
    [b"", b"hello", b"[1, 2]", b'"config"', b'{"denoiser": ', b"\xff\xfe{}", b"[" * 100_000, b" " * (2 << 20) + b"{}"],
    ids=["empty", "words", "list", "string", "cut", "binary", "deep", "long"],
)
def test_a_description_that_is_not_json(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    assert "is not the JSON of an exported model" in refused(folder)


def test_weights_that_are_damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    honest, config = path.read_bytes(), json.loads((folder / "config.json").read_text())
    flipped = bytearray(honest)
    flipped[-5] ^= 1  # one bit of one weight, which nothing but the digest can tell
    bodies = {
        "truncated": honest[:-100],
        "half": honest[: len(honest) // 2],
        "empty": b"",
        "words": b"hello",
        "a header of exabytes": b"\xff" * 8 + honest[8:],
        "flipped": bytes(flipped),
    }
    for name, body in bodies.items():
        path.write_bytes(body)
        assert "is not the file that config.json speaks of" in refused(folder)
        if name != "flipped":  # the same with a digest that fits
            told = {**config, "weights_sha256": hashlib.sha256(body).hexdigest()}
            (folder / "config.json").write_text(json.dumps(told))
            assert "cannot be read" in refused(folder)
            (folder / "config.json").write_text(json.dumps(config))
    path.unlink()
    assert "has no model.safetensors" in refused(folder)


def test_weights_of_another_network(folder: Path) -> None:
    config, weights = (
        json.loads((folder / "config.json").read_text()),
        load((folder / "model.safetensors").read_bytes()),
    )
    first = next(name for name in weights if name.endswith("weight"))
    lies: list[dict[str, torch.Tensor]] = [
        {k: v for k, v in weights.items() if k != first},
        {**weights, "more": torch.zeros(3)},
        {**weights, first: weights[first][1:].clone()},
        {**weights, "sigma_data": torch.tensor(float("nan"))},
        {**weights, "sigma_data": torch.tensor(-1.0)},
        {},
    ]
    for lie in lies:
        write_model_folder(folder, config, lie)
        assert "does not fit together" in refused(folder)


def test_a_pickle_is_not_opened(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    witness = tmp_path / "witness"
    honest = torch.load(as_checkpoint(folder), weights_only=True)
    config = json.loads((folder / "config.json").read_text())
    torch.save({**honest, "evil": Evil(witness)}, tmp_path / "evil.ckpt")
    capsys.readouterr()
    for name in ("sample", "export"):
        out = tmp_path / "out"
        assert main([name, "--ckpt_path", str(tmp_path / "evil.ckpt"), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1 and not out.exists()
        assert "could run code" in told
    # In the place of weights, with a digest that fits, and under the other names that weights have.
    body = pickle.dumps({**load_file(folder / "model.safetensors"), "evil": Evil(witness)})
    for name in ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin", "last.ckpt"):
        (folder / name).write_bytes(body)
    told = {**config, "weights_sha256": hashlib.sha256(body).hexdigest()}
    (folder / "config.json").write_text(json.dumps(told))
    assert "cannot be read" in refused(folder)
    # As the description.
    (folder / "config.json").write_bytes(body)
    assert "is not the JSON" in refused(folder)
    assert not witness.exists()
    pickle.loads(body)
    assert witness.exists(), "the pickle was harmless, so the test says nothing"


def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the folder, even where the user works in it."""
    for name in ("config", "torch", "safetensors", "model", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'witness')!r}).touch()\n")
    monkeypatch.chdir(folder)
    assert main(["sample", "--ckpt_path", ".", "--out", str(tmp_path / "out"), "--num", "1", "--steps", "2"]) == 0
    assert not (tmp_path / "witness").exists()


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is not an exported model" in refused(tmp_path / "folder")
    (tmp_path / "folder/model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    assert "has no config.json" in refused(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder")
    assert "does not exist" in refused(tmp_path / "folder")
