"""`inspect`: a look at noisy images before any training."""

from collections.abc import Sequence

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.commands.output import check_apart, output_folder

__all__ = ["inspect", "main"]


def inspect(
    data: str,
    out: str,
    key: str | None = None,
    channels: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Looks at noisy images: what there is, how strong the noise is, and whether it is what training takes it for.

    Writes a page (report.html, and as a picture report.png), all figures (report.json: `sigma` in `sigma_unit`, and
    what else was found) and a configuration for these images (config.yaml) that `fit` trains as it is.

    Args:
        data: Folder of images, a tar or zip archive of them, or one file with many. Comes first, then --data may be
            left out.
        out: Folder for the report; it must be empty.
        key: Which array of a file, where there may be several: a name in NPZ and HDF5, a unit (HDU) in FITS.
        channels: Channels of an image, of arrays in which 1, 3 or 4 of them cannot be guessed.
        seed: Decides which part of a large set is looked at closely.
        overwrite: Replace files of an earlier call.

    Raises:
        UserError: There are no images that can be read, or the folder is not empty or lies among them.
    """
    import json

    import torch
    import yaml

    from lightning_tweedie.files import write_whole
    from lightning_tweedie.inspection.findings import examine
    from lightning_tweedie.inspection.report import as_html, as_json, as_png, on_scale
    from lightning_tweedie.inspection.suggestion import suggest
    from lightning_tweedie.inspection.survey import survey

    check_apart(out, data)
    folder = output_folder(out, overwrite)
    found = survey(data, seed, key, channels)
    findings = examine(found, seed)
    gpu = torch.cuda.is_available()
    hardware = "with a GPU" if gpu else "without a GPU"
    config = f"# For {found.root.name}, {hardware}. Every value may be changed.\n" + yaml.safe_dump(
        suggest(found, findings.sigma, gpu), sort_keys=False
    )
    command = f"lightning_tweedie fit --config {folder / 'config.yaml'}"
    report = {**as_json(found, findings), "config": str(folder / "config.yaml"), "seed": seed}
    contents = {
        "config.yaml": config.encode(),
        "report.json": (json.dumps(report, indent=1) + "\n").encode(),
        "report.png": as_png(found, findings),
        "report.html": as_html(found, findings, config, command).encode(),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    print(f"sigma {findings.sigma:.4g} +- {findings.standard_error:.2g} {on_scale(found)}")
    for warning in findings.warnings:
        print(f"warning: {warning.text} {warning.remedy}")
    print(f"Wrote {folder / 'report.html'}; to train: {command}")


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie inspect``."""
    named = not argv or argv[0].startswith("-")
    call_with(inspect, argv if named else ["--data", *argv])
