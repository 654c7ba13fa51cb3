from __future__ import annotations

import os

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from codiemb_lib.core.files import UnwritableError
from codiemb_lib.draw import style
from tests.made_up import MODELS


@pytest.fixture(autouse=True)
def clean_figures():
    with mpl.rc_context():
        yield
    plt.close("all")


def test_colours_of_the_sheet_are_those_of_the_roles():
    style.use_style()
    cycle = [
        mpl.colors.to_hex(c).upper() for c in mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    ]
    assert set(cycle) == {role.colour.upper() for role in style.ROLES.values()}
    assert cycle[0] == style.ROLES["baseline"].colour


def test_roles_have_the_colours_of_the_house():
    colours = {name: role.colour for name, role in style.ROLES.items()}
    assert colours == {
        "IR": "#0173B2",
        "STS": "#DE8F05",
        "joint": "#029E73",
        "baseline": "#333333",
    }
    assert {role.marker for role in style.ROLES.values()} == {"o", "s", "D", "^"}


def test_variants_of_the_preset_have_labels_colours_of_roles_and_an_order():
    styles = style.variant_styles(reversed(MODELS))
    assert list(styles) == MODELS
    assert [s.label for s in styles.values()] == [
        "base encoder",
        "IR only",
        "STS only",
        "mixed batches",
        "joint, CoSENT",
        "CoDiEmb",
        "CoDiEmb, 25 % IR",
        "CoDiEmb, 75 % IR",
        "uniform soup",
        "delta-guided",
    ]
    roles = ["baseline", "IR", "STS", "baseline", "baseline"] + ["joint"] * 5
    assert [s.colour for s in styles.values()] == [style.ROLES[role].colour for role in roles]
    shares = ["codiemb", "codiemb_ir5", "codiemb_ir100", "soup"]  # by number
    assert list(style.variant_styles(sorted(shares))) == shares


def looks(names):
    return [(s.colour, s.marker) for s in style.variant_styles(names).values()]


def test_variants_differ_in_marker_and_dashes_where_their_colour_is_the_same():
    names = [*MODELS, *(f"run{i}" for i in range(15))]
    assert len({*looks(names)}) == len(names)
    dashes = [(s.colour, s.dashes) for s in style.variant_styles(names).values()]
    assert len({*dashes}) == len(names)
    assert len(style.variant_styles(f"run{i}" for i in range(20))) == 20  # then they repeat


def test_unknown_variants_keep_their_name_and_look_the_same_in_every_figure_and_process():
    alone = {name: style.variant_styles([name])[name] for name in ("both", "merged", "more_ir")}
    assert [look.label for look in alone.values()] == ["both", "merged", "more_ir"]
    assert looks(alone) == [("#7A4A1E", "*"), ("#7A4A1E", "p"), ("#E78AC3", "p")]
    assert style.variant_styles(["base", *alone]) == style.variant_styles(["base"]) | alone
    roles = {role.colour for role in style.ROLES.values()}
    assert not {colour for colour, _ in looks(f"run{i}" for i in range(15))} & roles


def test_unknown_variants_on_one_look_part_in_the_order_of_the_alphabet():
    same: dict[tuple, list] = {}
    for name in sorted(f"run{i}" for i in range(50)):
        same.setdefault(looks([name])[0], []).append(name)
    first, second = max(same.values(), key=len)[:2]
    one, other = looks([second, first])
    assert [one] == looks([first])
    assert other != one


def test_shades_are_distinct_and_one_shade_is_the_colour():
    assert len(set(style.shades("#0173B2", 4))) == 4
    assert np.all(np.array(style.shades("#0173B2", 4)) >= 0)
    assert mpl.colors.to_hex(style.shades("#0173B2", 1)[0]).upper() == "#0173B2"


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_close_points_overlap_neither_each_other_nor_the_points(seed):
    style.use_style()
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 10))
    x[1], y[1] = x[0] + 0.03, y[0]  # two that almost coincide
    fig, ax = plt.subplots(figsize=(style.WIDTH, 3.6))
    ax.plot(x, y, "o")
    ax.margins(0.1)
    labels = style.label_points(ax, x, y, MODELS)
    fig.canvas.draw()
    boxes = [Text.get_window_extent(label).padded(-0.5) for label in labels]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert ax.get_window_extent().padded(1).contains(*box.min)
        assert ax.get_window_extent().padded(1).contains(*box.max)
        assert not any(box.contains(*p) for p in ax.transData.transform(np.column_stack([x, y])))


