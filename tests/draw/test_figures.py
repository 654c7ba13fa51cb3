from __future__ import annotations

import itertools
import re

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.text import Text

from codiemb_lib.draw import figures, style
from codiemb_lib.draw import frame as plotting
from codiemb_lib.evaluate.claims import AGAINST_BASE, CLAIMS
from codiemb_lib.evaluate.compare import ISOTROPY, Comparison
from tests.made_up import MODELS

LABELS = [look.label for look in style.variant_styles(MODELS).values()]
DATASETS = [
    ("ir", "api-docs"),
    ("ir", "lee-news"),
    ("sts", "simlex-999"),
    ("sts", "wordsim-353"),
    ("sts", "lee-similarity"),
]
METRICS = {"ir": ("ndcg@10", "recall@100"), "sts": ("spearman", "pearson")}
TABLES = ("scores", "dev", "comparisons", "fusion", "study", "path", "path_geometry")
TABLES += ("geometry", "spectrum", "trajectory", "layers", "cosines", "rated_pairs", "umap")
TABLES += ("associations", "cost_scores")
DRAWN = ["base", "ir_only", "sts_only", "codiemb"]  # whose pairs, layers and maps are shown
METHODS = ["uniform", "greedy", "delta_tensor", "ties"]


def runs(variants, seeds):
    for variant in variants:
        for seed in range(1 if variant == "base" else seeds):
            yield "mini", variant, seed


