"""The command `codiemb tune`: learning rates and variants compared on dev."""

from __future__ import annotations

from collections.abc import Sequence

import click

from codiemb_lib import core
from codiemb_lib.app import options


@click.command(cls=options.Command, epilog=options.examples("tune --rates 2e-5 5e-5 1e-4"))
@options.preset_option()
@click.option("--rates", multiple=True, type=float, metavar="RATE...", help="Default: their own.")
@click.option("--variants", multiple=True, metavar="NAME...", help="Default: all of the preset.")
@click.option("--seed", type=int, help="Default: the preset's first.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of steps.")
def tune(
    preset: str, rates: Sequence[float], variants: Sequence[str], seed: int | None, share: float
) -> None:
    """Train variants, at several learning rates, and say how they do on dev.

    Best of the rates of a variant is the mean over its own tasks. The runs are those of a preset
    NAME-rates; what is finished is not trained again. The rows go to figures/NAME/rates.csv, beside
    those of other variants.
    """
    import pandas as pd

    from codiemb_lib.train import train

    settings = core.load_preset(preset)
    if share < 1 and not settings.training.max_steps:
        raise click.UsageError("--share: expected a preset with max_steps, found whole epochs.")
    seed = settings.seeds[0] if seed is None else seed
    rows = []
    for variant in variants or settings.variants:
        trained = settings.as_trained(variant).training
        for rate in rates or [trained.learning_rate]:
            own, name = settings.variant(variant), f"{variant}-{rate:g}"
            steps = round(share * trained.max_steps) or None
            tried = own.model_copy(update={"learning_rate": rate, "max_steps": steps})
            named = settings.variants | {name: tried}
            changes = {"name": f"{settings.name}-rates", "variants": named}
            folder = train(settings.model_copy(update=changes), name, seed)
            manifest = core.read_json(folder / "manifest.json")
            step, dev = manifest["settings"]["selected_step"], pd.read_csv(folder / "dev.csv")
            means = core.task_means(dev[dev["step"] == step])
            rows.append(
                {"preset": settings.name, "variant": variant, "seed": seed, "learning_rate": rate}
                | {"step": step, **means, "own": sum(means[t] for t in own.tasks) / len(own.tasks)}
                | {"commit": manifest["git_commit"]}
            )
    table = pd.DataFrame(rows)
    table["best"] = table["own"] == table.groupby("variant")["own"].transform("max")
    file = core.figures_folder(settings.name) / "rates.csv"
    earlier = pd.read_csv(file) if file.is_file() else table[:0]
    others = earlier[~earlier["variant"].isin(table["variant"])]
    core.write_rows(file, pd.concat([others, table]) if len(others) else table)
    for row in table[table["best"]].itertuples():
        click.echo(f"{row.variant:20} {row.learning_rate:<8g} {100 * row.own:.2f} on dev")
