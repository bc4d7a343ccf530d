"""Photos whose noise nobody knows: from a folder of them to clean estimates, and what classical methods make of it.

The photos are those of scikit-image, in grey, of large ones the middle 512 x 512 pixels. All get Gaussian noise of
sigma 25 (in steps of 8-bit images), which is put in once, is neither clipped nor rounded, and is not told to what comes
after. Some scenes are held out. Then, as a user would:

* ``lightning_tweedie inspect`` looks at the noisy training photos;
* ``lightning_tweedie fit`` trains with the configuration that it suggests, as printed;
* ``lightning_tweedie denoise`` restores the held-out photos.

Non-local means and wavelets are told the true sigma, and have their settings chosen for the best PSNR on the *clean*
training photos; so they have an advantage. Finished steps are not done again, and an interrupted training goes on.

    python benchmarks/photos.py --work runs/photos --out docs/benchmarks/photos.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import tifffile
import torch
from PIL import Image
from skimage.restoration import denoise_nl_means, denoise_wavelet
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.metrics.restoration import psnr, ssim
from lightning_tweedie.pictures import panel
from lightning_tweedie.randomness import item_generator, item_noise

SCENES = (
    "astronaut brick camera cell chelsea clock_motion coffee coins grass gravel hubble_deep_field ihc microaneurysms "
    "moon motorcycle page retina rocket text"
).split()
"""The photos of scikit-image by scene: of the motorcycle there are two."""
SIGMA = 25 / 127.5
"""On the scale of [-1, 1]."""
LARGEST, HELD_OUT, TUNED_ON = 512, 6, 256
SHOWN, SIDE = 4, 192
"""So many held-out photos are shown, and drawn from: a part of so many pixels."""


def middle(image: Tensor, side: int) -> Tensor:
    """At most ``side`` pixels in both directions, from the middle of ``(1, H, W)``."""
    top, left = (max(0, (size - side) // 2) for size in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def clean_photos(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training photos and held-out ones by name, ``(1, H, W)`` in [-1, 1]. No scene is in both."""
    order = item_generator(seed, "photos/holdout", 0).permutation(len(SCENES))
    held_out = {SCENES[i] for i in order[:HELD_OUT]}
    train: dict[str, Tensor] = {}
    test: dict[str, Tensor] = {}
    folder = Path(skimage.data.__file__).parent
    for scene in SCENES:
        for path in sorted(path for path in folder.glob(f"{scene}*") if path.suffix in (".png", ".jpg")):
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1
            (test if scene in held_out else train)[path.stem] = middle(pixels[None], LARGEST)
    return train, test


def noisy(clean: dict[str, Tensor], stream: str, seed: int) -> dict[str, Tensor]:
    """The photos with noise that depends on the seed and the place alone."""
    return {
        name: image + SIGMA * item_noise(seed, f"photos/{stream}", number, image.shape)
        for number, (name, image) in enumerate(clean.items())
    }