def table(name: str, variants=None, seeds=2) -> pd.DataFrame:
    """Rows of the shape that the pipeline writes, with made-up values."""
    rng = np.random.default_rng(7)
    few = name in ("umap", "layers", "cosines", "rated_pairs")
    variants = variants or (DRAWN if few else MODELS)
    rows = []
    if name == "scores":
        columns = "preset variant seed task dataset split metric value n selected_on"
        for run, (task, dataset) in itertools.product(runs(variants, seeds), DATASETS):
            for metric, split in itertools.product(METRICS[task], ("dev", "test")):
                rows.append((*run, task, dataset, split, metric, rng.uniform(0.5, 0.7), 99, "dev"))
    elif name == "dev":
        columns = "preset variant seed step task dataset metric value"
        for run, (task, dataset) in itertools.product(runs(variants, seeds), DATASETS):
            for step in (0, 50, 100):
                rows.append((*run, step, task, dataset, METRICS[task][0], rng.uniform(0.5, 0.7)))
    elif name == "geometry":
        columns = "preset variant seed texts measure value n"
        for run, texts in itertools.product(
            runs(variants, seeds), ("sts", "ir_passages", "ir_queries", "all")
        ):
            rows.append((*run, texts, "anisotropy", rng.uniform(0.02, 0.3), 99))
            rows.append((*run, texts, "uniformity", rng.uniform(-3.8, -2), 99))
            rows.append((*run, texts, "effective_rank", rng.uniform(90, 200), 99))
            if texts in ("all", "sts"):
                rows.append((*run, texts, "alignment", rng.uniform(0.2, 0.5), 99))
    elif name == "spectrum":
        columns = "preset variant seed texts index singular_value"
        for run, texts in itertools.product(runs(variants, seeds), ("all", "sts")):
            values = np.sort(rng.exponential(size=12))[::-1]
            for index, value in enumerate(values / values.sum(), start=1):
                rows.append((*run, texts, index, value))
    elif name == "fusion":
        columns = "preset variant seed ingredient tensor layer module delta_norm weight"
        tensors = [(-1, "word", "w")]
        tensors += list(itertools.product(range(6), ("query", "ffn"), ("w", "b")))
        ingredients = ("codiemb_ir25", "codiemb", "codiemb_ir75")
        for seed, (layer, module, part) in itertools.product(range(seeds), tensors):
            norms = rng.uniform(0.1, 1, size=3)
            for method, weights in (("soup", np.full(3, 1 / 3)), ("delta", norms / norms.sum())):
                for ingredient, norm, weight in zip(ingredients, norms, weights, strict=True):
                    tensor = f"{layer}.{module}.{part}"
                    run = ("mini", method, seed)
                    rows.append((*run, ingredient, tensor, layer, module, norm, weight))
    elif name == "study":
        columns = "preset variant seed split task dataset metric value"
        for run, (task, dataset) in itertools.product(
            itertools.product(["mini"], METHODS, range(seeds)), DATASETS
        ):
            for metric, split in itertools.product(METRICS[task], ("dev", "test")):
                rows.append((*run, split, task, dataset, metric, rng.uniform(0.5, 0.7)))
    elif name == "path":
        columns = "preset variant seed t task dataset metric value"
        for seed, t, (task, dataset) in itertools.product(range(seeds), (0, 0.5, 1), DATASETS):
            run = ("mini", "ir_only to sts_only", seed, t)
            rows.append((*run, task, dataset, METRICS[task][0], rng.uniform(0.5, 0.7)))
    elif name == "path_geometry":
        columns = "preset variant seed t texts measure value"
        for seed, t, texts in itertools.product(range(seeds), (0, 0.5, 1), ("ir", "sts", "all")):
            run = ("mini", "ir_only to sts_only", seed, t, texts)
            rows.append((*run, "anisotropy", rng.uniform(0.02, 0.3)))
            rows.append((*run, "effective_rank", rng.uniform(90, 200)))
    elif name == "comparisons":
        columns = "preset claim variant reference task dataset difference low high bound p_holm "
        columns += "seeds_low seeds_high seeds"
        pairs = [(name, c) for name, claim in CLAIMS.items() for c in claim.comparisons]
        for variant, task in itertools.product(variants, ("ir", "sts")):
            pairs.append((AGAINST_BASE, Comparison(variant, "base", task)))
        for claim, c in pairs:
            for dataset in [dataset for task, dataset in DATASETS if task == c.task] + ["mean"]:
                middle, half = rng.uniform(-0.03, 0.03), rng.uniform(0.005, 0.02)
                interval = (middle - half, middle + half)
                spread = (middle - 4 * half, middle + 4 * half) if seeds > 1 else (-np.inf, np.inf)
                test = (*interval, c.bound, 0.5, *spread, seeds)
                rows.append(("mini", claim, c.model, c.reference, c.task, dataset, middle, *test))
    elif name == "trajectory":
        columns = "preset variant seed texts measure value n step"
        measures = ("anisotropy", "uniformity", "alignment", "effective_rank", "hubness")
        for run, texts in itertools.product(runs(variants, seeds), ("ir", "sts", "all")):
            for measure, step in itertools.product(measures, (0, 50, 100)):
                rows.append((*run, texts, measure, rng.uniform(0.2, 0.5), 77, step))
    elif name == "layers":
        columns = "preset variant seed texts level layer measure value low high n"
        kinds = itertools.product(("ir_queries", "ir_passages", "sts"), range(7))
        for run, (texts, layer) in itertools.product(runs(variants, 1), kinds):
            key = (*run, texts)
            value = rng.uniform(0.2, 0.5)
            for level in ("token", "sentence"):
                rows.append((*key, level, layer, "cosine", value, value - 0.1, value + 0.1, 60))
                rows.append((*key, level, layer, "effective_rank", 40, np.nan, np.nan, 60))
            rows.append((*key, "token", layer, "condition_number", 30 * value, *[np.nan] * 2, 60))
    elif name == "cosines":
        columns = "preset variant seed task pairs cosine share n"
        kinds = itertools.product(("ir", "sts"), ("positive", "negative", "random"))
        for run, (task, pairs) in itertools.product(runs(variants, seeds), kinds):
            shares = rng.dirichlet(np.ones(40))
            for left, share in zip(np.linspace(-1, 0.95, 40).round(6), shares, strict=True):
                rows.append((*run, task, pairs, left, share, 1234))
    elif name == "rated_pairs":
        columns = "preset variant seed dataset pair gold cosine"
        for run, (_, dataset) in itertools.product(runs(variants, seeds), DATASETS[2:]):
            rows += [(*run, dataset, i, *rng.uniform(0, 1, size=2)) for i in range(9)]
    elif name == "associations":
        columns = "preset over task texts measure correlation low high n clusters"
        sides = ("models", "checkpoints"), ("ir", "sts"), ("ir", "sts", "all")
        for over, task, texts, measure in itertools.product(*sides, ("anisotropy", "hubness")):
            low, rho, high = np.sort(rng.uniform(-1, 1, size=3))
            rows.append(("mini", over, task, texts, measure, rho, low, high, 19, 10))
    elif name == "cost_scores":
        columns = "preset variant seed task value tokens seconds"
        for run, task in itertools.product(runs(variants, seeds), ("ir", "sts")):
            cost = [0, 0] if run[1] == "base" else rng.uniform(1e4, 1e5, size=2)
            rows.append((*run, task, rng.uniform(0.5, 0.7), *cost))
    else:
        columns = (
            "preset variant seed map task dataset text x y trust trust_low trust_high agreement"
        )
        kinds = itertools.product(("umap", "pca"), DATASETS)
        for run, (name, (task, dataset)) in itertools.product(runs(variants, seeds), kinds):
            for i, point in enumerate(rng.normal(size=(8, 2))):
                rows.append((*run, name, task, dataset, i, *point, 0.9, 0.88, 0.91, 0.5))
    return pd.DataFrame(rows, columns=columns.split())


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def plot(stem: str, rows: pd.DataFrame | None = None, **keywords):
    figure = figures.FIGURES[stem]
    return figure.plot(table(figure.table) if rows is None else rows, **keywords)


def mean_markers(ax):
    """Centre, colour and label of every mean that is drawn with a name."""
    handles, labels = ax.get_legend_handles_labels()
    lines = [h.lines[0] if hasattr(h, "lines") else h for h in handles]
    return {
        k: (*line.get_xydata()[-1], line.get_color()) for k, line in zip(labels, lines, strict=True)
    }


def xy_of_lines(ax, *, alpha=None):
    return [line.get_xydata() for line in ax.get_lines() if line.get_alpha() == alpha]


