"""The package as a whole: quick to import, plain PyTorch below the line, a README that is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

BELOW_THE_LINE = re.findall(
    r'^    "lightning_tweedie\.(\w+)",$',
    (ROOT / "pyproject.toml").read_text().partition('id = "plain-torch"')[2],
    flags=re.MULTILINE,
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_importing_the_package_loads_neither_torch_nor_lightning() -> None:
    result = run(
        "import sys, lightning_tweedie\n"
        "heavy = {'torch', 'lightning', 'numpy', 'torchvision', 'wandb', 'albumentations'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert result.returncode == 0, result.stderr


def test_what_is_below_the_line_works_where_lightning_cannot_be_imported() -> None:
    assert {"denoiser", "objectives", "sampling", "data"} <= set(BELOW_THE_LINE)
    result = run(
        "import sys\n"
        "for name in ('lightning', 'lightning_fabric', 'pytorch_lightning'): sys.modules[name] = None\n"
        "import importlib, pkgutil\n"
        f"for name in {BELOW_THE_LINE}:\n"
        "    module = importlib.import_module('lightning_tweedie.' + name)\n"
        "    for child in pkgutil.walk_packages(getattr(module, '__path__', []), module.__name__ + '.'):\n"
        "        importlib.import_module(child.name)\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("first", ["torchvision", "lightning"])
def test_torchvision_can_be_imported_after_us_whatever_build_it_is(first: str) -> None:
    result = run(
        "import sys, lightning_tweedie\n"
        f"import {first}, torchvision, torch\n"
        "assert not [finder for finder in sys.meta_path if type(finder).__name__ == '_Watcher']\n"
        # Without the compiled half the two operators are declared by us, with it by torchvision.
        "assert torch.ops.torchvision.nms.default is not None\n"
        "image = torchvision.transforms.functional.hflip(torch.arange(3.0).reshape(1, 1, 3))\n"
        "assert image.tolist() == [[[2.0, 1.0, 0.0]]]"
    )
    assert result.returncode == 0, result.stderr


def test_every_module_has_its_place_in_the_docs() -> None:
    listed = set(re.findall(r"^   lightning_tweedie\.(\w+)$", (ROOT / "docs/api.rst").read_text(), flags=re.MULTILINE))
    package = ROOT / "lightning_tweedie"
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert listed == {name for name in modules if not name.startswith("_")}


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_trains_in_plain_pytorch() -> None:
    code = next(block for block in python_blocks() if "objective(" in block)
    code = code.replace("width=32", "width=8").replace("shape=(64", "shape=(2")
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(4, 1, 28, 28, generator=generator), torch.full((4,), 0.5))
    names = {"loader": [batch, batch, batch]}
    exec(code, names)
    images, restored = names["images"], names["restored"]
    for made, shape in ((images, (2, 1, 28, 28)), (restored, (8, 4, 1, 28, 28))):
        assert isinstance(made, torch.Tensor) and made.shape == shape and bool(made.isfinite().all())


def test_the_readme_describes_data_of_ones_own(tmp_path: Path) -> None:
    import numpy as np

    code = next(block for block in python_blocks() if "NoisyDataModule" in block)
    names: dict = {}
    exec(code, names)
    noisy = np.random.default_rng(0).normal(0, 0.5, (64, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "galaxies.npy", noisy)
    data = names["Galaxies"](file=str(tmp_path / "galaxies.npy"), sigma=0.1, inject=False, batch_size=4, holdout=8)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    # Noisy by nature: nothing is added, and the items say their level.
    assert torch.equal(batch.x_n, torch.from_numpy(noisy)[batch.index])
    assert batch.x_0 is None and torch.equal(batch.sigma_n, torch.full((4,), 0.1))
