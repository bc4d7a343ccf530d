"""The model card: what a model is, for those whom it is given to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_tweedie import __version__
from lightning_tweedie.checkpoint import CHECKPOINT_KEY, TrainedDenoiser

__all__ = ["model_card"]

CARD = """---
library_name: lightning_tweedie
tags: [diffusion, denoising, noisy-data]{task}
---

# {name}

{what}
{picture}
{facts}

## Use

With lightning_tweedie{package} installed. Nothing in this folder is code.

```python
{code}
```

{commands}

## Metrics

{metrics}

## Data and licence

*To be completed by whoever gives the model away: where the data come from, what the model is for and what it is not
for, and the licences of the data and of the model.*
"""

MODEL = {
    "what": "A diffusion model that was trained on noisy data and draws clean ones; it restores noisy data too.",
    "code": """from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.sampling import one_step, posterior_samples, sample

model = load_denoiser({arguments})
samples = sample(model.denoiser, (16, *model.shape))
restored = one_step(model.denoiser, noisy, model.sigma_n)  # of least squared error
draws = posterior_samples(model.denoiser, noisy, model.sigma_n, draws=8)  # what the clean data may have been""",
    "commands": "The commands `lightning_tweedie sample`, `denoise` and `evaluate` take the folder as `--ckpt_path`.",
}
"""What is said of a denoiser."""

GENERATOR = {
    "what": "A generator of clean data in one step, distilled from a diffusion model that was trained on noisy ones.",
    "code": """from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.sampling import Euler, sample

model = load_denoiser({arguments})
samples = sample(model.denoiser, (16, *model.shape), Euler(steps=1, sigma_max={sigma_init:g}))""",
    "commands": "The command: `lightning_tweedie sample --ckpt_path FOLDER --steps 1 --sigma_max {sigma_init:g} ...`",
}
"""What is said of one that was distilled."""

NO_METRICS = "None were measured of these weights during their training: `lightning_tweedie evaluate` does it."


def model_card(
    name: str,
    trained: TrainedDenoiser,
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    samples: int,
    sigma_init: float | None,
) -> str:
    """Writes the card, as far as the checkpoint and its run's directory tell.

    Args:
        name: What the model is called.
        trained: What the checkpoint holds.
        checkpoint: Its content.
        data: States of data modules by the names of their classes.
        samples: How many samples the picture beside it shows.
        sigma_init: Where a distilled generator begins; None for a denoiser.

    Returns:
        Markdown, with metadata for model hubs.
    """
    package = _class_path(checkpoint).partition(".")[0]
    ours = package == "lightning_tweedie"
    facts = _facts(trained, checkpoint, data)
    width = max(map(len, facts))
    told = {
        "arguments": f'"{name}"' + ("" if ours else f', allow=["{package}"]'),
        "sigma_init": sigma_init,
    }
    texts = MODEL if sigma_init is None else GENERATOR
    return CARD.format(
        name=name,
        **{key: text.format(**told) for key, text in texts.items()},
        package="" if ours else f", and {package} with the network's class,",
        task="\npipeline_tag: unconditional-image-generation" if len(trained.shape) == 3 else "",
        picture=f"\n![{samples} samples](samples.png)\n" if samples else "",
        facts="\n".join(
            [f"| {'':<{width}} | |", f"|{'-' * (width + 2)}|-|", *(f"| {k:<{width}} | {v} |" for k, v in facts.items())]
        ),
        metrics="\n".join(_metrics(trained)).strip() or NO_METRICS,
    )


def _noise(trained: TrainedDenoiser) -> str:
    level = f"sigma up to {trained.sigma_n:.4g} on the scale of data in [-1, 1]"
    if trained.correlation is not None:
        return (
            f"correlated between neighbours (`kernels.raise_to_white` comes first); white noise that covers it: {level}"
        )
    return f"{level}, different from pixel to pixel" if trained.maps else level