# Every figure


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_figure_is_registered_under_its_name_and_a_known_table(stem):
    figure = figures.FIGURES[stem]
    assert figure.plot.__name__ == f"plot_{stem}"
    assert figure.table in TABLES
    assert figure.plot.__doc__


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_figure_has_print_width_small_text_and_every_text_inside(stem):
    ax = np.ravel(plot(stem))[0]
    fig = ax.figure
    assert fig.get_figwidth() in (style.WIDTH_1, style.WIDTH_2)
    fig.canvas.draw()
    frame = fig.bbox.padded(1)
    for text in fig.findobj(lambda artist: isinstance(artist, Text)):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() == 8
            box = Text.get_window_extent(text)
            inside = frame.contains(*box.min) and frame.contains(*box.max)
            # a locator may hold ticks outside of the limits, which are not drawn
            assert inside or text in tick_labels(fig), text.get_text()


def tick_labels(fig):
    return [t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels()]


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_figure_leaves_the_style_and_the_rows_of_the_caller_alone(stem):
    rows = table(figures.FIGURES[stem].table)
    kept, parameters = rows.copy(), dict(mpl.rcParams)
    plot(stem, rows)
    pd.testing.assert_frame_equal(rows, kept)
    assert dict(mpl.rcParams) == parameters


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_figure_draws_on_given_axes_and_refuses_a_wrong_number(stem):
    axes = np.ravel(plot(stem))
    _, mine = plt.subplots(len(axes), layout="constrained", figsize=(7, 12), squeeze=False)
    drawn = plot(stem, ax=mine[0, 0] if stem == "trade_off" else mine)
    assert list(np.ravel(drawn)) == list(mine.flat)
    if stem != "trade_off":
        with pytest.raises(ValueError, match=f"Expected {len(axes)} Axes"):
            plot(stem, ax=mine[:0])


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_missing_column_is_named(stem):
    column = figures.FIGURES[stem].key[1]
    rows = table(figures.FIGURES[stem].table).drop(columns=column)
    with pytest.raises(ValueError, match=rf"{stem}: expected the columns .*\['{column}'\].*Pass"):
        plot(stem, rows)
    with pytest.raises(ValueError, match="expected the columns"):
        figures.caption(stem, rows)


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_no_rows_are_refused(stem):
    with pytest.raises(ValueError, match="at least one row, found none"):
        plot(stem, table(figures.FIGURES[stem].table).head(0))


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_a_missing_value_is_refused_rather_than_skipped(stem):
    rows = table(figures.FIGURES[stem].table)
    column = figures.FIGURES[stem].values[-1]
    rows.loc[3, column] = np.nan
    with pytest.raises(ValueError, match="a value in every cell"):
        plot(stem, rows)


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_rows_of_two_presets_are_refused(stem):
    rows = table(figures.FIGURES[stem].table)
    with pytest.raises(ValueError, match=r"one preset, found \['mini', 'smoke'\]"):
        plot(stem, pd.concat([rows, rows.assign(preset="smoke")]))


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_rows_that_stand_twice_are_refused(stem):
    rows = table(figures.FIGURES[stem].table)
    with pytest.raises(ValueError, match="each row once"):
        plot(stem, pd.concat([rows, rows.head(1)]))


@pytest.mark.parametrize("stem", sorted(figures.FIGURES))
def test_caption_names_the_preset_and_is_complete(stem):
    text = figures.caption(stem, table(figures.FIGURES[stem].table))
    assert text.startswith("**")
    assert "preset mini" in text
    assert not set("{}") & set(text)


def test_caption_tells_the_number_of_seeds_and_whether_there_are_intervals():
    two = figures.caption("trade_off", table("scores"))
    assert "n = 2 seeds a model (base encoder: 1)" in two
    assert "No interval" in two
    three = figures.caption("trade_off", table("scores", seeds=3))
    assert "n = 3 seeds" in three
    assert "95 % t-intervals" in three
    assert "n = 1 seed a model." in figures.caption("trade_off", table("scores", seeds=1))


def test_caption_of_an_unknown_figure_is_refused():
    with pytest.raises(ValueError, match=r"out of .*'trade_off'.*found 'tradeoff'"):
        figures.caption("tradeoff", table("scores"))


# One by one


def test_trade_off_puts_means_over_test_sets_and_seeds_in_the_plane():
    rows = table("scores")
    ax = plot("trade_off", rows)
    drawn = mean_markers(ax)
    assert list(drawn) == LABELS
    for variant, look in style.variant_styles(MODELS).items():
        test = rows[(rows["variant"] == variant) & (rows["split"] == "test")]
        x = 100 * test.loc[test["metric"] == "ndcg@10", "value"].mean()
        y = 100 * test.loc[test["metric"] == "spearman", "value"].mean()
        assert drawn[look.label][:2] == pytest.approx((x, y))
        assert same_color(drawn[look.label][2], look.colour)
    assert "nDCG@10 × 100 (↑)" in ax.get_xlabel()
    assert "Spearman × 100 (↑)" in ax.get_ylabel()


def test_trade_off_shows_each_seed_and_names_each_model_once():
    ax = plot("trade_off")
    seeds = xy_of_lines(ax, alpha=plotting.FAINT)
    assert [len(points) for points in seeds] == [2] * 9  # the base encoder has one
    assert sorted(text.get_text() for text in ax.texts) == sorted(LABELS)


