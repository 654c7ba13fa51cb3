"""What a fusion study found on dev: every candidate's scores, and which fixed settings do best."""

import pandas as pd

from codiemb_lib.core import t_interval, task_means


def candidates(study: pd.DataFrame) -> pd.DataFrame:
    """A row a candidate and seed: its mean dev score on each task, and the mean of both.

    `study` has rows of `try_on_dev` with preset, seed and split; the table adds ir, sts and mean.
    """
    keys = ["preset", "seed", "method", "candidate", "settings", "looks", "chosen"]
    dev = study[study["split"] == "dev"]
    rows = [
        dict(zip(keys, key, strict=True)) | task_means(rows)
        for key, rows in dev.groupby(keys, sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*keys, "ir", "sts"])
    return table.assign(mean=table[["ir", "sts"]].mean(axis=1))


def fixed_settings(tried: pd.DataFrame) -> pd.DataFrame:
    """The settings that a default is chosen by: the same for all seeds, the best on dev first.

    Left out are the greedy soup, which looks at dev itself, and the study's sets. `tried` is what
    `candidates` gives. Columns: method, settings, ir, sts, mean (means over seeds), lead (of the
    mean, over the uniform soup as it is), low, high (95 % t-interval of the lead over seeds,
    unbounded for one), seeds.
    """
    once = tried[(tried["looks"] == 1) & ~tried["method"].str.contains(".", regex=False)]
    means = once.pivot(index=["method", "candidate"], columns="seed", values="mean")
    plain = once.loc[(once["method"] == "uniform") & (once["settings"] == "as it is"), "candidate"]
    if means.isna().any(axis=None) or plain.empty:
        raise ValueError(
            f"fixed_settings: expected the uniform soup as it is, and every candidate at each of "
            f"the seeds {[*means.columns]}, found {means.notna().sum(axis=1).to_dict()} of these. "
            "Run notebook 04 for the missing ones."
        )
    leads = means - means.loc["uniform", plain.iloc[0]]
    table = once.groupby(["method", "candidate"], sort=False).agg(
        {"settings": "first", "ir": "mean", "sts": "mean", "mean": "mean"}
    )
    table["lead"] = leads.mean(axis=1)
    table[["low", "high"]] = [t_interval(leads.loc[key]) for key in table.index]
    table["seeds"] = means.shape[1]
    table = table.sort_values("mean", ascending=False, kind="stable")
    return table.reset_index("candidate", drop=True).reset_index()