def _facts(trained: TrainedDenoiser, checkpoint: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    arguments = checkpoint[CHECKPOINT_KEY]["denoiser"]["init_args"]["backbone"]["init_args"]
    settings = ", ".join(f"{key} = {value}" for key, value in arguments.items())
    parameters = sum(p.numel() for p in trained.denoiser.parameters())
    facts = {
        "data": ", ".join([*data, f"items of shape {' x '.join(map(str, trained.shape))}"]),
        "noise in the training data": _noise(trained),
        "network": f"{_class_path(checkpoint)}, {parameters:,} parameters: {settings}",
        "standard deviation of clean data": f"{float(trained.denoiser.sigma_data):.4g}",
    }
    if isinstance(scale := checkpoint[CHECKPOINT_KEY].get("scale"), dict):
        facts["scale of the data"] = ", ".join(f"{key} = {value}" for key, value in scale.items())
    for state in data.values():
        noise = state["noise"]
        facts["noise in the training data"] += ", put into clean data" if noise.get("inject") else ", there by nature"
        if noise.get("clean_fraction"):
            facts["noise in the training data"] += f"; {noise['clean_fraction']:.3g} of the items are clean"
        if trained.step is not None and "global_batch_size" in state:
            size = state["global_batch_size"]
            facts["training"] = f"{trained.step:,} steps of {size} items, {trained.step * size:,} in all"
    given = checkpoint.get("hyper_parameters", {})
    objective = (given.get("objective") or {}).get("init_args", {})
    terms = [term for value in objective.values() for term in (value if isinstance(value, list) else [value]) if term]
    if "objective" in given and not objective.get("ambient"):  # it was left out, and then is that one
        terms.insert(0, {"class_path": "lightning_tweedie.objectives.AmbientScoreMatching"})
    facts["trained as"] = str(given.get("_class_path", "lightning_tweedie.module.TweedieModule"))
    if terms:
        facts["objective"] = ", ".join(_short(term) for term in terms)
    if given.get("optimizer"):
        rate = given["optimizer"].get("init_args", {}).get("lr")
        facts["optimiser"] = f"{_short(given['optimizer'])}, learning rate {rate}"
    if trained.half_life is not None:
        facts["weights"] = f"averaged with a half-life of {trained.half_life:g} steps"
    facts["made with"] = f"lightning_tweedie {__version__}"
    facts["checkpoint"] = f"SHA-256 {trained.digest}"
    return facts


def _class_path(checkpoint: Mapping[str, Any]) -> str:
    return str(checkpoint[CHECKPOINT_KEY]["denoiser"]["init_args"]["backbone"]["class_path"])


def _short(described: Mapping[str, Any]) -> str:
    return str(described["class_path"]).rpartition(".")[2]


def _metrics(trained: TrainedDenoiser) -> list[str]:
    """Tables from the run's directory, of these very weights."""
    from lightning_tweedie.evaluation.results import Row, markdown_table

    run, weights = Path(trained.path).absolute().parent.parent, (trained.step, trained.half_life)
    tables = []
    for path in sorted(run.glob("report*/report.json")):
        facts = _json(path.read_text(encoding="utf-8"))
        if (facts.get("step"), facts.get("ema_half_life")) == weights and path.with_suffix(".md").is_file():
            tables.append(path.with_suffix(".md").read_text(encoding="utf-8"))
    rows = []
    for path in run.glob("quality.jsonl"):
        for facts in map(_json, path.read_text(encoding="utf-8").splitlines()):
            if (facts.get("step"), facts.get("ema_half_life")) == weights and facts.get("value") is not None:
                rows.append(Row(**{field.name: facts.get(field.name) for field in fields(Row)}))  # type: ignore[arg-type]
    return [*tables, markdown_table(rows)] if rows else tables


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # the last line of a run that was interrupted
        return {}
    return found if isinstance(found, dict) else {}