def test_trade_off_marks_the_specialists():
    rows = table("scores")
    ax = plot("trade_off", rows)
    drawn = mean_markers(ax)
    rules = {line.get_color(): line for line in ax.get_lines() if len(set(line.get_xdata())) == 1}
    vertical = rules[style.ROLES["IR"].colour]
    assert vertical.get_xdata()[0] == pytest.approx(drawn["IR only"][0])
    heights = [
        line.get_ydata()[0]
        for line in ax.get_lines()
        if line.get_color() == style.ROLES["STS"].colour and list(line.get_xdata()) == [0, 1]
    ]
    assert heights == pytest.approx([drawn["STS only"][1]])
    without = plot("trade_off", rows[~rows["variant"].isin(["ir_only", "sts_only"])])
    assert not without.collections  # no corner to shade


@pytest.mark.parametrize(
    ("specialists", "said"),
    [
        (["ir_only", "sts_only"], ["solid line", "dashed line", "corner"]),
        (["ir_only"], ["left of it"]),
        (["sts_only"], ["below it"]),
        ([], []),
    ],
)
def test_caption_of_the_trade_off_explains_the_lines_that_are_drawn(specialists, said):
    text = figures.caption("trade_off", table("scores", variants=["base", "codiemb", *specialists]))
    words = ["solid line", "dashed line", "corner", "left of it", "below it"]
    assert [word for word in words if word in text] == said
    assert ("transfer" in text) == bool(specialists)


@pytest.mark.parametrize(("seeds", "bars"), [(2, 0), (3, 9)])
def test_trade_off_draws_intervals_from_three_seeds_on(seeds, bars):
    ax = plot("trade_off", table("scores", seeds=seeds))
    assert sum(container.has_xerr for container in ax.containers) == bars


def test_interval_is_that_of_student():
    ax = plot("trade_off", table("scores", variants=["codiemb"], seeds=3))
    (seeds,) = xy_of_lines(ax, alpha=plotting.FAINT)
    (container,) = ax.containers
    (across,), _ = (bar.get_segments() for bar in container.lines[2])
    half = 4.302652729911275 * seeds[:, 0].std(ddof=1) / np.sqrt(3)  # t quantile, 2 degrees
    assert across[:, 0] == pytest.approx([seeds[:, 0].mean() - half, seeds[:, 0].mean() + half])


def test_means_over_different_test_sets_are_refused():
    rows = table("scores")
    rows = rows[~((rows["variant"] == "soup") & (rows["dataset"] == "lee-news"))]
    with pytest.raises(ValueError, match=r"variant soup, seed 0 without \['lee-news'\]"):
        plot("trade_off", rows)


def test_trade_off_without_headline_metrics_or_a_second_task_is_refused():
    rows = table("scores")
    with pytest.raises(ValueError, match="expected the metrics"):
        plot("trade_off", rows[rows["metric"] == "pearson"])
    without = rows[(rows["task"] == "ir") | (rows["variant"] != "soup")]
    with pytest.raises(ValueError, match=r"Expected the STS score .* 'soup', seed 0"):
        plot("trade_off", without)


def test_scores_by_dataset_has_a_panel_per_test_set_and_a_row_per_model():
    rows = table("scores")
    axes = plot("scores_by_dataset", rows)
    assert [ax.get_title(loc="left") for ax in axes] == [name for _, name in DATASETS]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == LABELS
    assert not any(label.get_text() for label in axes[1].get_yticklabels())
    assert axes[0].get_xlabel() == "nDCG@10\n× 100 (↑)"
    assert axes[4].get_xlabel() == "Spearman\n× 100 (↑)"
    drawn = mean_markers(axes[1])
    value = rows.query("variant == 'soup' and dataset == 'lee-news' and metric == 'ndcg@10'")
    value = 100 * value.loc[value["split"] == "test", "value"].mean()
    assert drawn["uniform soup"][:2] == pytest.approx((value, LABELS.index("uniform soup")))
    low, high = axes[0].get_ylim()
    assert low > high  # the first model is on top


def test_scores_by_dataset_wraps_many_test_sets():
    rows = table("scores", variants=["base", "codiemb"])
    more = rows.assign(dataset=rows["dataset"] + "-2")
    axes = plot("scores_by_dataset", pd.concat([rows, more]))
    assert len(axes) == 10
    assert len({ax.get_subplotspec().rowspan.start for ax in axes}) == 2


def y_labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def bars(ax, y):
    """Both ends of the line at a height."""
    lines = [line for line in ax.get_lines() if line.get_linestyle() != "None"]
    (line,) = [line for line in lines if list(line.get_ydata()) == [y, y]]
    return tuple(line.get_xdata())


