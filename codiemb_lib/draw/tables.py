"""Tables for print: tidy rows in, text out, as the README and figures/RESULTS.md show them."""

from collections import Counter

import pandas as pd

from codiemb_lib import evaluate, fuse
from codiemb_lib.core import task_means
from codiemb_lib.draw.frame import scores_by_dataset, seed_interval
from codiemb_lib.draw.style import TASK_NAMES, TASK_ROLES, variant_styles


def results_table(scores: pd.DataFrame, comparisons: pd.DataFrame | None = None) -> pd.DataFrame:
    """The main table: a line a model, its mean over each task's test sets, then each test set.

    Values are nDCG@10 for retrieval and Spearman's rho for similarity, times 100, as text with two
    decimals: the mean over seeds, and for the task means `±` half the 95 % t-interval of the seeds,
    of two seeds half their range. `†` marks what differs from the base encoder by the paired test
    over texts (p after Holm under 0.05), if the `comparisons` of `compare` are given.

    Raises:
        FigureError: A model lacks a test set or a seed's score on one.
    """
    by_set = scores_by_dataset(scores[scores["split"] == "test"])
    means = by_set.T.groupby(level="task").mean().T
    means.columns = [(task, "mean") for task in means]
    marked = set()
    if comparisons is not None:
        base = comparisons["claim"] == evaluate.AGAINST_BASE
        told = comparisons[base & (comparisons["p_holm"] < evaluate.ALPHA)]
        marked = {*zip(told["variant"], told["task"], told["dataset"], strict=True)}
    lines = []
    for variant, style in variant_styles(scores["variant"]).items():
        line = {"model": style.label, "seeds": len(means.loc[variant])}
        for table in (means, by_set):
            for (task, dataset), values in table.loc[variant].items():
                mark = "†" * ((variant, task, dataset) in marked)
                name = f"{TASK_NAMES[task]} mean" if table is means else dataset
                line[name] = f"{values.mean():.2f}{mark}" + _spread(values) * (table is means)
        lines.append(line)
    return pd.DataFrame(lines)


def _spread(values: pd.Series) -> str:
    """` ± ...` of the values of several seeds; "" of one."""
    low, high = seed_interval(values) if len(values) > 2 else (values.min(), values.max())
    return f" ± {(high - low) / 2:.2f}" if len(values) > 1 else ""


def claims_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The claims: a line for each, its verdict, and the comparisons of means that decide it.

    Differences are times 100: the mean over seeds and the 95 % interval, for the chance of texts
    and of seeds; p of a claim is after Holm. (In rows of the older rule each difference has both
    intervals and a p of its own.) Where a model need not be better, only not worse by more than a
    margin, the margin stands beside it.
    """
    means = comparisons[comparisons["dataset"] == "mean"]
    lines = []
    for claim in evaluate.verdicts(comparisons).itertuples():
        evidence = [_evidence(row) for row in means[means["claim"] == claim.claim].itertuples()]
        verdict = f"**{claim.verdict}**" + (f", p = {claim.p:.2g}" if "p" in claim._fields else "")
        lines.append((f"{claim.claim}: {claim.text}", verdict, "; ".join(evidence)))
    columns = ["claim", "verdict", f"evidence (difference × 100 {_shown(comparisons)})"]
    return pd.DataFrame(lines, columns=columns)


def _evidence(row) -> str:
    tasks = TASK_ROLES | {
        evaluate.ISOTROPY[task]: f"minus mean cosine of {name} texts"
        for task, name in TASK_ROLES.items()
    }
    first, second = (variant_styles([name])[name].label for name in (row.variant, row.reference))
    return f"{tasks[row.task]}, {first} less {second}: {_difference(row)}"


def _difference(row) -> str:
    """Times 100, with its interval, or of older rows with both and p, and against its bound."""
    interval = "[{:+.2f}, {:+.2f}]".format
    against = f" against {100 * row.bound:+.1f}" if row.bound else ""
    text = f"{100 * row.difference:+.2f} {interval(100 * row.low, 100 * row.high)}"
    if not hasattr(row, "seeds_low"):
        return text + ", one seed" * (row.seeds < 2) + against
    seeds = interval(100 * row.seeds_low, 100 * row.seeds_high) if row.seeds > 1 else "[one seed]"
    return f"{text}, {seeds}, p = {row.p_holm:.2g}{against}"


def _shown(comparisons: pd.DataFrame) -> str:
    """What stands behind a difference of these rows."""
    return "[texts], [seeds], p" if "seeds_low" in comparisons else "[95 %]"


def merges_table(study: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Ways to merge the same runs: a line a method, the best on dev first.

    Scores are times 100, means over seeds: of the settings that dev picked for each seed (`picked`,
    how often), on dev and on test. Beside them the differences to the uniform soup of the same runs
    on test, as in `claims_table`. `won` marks the best mean of both tasks on dev: of all, and of
    the delta-guided family, whose methods' names begin with `delta`. `study` has the rows of a
    fusion study's picks, with the method as variant, `comparisons` those of each method against its
    soup.
    """
    dev = fuse.candidates(study).groupby("method", sort=False)
    scores = dev[["ir", "sts", "mean"]].mean().sort_values("mean", ascending=False, kind="stable")
    delta = [m for m in scores.index if m.rpartition(".")[2].startswith("delta")]
    winners = {"all": scores.index[:1], "delta-guided": delta[:1]}  # of none, none
    means = comparisons[comparisons["dataset"] == "mean"]
    tested = study[study["split"] == "test"].groupby("variant")
    lines = []
    for method, found in scores.iterrows():
        picked = Counter(dev.get_group(method)["settings"])
        on_test = task_means(tested.get_group(method))
        line = {
            "method": method.replace("_", " ").replace(".", ": "),
            "won": ", ".join(of for of, first in winners.items() if method in first),
            "picked": "; ".join(f"{name} ({count})" for name, count in picked.items()),
            **{f"dev {TASK_ROLES.get(key, key)}": f"{100 * found[key]:.2f}" for key in found.index},
            **{f"test {TASK_NAMES[task]}": f"{100 * on_test[task]:.2f}" for task in on_test},
        }
        own = {row.task: row for row in means[means["variant"] == method].itertuples()}
        for task, name in TASK_ROLES.items():
            heading = f"test {name} less soup {_shown(comparisons)}"
            line[heading] = _difference(own[task]) if task in own else ""
        lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table in Markdown, with a final line break; no cell becomes HTML."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    escaped = ([cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
