"""What this project shows of its committed rows: `make pages` writes it, and a test compares.

That is figures/README.md, with all figures of two presets and their captions, figures/RESULTS.md,
and the table in README.md.
"""

from pathlib import Path

import pandas as pd
from jinja2 import Template

from codiemb_lib.core import load_preset, write_text
from codiemb_lib.draw import FIGURES, results_table, to_markdown
from codiemb_lib.evaluate import verdicts

HERE = Path(__file__).resolve().parent
PRESETS = ("english", "mini")


def gallery_page() -> str:
    """The figures of all presets and their captions, in the order in which they tell the story."""
    captions = {
        preset: {
            stem: (HERE / preset / f"{stem}.md").read_text(encoding="utf-8").strip()
            for stem in FIGURES
            if (HERE / preset / f"{stem}.png").is_file()
        }
        for preset in PRESETS
    }
    template = (HERE / "templates" / "README.md").read_text(encoding="utf-8")
    return Template(template, keep_trailing_newline=True).render(presets=captions)


def results_page() -> str:
    """What was trained, and the tables of the presets."""
    parts = [(HERE / "templates" / "RESULTS.md").read_text(encoding="utf-8")]
    for name in PRESETS:
        folder = HERE / name
        preset, costs = load_preset(name), pd.read_csv(folder / "costs.csv")
        parts.append(
            f"\n## {name}\n\n{', '.join(preset.variants)}: trained from the encoder "
            f"`{preset.encoder.name}` with the seeds {', '.join(map(str, preset.seeds))}, "
            f"{costs['steps'].max()} steps each, on {'; '.join(costs['hardware'].unique())}, "
            f"by the code of {', '.join(costs['commit'].astype(str).unique())}. "
            f"{', '.join(preset.fusion)}: merged from these.\n"
        )
        for title, stem in (("Scores", "results"), ("Claims", "claims"), ("Merges", "merges")):
            if (table := folder / f"{stem}.md").is_file():
                parts.append(f"\n### {title}\n\n{table.read_text(encoding='utf-8')}")
    return "".join(parts)


def readme_table(preset: str) -> str:
    """What a preset's committed rows say, in short, as Markdown: some models, and the verdicts."""
    folder, models = HERE / preset, ["base", "ir_only", "sts_only", "mixed", "codiemb"]
    scores, comparisons = (pd.read_csv(folder / f"{s}.csv") for s in ("trade_off", "comparisons"))
    table = results_table(scores[scores["variant"].isin(models)], comparisons)
    told = verdicts(comparisons).itertuples()
    said = "".join(f"- {row.claim} {row.verdict}: {row.text}.\n" for row in told)
    return f"{to_markdown(table[['model', 'seeds', 'IR mean', 'STS mean']])}\n{said}"


def fill_readme(text: str, preset: str = "english") -> str:
    """README with `readme_table` between its two marks, `<!-- found` and `<!-- end`."""
    head, mark, rest = text.partition("<!-- found")
    first, _, tail = rest.partition("\n")
    return f"{head}{mark}{first}\n{readme_table(preset)}{tail[tail.index('<!-- end') :]}"


def main() -> None:
    """Write all of it."""
    write_text(HERE / "README.md", gallery_page())
    write_text(HERE / "RESULTS.md", results_page())
    readme = HERE.parent / "README.md"
    write_text(readme, fill_readme(readme.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
