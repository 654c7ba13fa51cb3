"""How figures look: one meaning per colour, print sizes, direct labels, and the files saved."""

from __future__ import annotations

import io
import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.text import Annotation, Text

from codiemb_lib.core import files

SHEET = "codiemb_lib.draw.paper"
WIDTH_1 = 3.3  # inches: one column of print
WIDTH_2 = 6.8  # inches: both columns

# A dash pattern is (offset, (on, off, ...)) in units of the line width.
SOLID, DASHED, DOTTED = (0, ()), (0, (4, 1.5)), (0, (1, 1.2))


@dataclass(frozen=True, slots=True)
class Role:
    """What a colour stands for, with the marker and the line that say it without colour."""

    colour: str
    marker: str
    line: tuple[int, tuple[float, ...]]


ROLES = {
    "IR": Role("#0173B2", "o", SOLID),
    "STS": Role("#DE8F05", "s", DASHED),
    "joint": Role("#029E73", "D", (0, (5, 1.2, 1, 1.2))),
    "baseline": Role("#333333", "^", DOTTED),
}
TASK_ROLES = {"ir": "IR", "sts": "STS"}


@dataclass(frozen=True, slots=True)
class VariantStyle:
    """How one variant is drawn: its role gives the colour, the rest tells its siblings apart."""

    label: str
    role: str
    marker: str
    fill: str  # matplotlib's fillstyle: full, none, left, right, top, bottom
    line: tuple[int, tuple[float, ...]]
    own_colour: str = ""  # in place of the role's

    @property
    def colour(self) -> str:
        """The variant's own colour, or else that of the role."""
        return self.own_colour or ROLES[self.role].colour

    @property
    def marker_format(self) -> dict[str, object]:
        """Keywords of `Axes.plot` that draw the marker."""
        return {
            "color": self.colour,
            "marker": MarkerStyle(self.marker, fillstyle=self.fill, joinstyle="round"),
            "markerfacecoloralt": "white",
        }


# In the order in which figures list them.
VARIANTS = {
    "base": VariantStyle("base encoder", "baseline", "^", "full", DOTTED),
    "ir_only": VariantStyle("IR only", "IR", "o", "full", SOLID),
    "sts_only": VariantStyle("STS only", "STS", "s", "full", DASHED),
    "mixed": VariantStyle("mixed batches", "baseline", "v", "none", (0, (1, 2.6))),
    "cosent": VariantStyle("joint, CoSENT", "baseline", ">", "none", (0, (1, 1.2, 1, 3.5))),
    "codiemb": VariantStyle("CoDiEmb", "joint", "D", "full", ROLES["joint"].line),
    "soup": VariantStyle("uniform soup", "joint", "d", "none", (0, (5, 1.2, 1, 1.2, 1, 1.2))),
    "delta": VariantStyle("delta-guided", "joint", "d", "full", (0, (9, 1.2, 1, 1.2))),
}
_IR_SHARE = re.compile(r"codiemb_ir(\d+)")
_SHARE_FORMS = (("D", "left"), ("D", "right"), ("D", "bottom"), ("D", "top"), ("D", "none"))
# Of names that are not known: every form in every colour. Colours of no role, brown, indigo and
# pink, that colour-blind eyes tell from those of the roles; forms that no listed variant has.
_OTHER_COLOURS = ("#7A4A1E", "#332288", "#E78AC3")
_OTHER_FORMS = (
    ("<", "none"),
    ("<", "full"),
    ("v", "full"),
    (">", "full"),
    ("^", "none"),
    ("p", "full"),
    ("p", "none"),
    ("P", "full"),
    ("P", "none"),
    ("X", "full"),
)
_OTHER_LOOKS = [*itertools.product(enumerate(_OTHER_FORMS), _OTHER_COLOURS)]