def test_comparisons_have_a_line_each_with_both_intervals_and_the_margin():
    rows = table("comparisons")
    axes = plot("comparisons", rows)
    tasks = {"ir": "ir", "sts": "sts", "ir_isotropy": "ir", "sts_isotropy": "sts"}
    for ax, (task, kind) in zip(axes, tasks.items(), strict=True):
        mine = [(n, c) for n, claim in CLAIMS.items() for c in claim.comparisons if c.task == task]
        assert [label[:2] for label in y_labels(ax)] == [name for name, _ in mine]
        for y, (name, c) in enumerate(mine):
            same = (rows["claim"] == name) & (rows["reference"] == c.reference)
            row = rows[same & (rows["task"] == task)].iloc[-1]  # the mean
            assert bars(ax, y) == pytest.approx((100 * row["low"], 100 * row["high"]))
            assert bars(ax, y + 0.25) == pytest.approx(
                (100 * row["seeds_low"], 100 * row["seeds_high"])
            )
            points = [line for line in ax.get_lines() if list(line.get_ydata()) == [y]]
            at = {line.get_marker(): line.get_xdata()[0] for line in points}
            assert at["|"] == pytest.approx(100 * c.bound)
            assert at[style.ROLES[style.TASK_ROLES[kind]].marker] == pytest.approx(
                100 * row["difference"]
            )
    assert y_labels(axes[0])[0] == "C1: IR only vs mixed batches"
    assert axes[0].get_xlabel() == "difference in nDCG@10\n× 100 (↑)"
    assert axes[2].get_xlabel() == "difference in isotropy\nof IR texts, × 100 (↑)"
    assert "minus the mean cosine" in figures.caption("comparisons", rows)


def test_comparisons_of_scores_alone_have_no_panels_of_the_space():
    rows = table("comparisons")
    rows = rows[~rows["task"].isin(ISOTROPY.values())]
    assert len(plot("comparisons", rows)) == 2
    assert "mean cosine" not in figures.caption("comparisons", rows).partition("C1:")[0]


def test_comparisons_show_the_single_test_sets_faintly():
    rows = table("comparisons")
    ax = plot("comparisons", rows)[1]
    sets = rows.query("claim == 'C3' and task == 'sts' and dataset != 'mean'")
    faint = xy_of_lines(ax, alpha=plotting.FAINT)[2]
    np.testing.assert_allclose(faint[:, 0], 100 * sets["difference"])


def test_comparisons_that_tell_are_solid():
    rows = table("comparisons")
    told = (rows["claim"] == "C6") & (rows["task"] == "ir")
    decided = {"low": 0.01, "high": 0.02, "seeds_low": 0.005, "seeds_high": 0.03, "p_holm": 0.01}
    rows.loc[told, [*decided]] = [*decided.values()]
    ax = plot("comparisons", rows)[0]
    faces = {
        label: line.get_markerfacecolor()
        for label, line in zip(
            y_labels(ax),
            [line for line in ax.get_lines() if line.get_marker() == "o" and not line.get_alpha()],
            strict=True,
        )
    }
    solid = [label for label, face in faces.items() if not same_color(face, "white")]
    assert solid == ["C6: delta-guided vs uniform soup"]


def test_comparisons_of_one_seed_run_through_the_frame():
    ax = plot("comparisons", table("comparisons", seeds=1))[0]
    low, high = bars(ax, 0.25)
    assert low < ax.get_xlim()[0] < ax.get_xlim()[1] < high


def test_comparisons_without_claims_are_those_against_the_base():
    rows = table("comparisons")
    base = rows[rows["claim"] == AGAINST_BASE]
    expected = [f"{label} vs base encoder" for label in LABELS]
    assert sorted(y_labels(plot("comparisons", base)[0])) == sorted(expected)
    assert "C3: batches of a single task" in figures.caption("comparisons", rows)
    text = figures.caption("comparisons", base)
    assert "Differences from the start, preset" in text
    assert not re.search("C3|claim|tick", text)
    (only,) = plot("comparisons", rows[rows["task"] == "sts"])
    assert y_labels(only)[0] == "C1: STS only vs mixed batches"


def test_training_curves_draw_the_mean_over_seeds_by_step():
    rows = table("dev", variants=MODELS[1:8])
    axes = plot("training_curves", rows)
    assert axes[0].get_ylabel().startswith("IR dev sets")
    assert axes[1].get_ylabel().startswith("STS dev sets")
    handles, labels = axes[1].get_legend_handles_labels()
    line = handles[labels.index("CoDiEmb")]
    mine = rows[(rows["variant"] == "codiemb") & (rows["task"] == "sts")]
    expected = 100 * mine.groupby("step")["value"].mean()
    np.testing.assert_allclose(line.get_xydata(), expected.reset_index().to_numpy())
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == LABELS[1:8]


def test_training_curves_of_one_task_leave_the_other_panel_empty():
    rows = table("dev", variants=["codiemb"])
    axes = plot("training_curves", rows[rows["task"] == "sts"])
    assert not axes[0].get_lines()
    assert axes[1].get_lines()


def test_up_to_four_series_are_named_where_they_end():
    axes = plot("training_curves", table("dev", variants=MODELS[1:4]))
    assert not axes[0].figure.legends
    assert [text.get_text() for text in axes[0].texts] == LABELS[1:4]