def store(images: dict[str, Tensor], folder: Path) -> None:
    """Writes TIFF files of floats."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        tifffile.imwrite(folder / f"{name}.tif", image[0].numpy())


def nonlocal_means(size: int, distance: int, strength: float) -> Callable[[Tensor], Tensor]:
    """The fast form, with h as a share of sigma."""

    def restore(x_n: Tensor) -> Tensor:
        settings = {"patch_size": size, "patch_distance": distance, "h": strength * SIGMA}
        return torch.from_numpy(denoise_nl_means(x_n[0].numpy(), sigma=SIGMA, fast_mode=True, **settings))[None]

    return restore


def wavelets(method: str, wavelet: str, share: float, mode: str, shifts: int) -> Callable[[Tensor], Tensor]:
    """BayesShrink or VisuShrink, told a share of sigma; with shifts the mean over shifted images (cycle spinning)."""

    def restore(x_n: Tensor) -> Tensor:
        settings: dict[str, Any] = {"method": method, "wavelet": wavelet, "mode": mode, "rescale_sigma": False}
        image, total = x_n[0].numpy(), np.zeros(x_n.shape[1:])
        for by in product(range(shifts), repeat=2):
            shifted = denoise_wavelet(np.roll(image, by, (0, 1)), sigma=share * SIGMA, **settings)
            total += np.roll(shifted, (-by[0], -by[1]), (0, 1))
        return torch.from_numpy(total / shifts**2).float()[None]

    return restore


def classical(shifts: int) -> dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]]:
    """The settings among which each method chooses."""
    shrink = [("BayesShrink", 1.0), ("VisuShrink", 1.0), ("VisuShrink", 0.5), ("VisuShrink", 0.25)]
    kinds = [
        (m, w, s, mode) for (m, s), w, mode in product(shrink, ("db1", "db2", "sym4", "bior4.4"), ("soft", "hard"))
    ]
    means = [(size, far, h) for (size, far), h in product(((5, 6), (5, 11), (7, 11)), (0.5, 0.6, 0.7, 0.8, 0.9))]
    return {
        "non-local means": [
            (f"patches of {size}, distance {far}, h {h:g} sigma", nonlocal_means(size, far, h))
            for size, far, h in means
        ],
        "wavelets": [(f"{m}, {w}, {s:g} sigma, {mode}", wavelets(m, w, s, mode, 1)) for m, w, s, mode in kinds],
        f"wavelets, {shifts**2} shifts": [
            (f"{m}, {w}, {s:g} sigma, {mode}", wavelets(m, w, s, mode, shifts)) for m, w, s, mode in kinds
        ],
    }


def mean_psnr(restore: Callable[[Tensor], Tensor], clean: dict[str, Tensor], noised: dict[str, Tensor]) -> float:
    """Mean over photos, in decibels."""
    return float(torch.cat([psnr(restore(noised[name])[None], clean[name][None]) for name in clean]).mean())


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; it is made first where there is none."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def command(*words: str | Path) -> dict[str, int]:
    """Runs a command of the library and says how long it took."""
    print("lightning_tweedie", *words, flush=True)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lightning_tweedie", *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(used)}


def train(work: Path) -> dict[str, Any]:
    """Trains with the suggested configuration, as it is printed, or goes on with an interrupted training."""
    words: list[str | Path] = ["fit", "--config", work / "report/config.yaml", "--runs", work / "runs"]
    earlier = sorted((work / "runs").glob("*/fit_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if earlier:
        words += ["--ckpt_path", earlier[-1]]
    took = command(*words)
    last = max((work / "runs").glob("*/fit_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return {"checkpoint": str(last.relative_to(work)), **took, "resumed": bool(earlier)}


def read_back(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Restored photos ``(1, H, W)`` by name."""
    return {name: torch.from_numpy(tifffile.imread(folder / f"{name}.tif"))[None] for name in names}


def chosen(train_photos: dict[str, Tensor], noised: dict[str, Tensor], shifts: int) -> dict[str, Any]:
    """The best setting of each classical method on the training photos, whose clean images it may see."""
    found: dict[str, Any] = {}
    # The same part of both, so that the noise stays where it was.
    parts = [{name: middle(image, TUNED_ON) for name, image in photos.items()} for photos in (train_photos, noised)]
    for method, settings in classical(shifts).items():
        scores = [mean_psnr(restore, *parts) for _, restore in tqdm(settings, desc=f"settings of {method}")]
        best = int(np.argmax(scores))
        found[method] = {
            "number": best,
            "setting": settings[best][0],
            "psnr on training photos": round(scores[best], 2),
        }
    return found