def variant_styles(names: Iterable[str]) -> dict[str, VariantStyle]:
    """Style of each distinct variant, in the order in which figures list them.

    `codiemb_ir25` and its like are CoDiEmb runs with that share of IR steps, in per cent. A name
    that is not known keeps its name as label and takes the baseline role, with a form and a
    colour that follow from the name, so that they are the same in every figure; only where two
    names fall on one look, the later in the alphabet takes the next free. Add an entry to
    `VARIANTS` to give a name a better one. Looks repeat after thirty such names.
    """
    names = sorted(set(names))
    shares = sorted((m for m in map(_IR_SHARE.fullmatch, names) if m), key=lambda m: int(m[1]))
    styles = {}
    for number, match in enumerate(shares):
        marker, fill = _SHARE_FORMS[number % len(_SHARE_FORMS)]
        line = (0, (5, 1.2) + (1, 1.2) * (number % 5 + 3))
        label = f"CoDiEmb, {int(match[1])} % IR"
        styles[match[0]] = VariantStyle(label, "joint", marker, fill, line)
    listed = list(VARIANTS)
    after = listed.index("codiemb") + 1
    ordered = [*listed[:after], *styles, *listed[after:]]
    others = [name for name in names if name not in ordered]
    taken: set[int] = set()
    for name in others:
        place = zlib.crc32(name.encode()) % len(_OTHER_LOOKS)  # `hash` differs between processes
        while place in taken and len(taken) < len(_OTHER_LOOKS):
            place = (place + 1) % len(_OTHER_LOOKS)
        taken.add(place)
        (number, (marker, fill)), colour = _OTHER_LOOKS[place]
        line = (0, (2.5, 1 + 0.6 * number))
        styles[name] = VariantStyle(name, "baseline", marker, fill, line, colour)
    styles = VARIANTS | styles
    return {name: styles[name] for name in [*ordered, *others] if name in names}


def shades(colour: str, count: int) -> list[tuple[float, float, float]]:
    """`count` shades of one colour, from darker to lighter, the colour itself when `count` is 1."""
    rgb = np.array(to_rgb(colour))
    if count == 1:
        return [tuple(rgb)]
    steps = np.linspace(-0.45, 0.55, count)
    return [tuple(rgb * (1 + s) if s < 0 else rgb + (1 - rgb) * s) for s in steps]


def use_style() -> None:
    """Use the style sheet for all figures that follow."""
    plt.style.use(SHEET)


def label_points(
    ax: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str]
) -> list[Annotation]:
    """Write `texts[i]` beside the point `(x[i], y[i])` clear of other labels and of lines.

    Every label tries positions around its point, near ones first, and takes the one that covers
    least of the lines, markers and error bars; a few rounds let labels give way to
    each other. A label that had to go further is tied to its point by a thin line. Call it last:
    limits and size of the axes must be final.

    Args:
        ax: The axes.
        x: Abscissas in data units, of length n.
        y: Ordinates in data units, of length n.
        texts: The labels, of length n.

    Returns:
        The n annotations.
    """
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # settles the layout, so that extents are true
    points = ax.transData.transform(np.column_stack([x, y]))
    unit = figure.dpi / 72  # pixels in a point
    leader = {"arrowstyle": "-", "color": "#999999", "lw": 0.5, "shrinkA": 0, "shrinkB": 3.5}
    placed = {"textcoords": "offset points", "ha": "center", "va": "center", "arrowprops": leader}
    labels = [
        ax.annotate(text, (a, b), (0, 0), **placed) for a, b, text in zip(x, y, texts, strict=True)
    ]
    extents = [Text.get_window_extent(label) for label in labels]  # without the leader
    sizes = np.array([(extent.width, extent.height) for extent in extents]) / unit
    points = points / unit
    frame = np.array(ax.get_window_extent().extents) / unit
    drawn = []
    for line in ax.get_lines():
        xy = line.get_transform().transform(line.get_xydata()) / unit
        drawn.append(xy if line.get_linestyle() == "None" else _along(xy))
    bars = [c for c in ax.collections if isinstance(c, LineCollection)]  # error bars
    drawn += [_along(ax.transData.transform(xy) / unit) for c in bars for xy in c.get_segments()]
    marks = np.concatenate([_boxes(xy, xy) for xy in (points, *drawn)])  # what no label covers

    angles = np.deg2rad(np.arange(0, 360, 15))
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    gaps = np.repeat([6.0, 10.0, 15.0, 22.0, 30.0, 40.0], len(ring))
    rings = np.tile(ring, (6, 1))
    offsets = [rings * (size / 2 + gaps[:, None]) for size in sizes]  # per label (K, 2)
    boxes = [  # per label (K, 4)
        np.concatenate([p + o - s / 2, p + o + s / 2], axis=1)
        for p, o, s in zip(points, offsets, sizes, strict=True)
    ]
    alone = [
        1.5 * _covered(box, marks) + 20 * (_area(box) - _covered(box, frame[None])) + 2.0 * gaps
        for box in boxes
    ]
    chosen = [int(np.argmin(cost)) for cost in alone]
    for _ in range(12):
        before = list(chosen)
        for i, box in enumerate(boxes):
            rest = [j for j in range(len(boxes)) if j != i]
            others = np.array([boxes[j][chosen[j]] for j in rest]).reshape(-1, 4)
            cost = alone[i] + 10 * _covered(box, others)
            if rest:  # a leader through a foreign label or marker misleads
                along = np.linspace(0.2, 1.0, 6)[:, None, None]
                path = points[i] + along * offsets[i]  # (6, K, 2)
                foreign = np.concatenate([others, np.delete(marks[: len(points)], i, axis=0)])
                inside = (path[:, :, None] > foreign[:, :2]) & (path[:, :, None] < foreign[:, 2:])
                cost = cost + 60 * inside.all(-1).any(2).sum(0)
            chosen[i] = int(np.argmin(cost))
        if chosen == before:
            break
    for label, offset, choice in zip(labels, offsets, chosen, strict=True):
        label.set_position(tuple(offset[choice]))
        label.set_in_layout(False)
        label.arrow_patch.set_visible(bool(gaps[choice] > 10))
    return labels