def test_alignment_uniformity_has_a_panel_for_texts_with_both_measures():
    rows = table("geometry")
    axes = plot("alignment_uniformity", rows)
    assert [ax.get_title(loc="left") for ax in axes] == ["all texts", "STS texts"]
    assert {ax.get_xlabel() for ax in axes} == {"alignment (↓)"}
    assert {ax.get_ylabel() for ax in axes} == {"uniformity (↓)"}
    means = rows[(rows["variant"] == "delta") & (rows["texts"] == "sts")]
    means = means.groupby("measure")["value"].mean()
    drawn = mean_markers(axes[1])["delta-guided"][:2]
    assert drawn == pytest.approx((means["alignment"], means["uniformity"]))


def test_alignment_uniformity_needs_both_measures_on_the_same_texts():
    rows = table("geometry")
    with pytest.raises(ValueError, match="Compute both on the same texts"):
        plot("alignment_uniformity", rows[rows["texts"] == "ir_queries"])
    lost = (rows["variant"] == "delta") & (rows["seed"] == 1) & (rows["measure"] == "alignment")
    with pytest.raises(ValueError, match=r"Expected the alignment .* 'delta', seed 1"):
        plot("alignment_uniformity", rows[~lost])


def test_anisotropy_has_a_panel_per_kind_of_texts_on_one_scale():
    axes = plot("anisotropy")
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["all texts", "IR queries", "IR passages", "STS texts"]
    assert len({ax.get_xlim() for ax in axes}) == 1
    assert axes[0].get_xlabel() == "mean cosine (↓)"
    rows = table("geometry")
    with pytest.raises(ValueError, match=r"measure 'anisotropy', found \['alignment'\]"):
        plot("anisotropy", rows[rows["measure"] == "alignment"])


def test_spectra_are_drawn_against_the_base_encoder():
    rows = table("spectrum")
    axes = plot("spectra", rows)
    assert [ax.get_yscale() for ax in axes] == ["log", "log"]
    handles, labels = axes[0].get_legend_handles_labels()
    assert labels == LABELS[1:]
    of_all = rows[rows["texts"] == "all"]
    base = of_all[of_all["variant"] == "base"].set_index("index")["singular_value"]
    mine = of_all[of_all["variant"] == "soup"].groupby("index")["singular_value"].mean()
    line = handles[labels.index("uniform soup")]
    bins = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 7), (8, 9), (10, 12)]
    means = [(mine / base).loc[low:high].mean() for low, high in bins]
    np.testing.assert_allclose(line.get_ydata(), means)
    np.testing.assert_allclose(line.get_xdata(), [np.sqrt(low * high) for low, high in bins])
    with pytest.raises(ValueError, match="expected rows of 'base' to compare with"):
        plot("spectra", rows[rows["variant"] != "base"])


def test_a_long_spectrum_is_drawn_as_means_over_neighbours():
    index = np.arange(1, 301)
    base = pd.DataFrame({"preset": "mini", "variant": "base", "seed": 0, "texts": "sts"}, index)
    base = base.assign(index=index, singular_value=1 / 300)
    wave = base.assign(variant="soup", singular_value=(1 + 0.5 * (-1.0) ** index) / 300)
    (ax,) = plot("spectra", pd.concat([base, wave]))
    (line,) = (line for line in ax.get_lines() if line.get_label() == "uniform soup")
    assert len(line.get_xdata()) < 15  # so that markers stay apart
    assert line.get_xdata()[0] == 1
    assert 200 < line.get_xdata()[-1] < 300
    assert line.get_ydata()[0] == pytest.approx(0.5)
    np.testing.assert_allclose(line.get_ydata()[-3:], 1, atol=0.02)


@pytest.mark.parametrize("spread", [0, 0.001, 0.02, 0.2, 0.28, 0.35, 0.48, 0.6, 3])
def test_spectra_near_the_base_encoders_keep_ticks_in_plain_numbers(spread):
    index = np.arange(1, 13)
    base = pd.DataFrame({"preset": "mini", "variant": "base", "seed": 0, "texts": "sts"}, index)
    base = base.assign(index=index, singular_value=1 / 12)
    near = base.assign(variant="soup", singular_value=(1 + spread) ** np.cos(index) / 12)
    (ax,) = plot("spectra", pd.concat([base, near]))
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    ticks = [
        float(t.get_text()) for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high
    ]
    assert len(ticks) >= (3 if spread < 0.3 else 2)
    assert 1 in ticks
    (line,) = (line for line in ax.get_lines() if line.get_label() == "uniform soup")
    assert low < min(line.get_ydata()) <= max(line.get_ydata()) < high


def test_cosines_have_a_row_per_task_and_three_curves_that_are_named_once():
    rows = table("cosines")
    axes = plot("cosines", rows)
    assert len(axes) == 8
    titles = [ax.get_title(loc="left") for ax in axes[:4]]
    assert titles == [LABELS[MODELS.index(variant)] for variant in DRAWN]
    curve = next(patch for patch in axes[7].patches if patch.get_label() == "STS positives")
    mine = rows.query(
        "variant == 'codiemb' and task == 'sts' and pairs == 'positive' and seed == 0"
    )
    np.testing.assert_allclose(curve.get_data().values, mine["share"])
    np.testing.assert_allclose(curve.get_data().edges, np.linspace(-1, 1, 41))
    (legend,) = axes[0].figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["random pairs", "negatives", "IR positives", "STS positives"]
    assert "IR positive 1,234" in figures.caption("cosines", rows)