def test_labels_keep_clear_of_rules_and_error_bars():
    style.use_style()
    fig, ax = plt.subplots()
    ax.errorbar([0.5], [0.5], xerr=[0.4], yerr=[0.05])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axhline(0.5)
    (label,) = style.label_points(ax, [0.5], [0.5], ["model"])
    fig.canvas.draw()
    box = ax.transData.inverted().transform_bbox(Text.get_window_extent(label))
    assert box.y0 > 0.5 or box.y1 < 0.5


def test_labels_keep_clear_of_lines_between_their_points():
    style.use_style()
    fig, ax = plt.subplots(figsize=(style.WIDTH, 2.6))
    x, y = np.array([0, 2, 5, 6]), np.array([5.0, 4.9, 4, 0])
    for shift in (-0.15, 0, 0.15):
        ax.plot(x, y + shift)
    labels = style.label_points(ax, x[[0, -1]], y[[0, -1]], ["t = 1", "t = 0"])
    fig.canvas.draw()
    paths = [line.get_transform().transform_path(line.get_path()) for line in ax.get_lines()]
    for label in labels:
        box = Text.get_window_extent(label)
        assert not any(path.intersects_bbox(box, filled=False) for path in paths)


def draw():
    fig, ax = plt.subplots()
    ax.plot([1, 2], [3, 4], label="å")
    ax.set_xlabel("nDCG@10 (↑)")
    return fig


ROWS = pd.DataFrame({"variant": ["base", "soup"], "value": [1 / 3, 12345.678912], "n": [5, 6]})


def test_save_figure_writes_picture_rows_and_caption(tmp_path):
    paths = style.save_figure(draw(), tmp_path / "deep" / "a.b", rows=ROWS, caption="What is seen.")
    assert [p.name for p in paths] == ["a.b.pdf", "a.b.png", "a.b.csv", "a.b.md"]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == sorted(p.name for p in paths)
    pdf, png, csv, md = (path.read_bytes() for path in paths)
    assert pdf.startswith(b"%PDF")
    assert png.startswith(b"\x89PNG")
    assert csv == b"variant,value,n\nbase,0.333333,5\nsoup,12345.7,6\n"
    assert md == b"What is seen.\n"


def test_saved_picture_has_print_size(tmp_path):
    style.use_style()
    fig, _ = plt.subplots(figsize=(style.WIDTH, 2))
    _, png, *_ = style.save_figure(fig, tmp_path / "wide", rows=ROWS, caption="c")
    assert plt.imread(png).shape[:2] == (600, 2040)


def test_saved_files_hold_no_date_and_no_version(tmp_path):
    pdf, png, *_ = style.save_figure(draw(), tmp_path / "a", rows=ROWS, caption="c")
    for word in (b"CreationDate", b"Producer", b"Creator", b"Software", b"atplotlib v"):
        assert word not in pdf.read_bytes()
        assert word not in png.read_bytes()


def test_unchanged_files_are_left_alone_and_changed_ones_are_not(tmp_path):
    before = style.save_figure(draw(), tmp_path / "a", rows=ROWS, caption="old")
    for path in before:
        os.utime(path, (1, 1))
    after = style.save_figure(draw(), tmp_path / "a", rows=ROWS, caption="new")
    assert [path.stat().st_mtime == 1 for path in after] == [True, True, True, False]


def test_a_failing_figure_leaves_the_old_files(tmp_path):
    style.save_figure(draw(), tmp_path / "a", rows=ROWS, caption="c")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = draw()
    broken.axes[0].set_title(r"$\nosuchmacro{$")
    with pytest.raises(ValueError, match="nosuchmacro"):
        style.save_figure(broken, tmp_path / "a", rows=ROWS.head(1), caption="new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_unwritable_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableError, match="Choose another folder"):
        style.save_figure(draw(), tmp_path / "file" / "a", rows=ROWS, caption="c")