def measured(restored: dict[str, Tensor], clean: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """PSNR in decibels and SSIM of each photo."""
    return {
        name: {
            "psnr": round(float(psnr(restored[name][None], image[None])), 3),
            "ssim": round(float(ssim(restored[name][None], image[None])), 4),
        }
        for name, image in clean.items()
    }


def device() -> str:
    """What it ran on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    return f"{threads} {platform.machine()} core{'' if threads == '1' else 's'}"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


OURS = "one-step estimate"


def table(result: dict[str, Any], metric: str, digits: int) -> str:
    """A row for each photo, and one for their mean and its standard error."""
    methods = list(result["measured"])
    names = list(result["measured"][methods[0]])
    lines = ["| photo | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name in names:
        values = [result["measured"][method][name][metric] for method in methods]
        lines.append(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |")
    columns = {method: [result["measured"][method][name][metric] for name in names] for method in methods}
    means = [f"{mean_and_error(column)[0]:.{digits}f}" for column in columns.values()]
    lines.append("| **mean** | " + " | ".join(f"**{mean}**" for mean in means) + " |")
    gains = []
    for column in columns.values():
        mean, error = mean_and_error([a - b for a, b in zip(columns[OURS], column, strict=True)])
        gains.append("" if column is columns[OURS] else f"{mean:+.{digits}f} +- {error:.{digits}f}")
    lines.append(f"| {OURS}, more by | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def report(result: dict[str, Any], out: Path) -> str:
    """The page."""
    inspected, training, settings = result["inspected"], result["training"], result["settings"]
    names = [name for name, _ in result["shown"]]
    chose = "; ".join(f"{method}: {found['setting']}" for method, found in settings.items())
    off = 100 * (inspected["sigma"] / SIGMA - 1)
    drawn, count = result["draws"], len(result["measured"][OURS])
    columns = list(drawn["measured"])
    return f"""# Photos of unknown noise

Made by `{result["command"]}` on {result["device"]}: {result["training photos"]} noisy photos to
learn from, {count} held out, one noise (seed {result["seed"]}). Photos are grey, of large ones the middle
{LARGEST} x {LARGEST} pixels. Sigma is 25 in steps of 8-bit images, {SIGMA:.4f} on the scale of [-1, 1]. The network
has never seen a clean image and was not told sigma; it was trained with the configuration that `inspect` wrote, as
printed. The classical methods are scikit-image's, were told the true sigma, and had their settings chosen on the clean
training photos ({chose}).

| | |
|---|---|
| sigma by `inspect` | {inspected["sigma"]:.4f} +- {inspected["standard_error"]:.4f}, true {SIGMA:.4f}: {off:+.1f} % |
| training | {training["steps"]:,} steps, {_told(training)} |
| one-step estimates of the held-out photos | {_told(result["denoising"])} |
| {drawn["number"]} draws of parts of {len(names)} of them | {_told(drawn)} |

PSNR in decibels; in the last row by how much it is more in one step, the mean over photos with its standard error:

{table(result, "psnr", 2)}

SSIM:

{table(result, "ssim", 3)}

Parts of {SIDE} x {SIDE} pixels, the middle, restored by themselves with {drawn["number"]} posterior draws, from top to
bottom {", ".join(names)}:

![Noisy photos and what became of them](../images/photos_restored.png)

| PSNR of the part | {" | ".join(columns)} |
|---|{"---:|" * len(columns)}
{"".join(_draws_row(result, name) for name in names)}
All figures are in [{out.stem}.json]({out.stem}.json). What they are worth: a few photos of one collection, one
noise, one training. The standard errors tell how far photos differ, not how far trainings do.
"""


def _told(took: dict[str, Any]) -> str:
    wall, core = (
        f"{t / 60:.0f} minutes" if t >= 120 else f"{t} seconds" for t in (took["seconds"], took["cpu_seconds"])
    )
    return f"{wall}, of which {core} on the processor"


def _draws_row(result: dict[str, Any], name: str) -> str:
    values = [found[name]["psnr"] for found in result["draws"]["measured"].values()]
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |\n"


def main() -> None:
    """Runs the benchmark, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/photos"), help="folder for all that is made")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/photos.md"), help="the page; its JSON beside")
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"), help="folder for the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of what is held out")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--shifts", type=int, default=4, help="in both directions, for wavelets")
    args = parser.parse_args()
    work = args.work.resolve()
    clean, held_out = clean_photos(args.seed)
    noisy_clean, noisy_held_out = noisy(clean, "train", args.seed), noisy(held_out, "test", args.seed)
    large = [name for name, image in held_out.items() if min(image.shape[1:]) >= SIDE][:SHOWN]
    parts = {name: middle(held_out[name], SIDE) for name in large}
    noisy_parts = {name: middle(noisy_held_out[name], SIDE) for name in large}
    if not work.is_dir():
        store(noisy_clean, work / "noisy")
        store(noisy_held_out, work / "held_out")
        store(noisy_parts, work / "parts")

    if not (work / "report/report.json").is_file():
        command("inspect", work / "noisy", "--out", work / "report")
    found = json.loads((work / "report/report.json").read_text())
    training = once(work / "training.json", lambda: train(work))
    checkpoint = work / training.pop("checkpoint")
    model = torch.load(checkpoint, map_location="cpu", weights_only=True)

    def denoise(name: str, *options: str) -> dict[str, Any]:
        out = work / f"restored_{name}"
        words = ("denoise", "--ckpt_path", checkpoint, "--input", work / name, "--out", out, *options)
        return command(*words)

    denoising = once(work / "denoising.json", lambda: denoise("held_out"))
    drawing = once(work / "drawing.json", lambda: denoise("parts", "--draws", str(args.draws)))
    settings = once(work / "settings.json", lambda: chosen(clean, noisy_clean, args.shifts))

    methods = {name: classical(args.shifts)[name][choice["number"]][1] for name, choice in settings.items()}
    restored = {"noisy": noisy_held_out, OURS: read_back(work / "restored_held_out/one_step", list(held_out))}
    of_parts = {
        "noisy": noisy_parts,
        OURS: read_back(work / "restored_parts/one_step", large),
        f"mean of {args.draws} draws": read_back(work / "restored_parts/mean", large),
    }
    for name, method in methods.items():
        tasks = tqdm(noisy_held_out.items(), desc=name)
        restored[name] = {photo: method(image) for photo, image in tasks}
        of_parts[name] = {photo: middle(restored[name][photo], SIDE) for photo in large}
    result = {
        "command": "python benchmarks/photos.py" + (f" --seed {args.seed}" if args.seed else ""),
        "device": device(),
        "seed": args.seed,
        "training photos": len(clean),
        "inspected": {"sigma": found["sigma"], "standard_error": found["sigma_standard_error"], "true": SIGMA},
        "training": {"steps": model["global_step"], **training},
        "denoising": denoising,
        "settings": settings,
        "measured": {name: measured(images, held_out) for name, images in restored.items()},
        "draws": {
            "number": args.draws,
            **drawing,
            "measured": {name: measured(images, parts) for name, images in of_parts.items()},
        },
        "shown": [(name, list(image.shape[1:])) for name, image in parts.items()],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.out.write_text(report(result, args.out))
    deviation = torch.stack(list(read_back(work / "restored_parts/std", large).values()))
    top = float(deviation.quantile(0.999))
    columns = [(name, torch.stack(list(images.values()))) for name, images in of_parts.items()]
    columns.insert(3, (f"deviation of draws, white: {top:.2f}", deviation / top * 2 - 1))
    columns.append(("clean", torch.stack(list(parts.values()))))
    args.pictures.mkdir(parents=True, exist_ok=True)
    # All is grey, and a third of the size if it is stored so.
    Image.fromarray(panel(columns)[..., 0]).save(args.pictures / "photos_restored.png", optimize=True)
    print(table(result, "psnr", 2))


if __name__ == "__main__":
    main()