def test_rated_pairs_are_the_points_of_a_data_set_and_a_model():
    rows = table("rated_pairs")
    axes = plot("rated_pairs", rows)
    assert len(axes) == 12
    mine = rows.query("variant == 'ir_only' and dataset == 'wordsim-353' and seed == 0")
    points = axes[5].collections[0].get_offsets()
    np.testing.assert_allclose(points, mine[["gold", "cosine"]])
    assert axes[4].get_ylabel() == "wordsim-353\ncosine"


def test_geometry_by_step_has_a_row_per_measure_and_a_column_per_task():
    rows = table("trajectory", variants=MODELS[1:8])
    axes = plot("geometry_by_step", rows)
    assert [ax.get_ylabel() for ax in axes[::2]] == [
        "anisotropy (↓)",
        "uniformity (↓)",
        "alignment (↓)",
        "effective rank (↑)",
    ]
    handles, labels = axes[3].get_legend_handles_labels()
    mine = rows.query("variant == 'codiemb' and texts == 'sts' and measure == 'uniformity'")
    expected = mine.groupby("step")["value"].mean().reset_index()
    np.testing.assert_allclose(handles[labels.index("CoDiEmb")].get_xydata(), expected)
    assert "of 77 texts" in figures.caption("geometry_by_step", rows)
    with pytest.raises(ValueError, match="Pass the rows unfiltered"):
        plot("geometry_by_step", rows[rows["texts"] == "all"])


def test_geometry_by_layer_bands_are_intervals_of_means_alone():
    rows = table("layers")
    axes = plot("geometry_by_layer", rows).reshape(4, 3)
    bands = [any(c.get_paths() for c in ax.collections) for ax in axes[:, 0]]
    assert bands == [True, False, True, False]
    handles, labels = axes[1, 2].get_legend_handles_labels()
    mine = rows.query("variant == 'base' and texts == 'sts' and measure == 'condition_number'")
    line = handles[labels.index("base encoder")]
    np.testing.assert_allclose(line.get_xydata(), mine[["layer", "value"]])


def test_geometry_scores_fill_what_leaves_out_zero():
    rows = table("associations")
    rows["low"], rows["correlation"], rows["high"] = -0.2, 0.3, 0.8
    rows.loc[rows["measure"] == "hubness", "low"] = 0.1
    axes = plot("geometry_scores", rows)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "IR score,\nmodels, test",
        "STS score,\nmodels, test",
        "IR score,\ncheckpoints, dev",
        "STS score,\ncheckpoints, dev",
    ]
    points = [line for line in axes[1].get_lines() if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in points] == [0, 1]
    assert same_color(points[0].get_markerfacecolor(), "white")
    assert same_color(points[1].get_markerfacecolor(), style.ROLES["STS"].colour)
    text = figures.caption("geometry_scores", rows)
    assert "19 models of 10 variants (IR)" in text
    assert "8 correlations" in text
    with pytest.raises(ValueError, match="Pass the rows unfiltered"):
        plot("geometry_scores", rows[rows["texts"] == "all"])


def test_cost_scores_put_tokens_across_and_scores_upwards():
    rows = table("cost_scores")
    axes = plot("cost_scores", rows)
    mine = rows.query("variant == 'soup' and task == 'sts'")
    expected = (mine["tokens"].mean() / 1000, 100 * mine["value"].mean())
    assert mean_markers(axes[1])["uniform soup"][:2] == pytest.approx(expected)
    assert mean_markers(axes[0])["base encoder"][0] == 0


def test_fusion_weights_map_norms_and_weights_by_layer_and_module():
    rows = table("fusion")
    axes = plot("fusion_weights", rows)
    assert len(axes) == 6  # three ingredients; norms, and weights of the method that has any
    titles = [ax.get_title(loc="left") for ax in axes[:3]]
    assert titles == ["CoDiEmb", "CoDiEmb, 25 % IR", "CoDiEmb, 75 % IR"]
    norms, weights = (np.ma.filled(axes[i].images[0].get_array(), np.nan) for i in (0, 3))
    assert norms.shape == (3, 7)  # word, query, ffn; embeddings and six layers
    mine = rows.query("variant == 'delta' and ingredient == 'codiemb' and layer == 2")
    mine = mine[mine["module"] == "query"]
    each_seed = mine.groupby("seed")["delta_norm"].agg(lambda norm: np.sqrt((norm**2).sum()))
    assert norms[1, 3] == pytest.approx(each_seed.mean())
    assert weights[1, 3] == pytest.approx(mine["weight"].mean())
    assert np.isnan(norms[0, 1:]).all()  # no word embeddings in a layer
    assert np.isnan(norms[1:, 0]).all()


