"""Every figure, drawn from the committed rows of `mini`, against means and intervals by SciPy."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import same_color
from matplotlib.text import Text
from scipy import stats

from codiemb_lib.core.files import project_root
from codiemb_lib.draw import figures, style
from codiemb_lib.draw.frame import FAINT, FigureError
from codiemb_lib.evaluate.claims import AGAINST_BASE
from tests.made_up import MODELS

STEMS = [*figures.FIGURES]
LABELS = [look.label for look in style.variant_styles(MODELS).values()]


@functools.cache
def _committed(stem: str, preset: str) -> pd.DataFrame:
    return pd.read_csv(project_root() / "figures" / preset / f"{stem}.csv")


def table(stem: str, *, seeds: int = 3, preset: str = "mini") -> pd.DataFrame:
    """The committed rows of a figure, of some seeds."""
    rows = _committed(stem, preset).copy()
    return rows[rows["seed"] < seeds] if "seed" in rows else rows


@functools.cache
def drawn(stem: str) -> np.ndarray:
    """The Axes of a figure of all committed rows; tests only look at them."""
    return np.ravel(figures.FIGURES[stem].plot(table(stem)))


def plot(stem: str, rows: pd.DataFrame, **keywords) -> np.ndarray:
    axes = np.ravel(figures.FIGURES[stem].plot(rows, **keywords))
    plt.close(axes[0].figure)
    return axes


def titles(axes) -> list[str]:
    return [ax.get_title(loc="left") for ax in axes]


def names(texts) -> list[str]:
    return [text.get_text() for text in texts]


def legend_names(ax) -> list[str]:
    return names(ax.figure.legends[0].get_texts())


def thick_lines(ax) -> list:
    """The means of a panel of lines, in no order."""
    return [line for line in ax.get_lines() if line.get_marker() not in ("None", "", None)]


def points(ax) -> np.ndarray:
    """All that `scatter` drew, (n, 2)."""
    return np.concatenate(
        [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    )


def has_line(ax, xy: pd.Series) -> bool:
    """Whether one of the means runs through these points."""
    expected = np.column_stack([xy.index, xy])
    shapes = [line.get_xydata() for line in thick_lines(ax)]
    return any(len(s) == len(expected) and np.allclose(s, expected, rtol=1e-5) for s in shapes)


# Every figure


def test_figures_tell_the_story_scores_then_fusion_then_space():
    assert STEMS[:3] == ["trade_off", "scores_by_dataset", "comparisons"]
    assert STEMS.index("study") < STEMS.index("alignment_uniformity")
    assert STEMS[-1] == "umap"


@pytest.mark.parametrize("stem", STEMS)
def test_figure_has_print_width_small_text_inside_and_leaves_the_caller_alone(stem):
    rows = table(stem)
    parameters = dict(mpl.rcParams)
    fig = drawn(stem)[0].figure
    pd.testing.assert_frame_equal(rows, table(stem))
    assert dict(mpl.rcParams) == parameters
    assert fig.get_figwidth() == style.WIDTH
    fig.canvas.draw()
    ticks = [t for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels()]
    for text in fig.findobj(lambda artist: isinstance(artist, Text)):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() == 8
            box, frame = Text.get_window_extent(text), fig.bbox.padded(1)
            inside = frame.contains(*box.min) and frame.contains(*box.max)
            # a locator may hold ticks outside of the limits, which are not drawn
            assert inside or text in ticks, text.get_text()


@pytest.mark.parametrize("stem", STEMS)
def test_figure_draws_on_given_axes_and_refuses_a_wrong_number(stem):
    count = len(drawn(stem))
    _, mine = plt.subplots(count, layout="constrained", figsize=(7, 12), squeeze=False)
    axes = plot(stem, table(stem), ax=mine[0, 0] if stem == "trade_off" else mine)
    assert list(axes) == list(mine.flat)
    with pytest.raises(FigureError, match=f"expected {count} Axes"):
        plot(stem, table(stem), ax=mine[:0])


@pytest.mark.parametrize("preset", ["mini", "english"])
@pytest.mark.parametrize("stem", STEMS)
def test_caption_is_complete_and_the_committed_one(stem, preset):
    text = figures.caption(stem, table(stem, preset=preset))
    assert text.startswith("**")
    assert f"preset {preset}" in text
    assert not set("{}") & set(text)
    committed = project_root() / "figures" / preset / f"{stem}.md"
    assert committed.read_text(encoding="utf-8") == text + "\n"


def test_caption_tells_the_number_of_seeds_and_whether_there_are_intervals():
    three = figures.caption("trade_off", table("trade_off"))
    assert "n = 3 seeds a model (base encoder: 1)" in three
    assert "95 % t-intervals" in three
    assert "No interval" in figures.caption("trade_off", table("trade_off", seeds=2))
    assert "n = 1 seed a model." in figures.caption("trade_off", table("trade_off", seeds=1))
    with pytest.raises(FigureError, match=r"'tradeoff'.*Did you mean 'trade_off'"):
        figures.caption("tradeoff", table("trade_off"))


def gap(rows):
    rows.loc[rows.index[3], "value"] = np.nan
    return rows


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda rows: rows.drop(columns="variant"), r"the columns .* without \['variant'\]"),
        (lambda rows: rows.head(0), "at least one row, found none"),
        (gap, "a value in every cell"),
        (
            lambda rows: pd.concat([rows, rows.assign(preset="smoke")]),
            "rows of one preset, .*'smoke'",
        ),
        (lambda rows: pd.concat([rows, rows.head(1)]), "each row once"),
    ],
)
@pytest.mark.parametrize("stem", ["trade_off", "anisotropy", "path"])
def test_rows_that_do_not_suit_a_figure_are_refused(stem, spoil, wrong):
    rows = spoil(table(stem))
    with pytest.raises(FigureError, match=f"{stem}: expected {wrong}"):
        plot(stem, rows)
    with pytest.raises(FigureError, match=wrong):
        figures.caption(stem, rows)


def test_same_rows_give_the_same_bytes_in_another_process_and_name_no_torch(tmp_path):
    script = (
        "import sys, pandas\n"
        "from codiemb_lib.draw import figures, tables\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}\n"
        "for stem in ('trade_off', 'path', 'umap'):\n"
        "    figures.write(stem, pandas.read_csv(f'figures/mini/{stem}.csv'), sys.argv[1])"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"}
        command = [sys.executable, "-c", script, tmp_path / seed]
        subprocess.run(command, env=environment, check=True, cwd=project_root())
    written = sorted((tmp_path / "1").iterdir())
    assert len(written) == 12
    for path in written:
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name
        if path.suffix == ".csv":
            committed = project_root() / "figures" / "mini" / path.name
            assert path.read_bytes() == committed.read_bytes()


# Scores


def mean_points(ax) -> dict[tuple, object]:
    """Where the means of a panel of points stand, by marker and colour."""
    bars = [container.lines for container in ax.containers]
    return {(main.get_marker(), main.get_color()): main.get_xydata()[0] for main, _, _ in bars}


def test_trade_off_puts_means_over_test_sets_and_seeds_in_the_plane():
    (ax,) = drawn("trade_off")
    rows = table("trade_off").query("split == 'test'")
    at = mean_points(ax)
    for variant, look in style.variant_styles(MODELS).items():
        mine = rows[rows["variant"] == variant]
        x, y = (
            100 * mine.loc[mine["metric"] == m, "value"].mean() for m in ("ndcg@10", "spearman")
        )
        assert at[look.marker, look.colour] == pytest.approx((x, y))
    assert len(points(ax)) == 1 + 9 * 3  # each seed
    assert "nDCG@10 × 100 (↑)" in ax.get_xlabel()
    assert "Spearman × 100 (↑)" in ax.get_ylabel()


@pytest.mark.parametrize("preset", ["mini", "english"])
def test_trade_off_names_each_model_once_and_no_label_lies_on_another(preset):
    ax = figures.FIGURES["trade_off"].plot(table("trade_off", preset=preset))
    assert sorted(names(ax.texts)) == sorted(LABELS)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text).padded(-0.5) for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    plt.close(ax.figure)


def test_trade_off_marks_the_specialists_and_the_corner_beyond_both():
    (ax,) = drawn("trade_off")
    at, ir, sts = mean_points(ax), style.VARIANTS["ir_only"], style.VARIANTS["sts_only"]
    rules = {line.get_color(): line for line in ax.get_lines() if line.get_zorder() == 0}
    assert rules[ir.colour].get_xdata()[0] == pytest.approx(at["o", ir.colour][0])
    assert rules[sts.colour].get_ydata()[0] == pytest.approx(at["s", sts.colour][1])
    rows = table("trade_off")
    (without,) = plot("trade_off", rows[~rows["variant"].isin(["ir_only", "sts_only"])])
    assert not [line for line in without.get_lines() if line.get_zorder() == 0]


@pytest.mark.parametrize(("seeds", "bars"), [(2, 0), (3, 9)])
def test_intervals_are_those_of_student_from_three_seeds_on(seeds, bars):
    rows = table("trade_off", seeds=seeds)
    (ax,) = plot("trade_off", rows)
    spans = [c.lines[2][0].get_segments()[0] for c in ax.containers]
    assert [len(span) for span in spans].count(2) == bars
    if bars:
        mine = rows.query("variant == 'codiemb' and split == 'test' and metric == 'ndcg@10'")
        by_seed = 100 * mine.groupby("seed")["value"].mean()
        expected = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
        assert any(np.allclose(span[:, 0], expected) for span in spans if len(span))


def test_means_over_different_test_sets_or_of_one_task_are_refused():
    rows = table("trade_off")
    lost = (rows["variant"] == "soup") & (rows["dataset"] == "lee-news")
    with pytest.raises(
        FigureError, match=r"found variant soup, seed 0 without \[\('ir', 'lee-news'\)\]"
    ):
        plot("trade_off", rows[~lost])
    for stem in ("trade_off", "study", "path"):
        rows = table(stem)
        with pytest.raises(FigureError, match=r"every task, found .* without \['sts'\]"):
            plot(stem, rows[rows["task"] == "ir"])


def test_scores_by_dataset_has_a_panel_per_test_set_and_a_row_per_model():
    axes, rows = drawn("scores_by_dataset"), table("scores_by_dataset")
    assert titles(axes) == ["api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity"]
    assert names(axes[0].get_yticklabels()) == LABELS
    assert axes[0].get_xlabel() == "nDCG@10\n× 100 (↑)"
    assert axes[4].get_xlabel() == "Spearman\n× 100 (↑)"
    own = rows.query("variant == 'soup' and dataset == 'lee-news' and split == 'test'")
    own = 100 * own.loc[own["metric"] == "ndcg@10", "value"]
    y = LABELS.index("uniform soup")
    lines = [line.get_xydata() for line in axes[1].get_lines()]
    assert any(np.allclose([own.mean(), y], line[y]) for line in lines if len(line) == len(LABELS))
    bar = stats.t.interval(0.95, 2, own.mean(), stats.sem(own))
    assert any(
        np.allclose(line, np.column_stack([bar, (y, y)])) for line in lines if len(line) == 2
    )
    low, high = axes[0].get_ylim()
    assert low > high  # the first model is on top


def test_many_test_sets_wrap():
    rows = table("scores_by_dataset", seeds=1)
    axes = plot("scores_by_dataset", pd.concat([rows, rows.assign(dataset=rows["dataset"] + "-2")]))
    assert {ax.get_subplotspec().rowspan.start for ax in axes} == {0, 1}


def test_comparisons_have_a_line_each_with_both_intervals_and_the_margin():
    axes, rows = drawn("comparisons"), table("comparisons").query(f"claim != '{AGAINST_BASE}'")
    for ax, task in zip(axes, ["ir", "sts", "ir_isotropy", "sts_isotropy"], strict=True):
        here = rows[rows["task"] == task]
        means = here[here["dataset"] == "mean"]
        assert [label[:2] for label in names(ax.get_yticklabels())] == [*means["claim"]]
        texts, seeds = (c.get_segments() for c in ax.collections if isinstance(c, LineCollection))
        np.testing.assert_allclose(np.array(texts)[:, :, 0], 100 * means[["low", "high"]])
        np.testing.assert_allclose(
            np.array(seeds)[:, :, 0], 100 * means[["seeds_low", "seeds_high"]]
        )
        at = np.concatenate([100 * here["difference"], 100 * means["bound"]])
        assert sorted(points(ax)[:, 0]) == pytest.approx(sorted(at))
    assert names(axes[0].get_yticklabels())[0] == "C1: IR only vs mixed batches"
    assert axes[0].get_xlabel() == "difference in nDCG@10\n× 100 (↑)"
    assert axes[2].get_xlabel() == "difference in isotropy\nof IR texts, × 100 (↑)"


def test_comparisons_that_tell_are_solid():
    rows = table("comparisons").query(f"claim != '{AGAINST_BASE}'")
    told = (rows["claim"] == "C6") & (rows["task"] == "ir")
    rows = rows.assign(p_holm=1.0)
    rows.loc[told, ["low", "high", "seeds_low", "seeds_high", "p_holm"]] = [1, 2, 0.5, 3, 0.01]
    marks = [c for c in plot("comparisons", rows)[0].collections if c.get_zorder() == 3]
    faces = marks[0].get_facecolor()
    assert [not same_color(face, "white") for face in faces] == [False] * 5 + [True, False]


def test_comparisons_by_the_crossed_rule_have_one_line_each():
    rows = table("comparisons").query(f"claim != '{AGAINST_BASE}'")
    rows = rows.drop(columns=["seeds_low", "seeds_high"])
    ax = plot("comparisons", rows)[0]
    means = rows[(rows["dataset"] == "mean") & (rows["task"] == "ir")]
    (lines,) = (c.get_segments() for c in ax.collections if isinstance(c, LineCollection))
    np.testing.assert_allclose(np.array(lines)[:, :, 0], 100 * means[["low", "high"]])
    assert "the chance of texts and of seeds (both)" in figures.caption("comparisons", rows)
    alone = rows.assign(seeds=1)
    assert "texts alone, for there is one seed" in figures.caption("comparisons", alone)


def test_comparisons_of_one_seed_run_through_the_frame():
    ax = plot("comparisons", table("comparisons").assign(seeds_low=-np.inf, seeds_high=np.inf))[0]
    _, seeds = (c.get_segments() for c in ax.collections if isinstance(c, LineCollection))
    assert seeds[0][0, 0] < ax.get_xlim()[0] < ax.get_xlim()[1] < seeds[0][1, 0]


def test_comparisons_without_claims_are_those_against_the_base():
    rows = table("comparisons").query(f"claim == '{AGAINST_BASE}'")
    expected = [f"{label} vs base encoder" for label in LABELS[1:]]
    assert sorted(names(plot("comparisons", rows)[0].get_yticklabels())) == sorted(expected)
    assert "C3" not in figures.caption("comparisons", rows)


def test_training_curves_draw_the_mean_over_seeds_by_step():
    rows = table("training_curves")
    axes = drawn("training_curves")
    assert titles(axes) == ["IR", "STS"]
    assert legend_names(axes[0]) == LABELS[1:8]
    mine = rows[(rows["variant"] == "codiemb") & (rows["metric"] == "spearman")]
    assert has_line(axes[1], 100 * mine.groupby("step")["value"].mean())
    seeds = [line for line in axes[1].get_lines() if line.get_alpha() == FAINT]
    assert len(seeds) == 7 * 3
    (only,) = plot("training_curves", rows[rows["task"] == "sts"])
    assert only.get_ylabel().startswith("dev sets: mean\nSpearman")


def test_up_to_four_series_are_named_where_they_end():
    rows = table("training_curves")
    axes = plot("training_curves", rows[rows["variant"].isin(MODELS[1:4])])
    assert not axes[0].figure.legends
    assert sorted(names(axes[0].texts)) == sorted(LABELS[1:4])


def test_cost_scores_put_tokens_across_and_scores_upwards():
    axes, rows = drawn("cost_scores"), table("cost_scores")
    mine, soup = rows.query("variant == 'soup' and task == 'sts'"), style.VARIANTS["soup"]
    expected = (mine["tokens"].mean() / 1000, 100 * mine["value"].mean())
    assert mean_points(axes[1])[soup.marker, soup.colour] == pytest.approx(expected)
    base = style.VARIANTS["base"]
    assert mean_points(axes[0])[base.marker, base.colour][0] == 0


# Fusion


def test_fusion_weights_map_norms_and_weights_by_layer_and_module():
    axes, rows = drawn("fusion_weights"), table("fusion_weights")
    assert titles(axes[:3]) == ["CoDiEmb", "CoDiEmb, 25 % IR", "CoDiEmb, 75 % IR"]
    norms, weights = (axes[i].collections[0] for i in (0, 3))
    modules = names(axes[0].get_yticklabels())
    at = modules.index("query"), names(axes[3].get_xticklabels()).index("2")
    mine = rows.query("variant == 'delta' and ingredient == 'codiemb' and layer == 2")
    mine = mine[mine["module"] == "query"]
    each_seed = mine.groupby("seed")["delta_norm"].agg(lambda norm: np.sqrt((norm**2).sum()))
    assert norms.get_array()[at] == pytest.approx(each_seed.mean())
    assert weights.get_array()[at] == pytest.approx(mine["weight"].mean())
    assert norms.get_array().mask[modules.index("word_embeddings"), 1:].all()  # in no layer
    assert weights.get_cmap().name == "RdBu_r"
    assert weights.norm(1 / 3) == pytest.approx(0.5)
    assert len({axes[i].collections[0].norm.vmax for i in range(3)}) == 1


def test_fusion_of_a_soup_alone_is_white_and_of_other_ingredients_refused():
    rows = table("fusion_weights")
    image = plot("fusion_weights", rows[rows["variant"] == "soup"])[3].collections[0]
    np.testing.assert_allclose(image.norm(image.get_array().compressed()), 0.5, atol=0.01)
    other = rows[(rows["variant"] == "delta") & (rows["ingredient"] != "codiemb")]
    with pytest.raises(FigureError, match="Draw the variants apart"):
        plot("fusion_weights", pd.concat([rows, other.assign(variant="delta_of_two")]))


def test_study_draws_each_methods_gain_over_the_soup_of_its_seed():
    axes, rows = drawn("study"), table("study")
    assert titles(axes) == ["IR, dev", "STS, dev", "IR, test", "STS, test"]
    methods = names(axes[2].get_yticklabels())
    assert "uniform" not in methods
    sts = rows[(rows["split"] == "test") & (rows["metric"] == "spearman")]
    mean = sts.groupby(["variant", "seed"])["value"].mean().mul(100).unstack("seed")
    expected = (mean.loc["ties"] - mean.loc["uniform"]).mean(), methods.index("ties")
    lines = [line.get_xydata() for line in axes[3].get_lines()]
    assert any(np.isclose(line, expected).all(axis=1).any() for line in lines)
    for name, seeds in (("uniform", 0), ("ties", 2)):
        kept = (rows["variant"] != name) | (rows["seed"] < seeds)
        with pytest.raises(FigureError, match=rf"every variant, found .* without \['{name}'\]"):
            plot("study", rows[kept])


def test_a_study_of_several_sets_draws_each_against_its_own_soup():
    rows = table("study")
    rows = rows[rows["variant"].isin(["uniform", "ties"])]
    lower = rows.assign(variant="pairs." + rows["variant"], value=rows["value"] - 0.1)
    axes = plot("study", pd.concat([rows, lower]))
    assert names(axes[2].get_yticklabels()) == ["ties", "pairs: ties"]
    seeds = [c.get_offsets() for c in axes[2].collections if len(c.get_offsets())]
    one, other = (sorted(x for points in seeds for x, y in points if y == row) for row in (0, 1))
    np.testing.assert_allclose(one, other)


def test_path_sets_each_task_against_its_better_end():
    axes, rows = drawn("path"), table("path")
    ir = rows[rows["metric"] == "ndcg@10"].groupby(["seed", "t"])["value"].mean().mul(100).unstack()
    gain = ir.sub(ir[[0, 1]].max(axis=1), axis=0).mean()
    assert has_line(axes[1], gain)
    assert names(axes[1].texts) == ["IR", "STS"]
    assert names(axes[0].texts) == ["t = 0", "t = 1"]
    assert "(1 - t) × ir_only + t × sts_only" in figures.caption("path", rows)


def test_path_geometry_has_a_panel_per_measure():
    axes, rows = drawn("path_geometry"), table("path_geometry")
    assert titles(axes)[::3] == ["anisotropy (↓)", "effective rank (↑)"]
    mine = rows.query("texts == 'sts' and measure == 'effective_rank'")
    assert has_line(axes[3], mine.groupby("t")["value"].mean())


# Space


def test_alignment_uniformity_has_a_panel_for_texts_with_pairs():
    axes, rows = drawn("alignment_uniformity"), table("alignment_uniformity")
    assert titles(axes) == ["IR texts", "STS texts"]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("alignment (↓)", "uniformity (↓)")
    means = rows[(rows["variant"] == "delta") & (rows["texts"] == "sts")]
    means, look = means.groupby("measure")["value"].mean(), style.VARIANTS["delta"]
    expected = (means["alignment"], means["uniformity"])
    assert mean_points(axes[1])[look.marker, look.colour] == pytest.approx(expected)
    lost = (rows["variant"] == "delta") & (rows["seed"] == 1) & (rows["measure"] == "alignment")
    with pytest.raises(FigureError, match=r"variant delta, seed 1, texts ir without \['alignment"):
        plot("alignment_uniformity", rows[~lost])


def test_anisotropy_has_a_panel_per_kind_of_texts_on_one_scale():
    *axes, ir, sts = drawn("anisotropy")
    assert titles(axes) == ["all texts", "IR texts", "STS texts"]
    assert len({ax.get_xlim() for ax in axes}) == 1
    assert axes[0].get_xlabel() == "mean cosine (↓)"
    assert titles([ir, sts]) == ["IR texts", "STS texts"]  # the gap beside every mean cosine
    assert {ax.get_xlabel() for ax in (ir, sts)} == {"cosine gap (↑)"}
    ends = np.concatenate([line.get_xdata() for ax in axes for line in ax.get_lines()[1:]])
    low, high = axes[0].get_xlim()
    assert low < min(0.1, np.nanmin(ends))
    assert np.nanmax(ends) < high  # no interval is cut


def test_spectra_are_means_over_neighbours_against_the_base_encoders():
    axes, rows = drawn("spectra"), table("spectra")
    assert [ax.get_yscale() for ax in axes] == ["log", "log"]
    assert legend_names(axes[0]) == LABELS[1:]
    of_texts = rows[rows["texts"] == "sts"]
    base = of_texts[of_texts["variant"] == "base"].set_index("index")["singular_value"]
    mine = of_texts[of_texts["variant"] == "soup"].groupby("index")["singular_value"].mean() / base
    edges = np.unique(np.geomspace(1, base.index.max() + 1, 14).astype(int))
    ends = list(zip(edges, edges[1:] - 1, strict=False))
    expected = pd.Series({np.sqrt(a * b): mine.loc[a:b].mean() for a, b in ends})
    assert has_line(axes[titles(axes).index("STS texts")], expected)
    with pytest.raises(FigureError, match="expected rows of 'base' to compare with"):
        plot("spectra", rows[rows["variant"] != "base"])


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.28, 0.48, 3])
def test_spectra_near_the_base_encoders_keep_ticks_in_plain_numbers(spread):
    index = np.arange(1, 13)
    base = pd.DataFrame({"preset": "mini", "variant": "base", "seed": 0, "texts": "sts"}, index)
    base = base.assign(index=index, singular_value=1 / 12)
    near = base.assign(variant="soup", singular_value=(1 + spread) ** np.cos(index) / 12)
    (ax,) = plot("spectra", pd.concat([base, near]))
    low, high = ax.get_ylim()
    shown = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert len([float(text) for text in shown if text]) >= 2


def test_cosines_have_a_row_per_task_and_three_curves_that_are_named_once():
    axes, rows = drawn("cosines"), table("cosines")
    assert titles(axes)[:4] == ["base encoder", "IR only", "STS only", "CoDiEmb"]
    (curve,) = (line for line in axes[7].get_lines() if line.get_label() == "STS positives")
    mine = rows.query("variant == 'codiemb' and task == 'sts' and pairs == 'positive'")
    mine = mine[(mine["seed"] == 0) & (mine["share"] > 0)]
    heights = np.unique(curve.get_ydata().round(5))
    np.testing.assert_allclose(heights[heights > 0], np.unique(mine["share"].round(5)))
    assert legend_names(axes[0]) == ["random pairs", "negatives", "IR positives", "STS positives"]
    assert "IR positive 984" in figures.caption("cosines", rows)


def test_rated_pairs_are_the_points_of_a_data_set_and_a_model():
    axes, rows = drawn("rated_pairs"), table("rated_pairs")
    sets = rows["dataset"].unique()
    assert len(axes) == 4 * len(sets)
    mine = rows[(rows["variant"] == "ir_only") & (rows["dataset"] == sets[1]) & (rows["seed"] == 0)]
    np.testing.assert_allclose(points(axes[5]), mine[["gold", "cosine"]])
    assert axes[4].get_ylabel() == f"{sets[1]}\ncosine"


def test_geometry_by_step_has_a_row_per_measure_and_a_column_per_task():
    axes, rows = drawn("geometry_by_step"), table("geometry_by_step")
    measures = ["anisotropy (↓)", "uniformity (↓)", "alignment (↓)", "effective rank (↑)"]
    assert [ax.get_ylabel() for ax in axes[::2]] == measures
    mine = rows.query("variant == 'codiemb' and texts == 'sts' and measure == 'uniformity'")
    assert has_line(axes[3], mine.groupby("step")["value"].mean())
    of = rows.loc[rows["measure"] == "effective_rank", "n"].max()
    assert f"of {of} texts" in figures.caption("geometry_by_step", rows)


def test_geometry_by_layer_bands_are_intervals_of_means_alone():
    axes, rows = drawn("geometry_by_layer").reshape(4, -1), table("geometry_by_layer")
    assert [len(ax.collections) > 0 for ax in axes[:, 0]] == [True, False, True, False]
    mine = rows.query("variant == 'base' and texts == 'sts' and measure == 'condition_number'")
    assert has_line(axes[1, 2], mine.set_index("layer")["value"])


def test_geometry_scores_fill_what_leaves_out_zero():
    rows = table("geometry_scores").assign(low=-0.2, correlation=0.3, high=0.8)
    rows.loc[rows["measure"] == "uniformity", "low"] = 0.1
    axes = plot("geometry_scores", rows)
    assert titles(axes) == [
        "IR score,\nmodels, test",
        "STS score,\nmodels, test",
        "IR score,\ncheckpoints, dev",
        "STS score,\ncheckpoints, dev",
    ]
    solid = [not same_color(f, "white") for f in axes[1].collections[-1].get_facecolor()]
    shown = names(axes[0].get_yticklabels())
    heights = axes[1].collections[-1].get_offsets()[:, 1]
    assert [shown[int(y)] for y, full in zip(heights, solid, strict=True) if full] == [
        "uniformity (↓)"
    ]
    assert "28 models of 10 variants (IR)" in figures.caption("geometry_scores", rows)


def test_umap_has_a_row_per_map_and_a_panel_per_variant_with_its_first_seed():
    axes, rows = drawn("umap"), table("umap")
    assert titles(axes)[:4] == ["base encoder", "IR only", "STS only", "CoDiEmb"]
    assert [axes[0].get_ylabel(), axes[4].get_ylabel()] == ["UMAP", "PCA"]
    for row in (axes[:4], axes[4:]):
        assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in row}) == 1
    assert all(ax.get_aspect() == 1 and not ax.get_xticks().size for ax in axes)
    mine = rows.query("variant == 'ir_only' and seed == 0 and map == 'pca'")
    np.testing.assert_allclose(points(axes[5]), mine[["x", "y"]])


def test_umap_colours_tell_task_by_hue_and_data_set_by_shade():
    ax, rows = drawn("umap")[0], table("umap").query("variant == 'base' and map == 'umap'")
    colours = ax.collections[0].get_facecolor()
    assert len(np.unique(colours, axis=0)) == rows["dataset"].nunique()
    blue = colours[:, 2] > colours[:, 0]
    assert (blue == (rows["task"] == "ir")).all()
    assert {*legend_names(ax)} == {*rows["dataset"]}


def test_umap_of_texts_of_one_task_or_of_the_pca_alone_has_panels():
    rows = table("umap")
    assert len(plot("umap", rows[rows["task"] == "sts"])) == 8
    axes = plot("umap", rows[rows["map"] == "pca"].groupby(["variant", "task"]).head(1))
    assert [ax.get_ylabel() for ax in axes] == ["PCA", "", "", ""]


def test_umap_caption_says_how_far_to_trust_it_and_which_coordinates_it_shows():
    rows = table("umap")
    text = figures.caption("umap", rows)
    assert "UMAP 0.8" in text
    assert "of each text's neighbours" in text
    alone = figures.caption("umap", rows[rows["map"] == "pca"])
    assert "UMAP none, of so few texts; PCA 0." in alone
    other = figures.caption("umap", rows.assign(x=rows["x"] + 1))
    assert text.split("SHA-256 ")[1] != other.split("SHA-256 ")[1]