def _along(line: np.ndarray) -> np.ndarray:
    """Points along a polyline (n, 2), as near to each other as their boxes are wide."""
    if len(line) < 2:
        return line
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    steps = np.ceil(np.nan_to_num(steps) / 5).clip(1).astype(int)
    parts = [np.linspace(a, b, n + 1) for a, b, n in zip(line[:-1], line[1:], steps, strict=True)]
    return np.concatenate(parts)


def _boxes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Boxes (x0, y0, x1, y1), widened by half a marker: (..., 2), (..., 2) -> (K, 4)."""
    return np.concatenate([np.atleast_2d(low) - 2.8, np.atleast_2d(high) + 2.8], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area of each box (x0, y0, x1, y1) that lies under any of `others`, summed: (K, 4) -> (K,)."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(-1).sum(1)


def save_figure(
    fig: Figure, path_stem: str | Path, *, rows: pd.DataFrame, caption: str
) -> list[Path]:
    """Write the figure, the rows behind it and its caption beside each other.

    The same figure and rows give the same bytes: no dates and no versions in the files. A file
    that is already as it should be is left alone, so nothing downstream of it runs again.

    Args:
        fig: The figure, drawn at print size.
        path_stem: Path without ending.
        rows: What the figure shows; floats are written with 6 significant digits.
        caption: The message of the figure, in Markdown.

    Returns:
        The paths `<stem>.pdf`, `<stem>.png` (300 dpi), `<stem>.csv` and `<stem>.md`.

    Raises:
        UnwritableError: The folder cannot be written.
    """
    pdf, png = io.BytesIO(), io.BytesIO()
    with plt.style.context(SHEET):
        undated = {"Creator": None, "Producer": None, "CreationDate": None}
        fig.savefig(pdf, format="pdf", dpi=300, metadata=undated)
        fig.savefig(png, format="png", dpi=300, metadata={"Software": None})
    table = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    contents = {
        "pdf": pdf.getvalue(),
        "png": png.getvalue(),
        "csv": table.encode("utf-8"),
        "md": (caption.strip() + "\n").encode("utf-8"),
    }
    stem = Path(path_stem)
    written = []
    for ending, content in contents.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        if not (path.is_file() and path.read_bytes() == content):
            with files.atomic_path(path) as temporary:
                temporary.write_bytes(content)
        written.append(path)
    return written