def test_fusion_colours_are_centred_on_the_uniform_weight():
    image = plot("fusion_weights")[3].images[0]
    assert image.get_cmap().name == "RdBu_r"
    assert image.norm.vcenter == pytest.approx(1 / 3)
    assert image.norm(1 / 3) == pytest.approx(0.5)
    assert image.norm.vmax - image.norm.vcenter == pytest.approx(
        image.norm.vcenter - image.norm.vmin
    )


def test_fusion_of_a_soup_alone_is_drawn_white():
    rows = table("fusion")
    axes = plot("fusion_weights", rows[rows["variant"] == "soup"])
    image = axes[3].images[0]
    np.testing.assert_allclose(image.norm(image.get_array().compressed()), 0.5)


def test_fusion_variants_of_different_ingredients_are_refused():
    rows = table("fusion")
    other = rows[(rows["variant"] == "delta") & (rows["ingredient"] != "codiemb")]
    with pytest.raises(ValueError, match="Draw the variants apart"):
        plot("fusion_weights", pd.concat([rows, other.assign(variant="delta_of_two")]))


def test_umap_has_a_row_per_map_and_a_panel_per_variant_with_its_first_seed():
    rows = table("umap")
    axes = plot("umap", rows)
    assert [ax.get_title(loc="left") for ax in axes[:4]] == [
        "base encoder",
        "IR only",
        "STS only",
        "CoDiEmb",
    ]
    assert [axes[0].get_ylabel(), axes[4].get_ylabel()] == ["UMAP", "PCA"]
    for row in (axes[:4], axes[4:]):
        assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in row}) == 1
    for ax in axes:
        assert ax.get_aspect() == 1
        assert not ax.get_xticks().size
        assert not ax.get_yticks().size
    points = axes[5].collections[0].get_offsets()
    mine = rows.query(
        "variant == 'ir_only' and dataset == 'api-docs' and seed == 0 and map == 'pca'"
    )
    np.testing.assert_allclose(points, mine[["x", "y"]])


def test_umap_caption_says_how_far_to_trust_it_and_which_coordinates_it_shows():
    rows = table("umap")
    text = figures.caption("umap", rows)
    assert "UMAP 0.90 to 0.90 (by up to 0.030 another" in text
    assert "shares 50% of each text's neighbours" in text
    moved = rows.assign(x=rows["x"] + 1)
    sha, other = (figures.caption("umap", r).split("SHA-256 ")[1] for r in (rows, moved))
    assert sha != other


def test_umap_colours_tell_task_by_hue_and_data_set_by_shade():
    ax = plot("umap")[0]
    colours = np.array([points.get_facecolor()[0] for points in ax.collections])
    assert len(np.unique(colours, axis=0)) == 5
    red, blue = colours[:, 0], colours[:, 2]
    assert (blue[:2] > red[:2]).all()  # IR
    assert (red[2:] > blue[2:]).all()  # STS
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [name for _, name in DATASETS]


def test_written_figure_has_picture_rows_and_caption(tmp_path):
    rows = table("cost_scores")
    figures.write("cost_scores", rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"cost_scores.{end}" for end in ("png", "pdf", "csv", "md")
    }
    saved = pd.read_csv(tmp_path / "cost_scores.csv")
    pd.testing.assert_frame_equal(saved, rows, rtol=1e-5)
    assert (tmp_path / "cost_scores.md").read_text().startswith("**What a score costs")


# Fusion studies


def test_study_draws_each_methods_gain_over_the_soup_of_its_seed():
    rows = table("study", seeds=2)
    axes = plot("study", rows)
    found = mean_markers(axes[3])  # STS, test
    sts = rows[(rows["split"] == "test") & (rows["metric"] == "spearman")]
    mean = sts.groupby(["variant", "seed"])["value"].mean().mul(100).unstack("seed")
    expected = (mean.loc["ties"] - mean.loc["uniform"]).mean()
    assert found["ties"][0] == pytest.approx(expected)
    assert "uniform" not in found
    with pytest.raises(ValueError, match="expected the method 'uniform'"):
        plot("study", rows[rows["variant"] != "uniform"])
    with pytest.raises(ValueError, match=r"'uniform' for each seed, found it for \[0\]"):
        plot("study", rows[(rows["variant"] != "uniform") | (rows["seed"] == 0)])


@pytest.mark.parametrize("stem", ["study", "path", "trade_off"])
def test_a_figure_of_both_tasks_wants_both(stem):
    rows = table("scores" if stem == "trade_off" else stem, seeds=1)
    with pytest.raises(ValueError, match=f"{stem}: expected scores of both tasks, found .* 'ir'"):
        plot(stem, rows[rows["task"] == "ir"])


def test_path_sets_each_task_against_its_better_end():
    rows = table("path", seeds=1)
    axes = plot("path", rows)
    ir = rows[rows["task"] == "ir"].groupby("t")["value"].mean().mul(100)
    line = next(line for line in axes[1].get_lines() if line.get_label() == "IR")
    assert line.get_ydata() == pytest.approx((ir - max(ir[0], ir[1])).to_numpy())
    assert "ir_only" in figures.caption("path", rows)
    assert "sts_only" in figures.caption("path", rows)
