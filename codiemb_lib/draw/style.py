"""How figures look: one meaning per colour, print sizes, labels at points, and the files saved."""

import io
import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from codiemb_lib.core import UNSEEN, atomic_path

SHEET = "codiemb_lib.draw.paper"
WIDTH = 6.8  # inches: both columns of print; one is 3.3, the default of the sheet


@dataclass(frozen=True, slots=True)
class Role:
    """What a colour stands for, with the marker and the dashes that say it without colour."""

    colour: str
    marker: str
    dashes: tuple[float, ...]  # on, off, ... in units of the line width; () is solid

    @property
    def line(self) -> tuple[int, tuple[float, ...]]:
        """The dashes as a line style of matplotlib."""
        return 0, self.dashes


ROLES = {
    "IR": Role("#0173B2", "o", ()),
    "STS": Role("#DE8F05", "s", (4, 1.5)),
    "joint": Role("#029E73", "D", (5, 1.2, 1, 1.2)),
    "baseline": Role("#333333", "^", (1, 1.2)),
}
TASK_ROLES = {"ir": "IR", "sts": "STS"}
TASK_NAMES = TASK_ROLES | {UNSEEN[task]: f"{role}, unseen" for task, role in TASK_ROLES.items()}


@dataclass(frozen=True, slots=True)
class VariantStyle(Role):
    """How one variant is drawn: in the colour of its role, its siblings told apart by the rest."""

    label: str


def _variant(label: str, role: str, marker: str, dashes: tuple[float, ...]) -> VariantStyle:
    return VariantStyle(ROLES[role].colour, marker, dashes, label)


# The tasks themselves, where a figure has a line for each.
TASK_STYLES = {task: VariantStyle(*astuple(ROLES[role]), role) for task, role in TASK_ROLES.items()}
# In the order in which figures list them.
VARIANTS = {
    "base": _variant("base encoder", "baseline", "^", (1, 1.2)),
    "ir_only": _variant("IR only", "IR", "o", ()),
    "sts_only": _variant("STS only", "STS", "s", (4, 1.5)),
    "mixed": _variant("mixed batches", "baseline", "v", (1, 2.6)),
    "cosent": _variant("joint, CoSENT", "baseline", "X", (1, 1.2, 1, 3.5)),
    "codiemb": _variant("CoDiEmb", "joint", "D", (5, 1.2, 1, 1.2)),
    "soup": _variant("uniform soup", "joint", "P", (5, 1.2, 1, 1.2, 1, 1.2)),
    "delta": _variant("delta-guided", "joint", "d", (9, 1.2, 1, 1.2)),
}
_IR_SHARE = re.compile(r"codiemb_ir(\d+)")
_SHARE_MARKERS = ("<", ">", "h", "8", "H")
# Of names that are not known: forms that no listed variant has, in colours of no role, brown,
# indigo and pink, that colour-blind eyes tell from those of the roles.
_OTHER_LOOKS = [*itertools.product(("p", "*", "h", "8", "H"), ("#7A4A1E", "#332288", "#E78AC3"))]


def variant_styles(names: Iterable[str]) -> dict[str, VariantStyle]:
    """Style of each distinct variant, in the order in which figures list them.

    `codiemb_ir25` and its like are CoDiEmb runs with that share of IR steps, in per cent. A name
    that is not known is its own label, and its look follows from the name, so that it is the same
    in every figure; only where two names fall on one look, the later in the alphabet takes the next
    free. Looks repeat after fifteen such names. Add an entry to `VARIANTS` for a better one.
    """
    names = sorted({*names})
    shares = sorted(filter(_IR_SHARE.fullmatch, names), key=lambda name: int(name[10:]))
    styles = {}
    for name, known in VARIANTS.items():
        styles[name] = known
        for number, share in enumerate(shares if name == "codiemb" else ()):
            dashes = (5, 1.2) + (1, 1.2) * (number % 5 + 3)
            label = f"CoDiEmb, {int(share[10:])} % IR"
            styles[share] = _variant(label, "joint", _SHARE_MARKERS[number % 5], dashes)
    free = [*_OTHER_LOOKS]
    for name in [name for name in names if name not in styles]:
        start = zlib.crc32(name.encode()) % len(_OTHER_LOOKS)  # `hash` differs between processes
        looks = _OTHER_LOOKS[start:] + _OTHER_LOOKS[:start]
        marker, colour = next((look for look in looks if look in free), looks[0])
        free = [look for look in free if look != (marker, colour)]
        styles[name] = VariantStyle(colour, marker, (2.5, 1 + 0.6 * "p*h8H".index(marker)), name)
    return {name: style for name, style in styles.items() if name in names}


def shades(colour: str, count: int) -> list[tuple[float, float, float]]:
    """`count` shades of one colour, from darker to lighter, the colour itself when `count` is 1."""
    own = np.array(to_rgb(colour))
    return sns.blend_palette([0.55 * own, own, 0.45 * own + 0.55], count) if count > 1 else [own]


def use_style() -> None:
    """Use the style sheet for all figures that follow."""
    plt.style.use(SHEET)


def label_points(
    ax: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str]
) -> list[Annotation]:
    """Write `texts[i]` beside the point `(x[i], y[i])` clear of other labels and of lines.

    Every label tries places around its point, near ones first, and takes the one that covers least
    of lines, markers and error bars; a few rounds let labels give way to each other. One that had
    to go further is tied to its point by a thin line. Call it last: limits and size of the axes
    must be final. (adjustText, which moves labels by forces, left some on each other.)
    """
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # settles the layout, so that extents are true
    unit = figure.dpi / 72  # pixels in a point; all that follows is in points
    form = {"textcoords": "offset points", "ha": "center", "va": "center"}
    form["arrowprops"] = {"arrowstyle": "-", "color": "#999999", "lw": 0.5, "shrinkB": 3.5}
    labels = [ax.annotate(t, (a, b), (0, 0), **form) for a, b, t in zip(x, y, texts, strict=True)]
    extents = [Text.get_window_extent(label) for label in labels]  # without the leader
    sizes = np.array([(extent.width, extent.height) for extent in extents])[:, None] / unit
    points = ax.transData.transform(np.column_stack([x, y]))[:, None] / unit  # (n, 1, 2)
    marks = np.concatenate([points[:, 0], *(xy / unit for xy in _drawn(ax, 5 * unit))])
    marks = np.concatenate([marks - 2.8, marks + 2.8], axis=1)  # boxes that no label is to cover
    frame = np.array([ax.get_window_extent().extents]) / unit

    angles, gaps = np.deg2rad(np.arange(0, 360, 15)), np.repeat([6.0, 10, 15, 22, 30, 40], 24)
    rings = np.tile(np.column_stack([np.cos(angles), np.sin(angles)]), (6, 1))
    offsets = rings * (sizes / 2 + gaps[:, None])  # (n, K, 2), from point to middle
    boxes = np.concatenate([points + offsets - sizes / 2, points + offsets + sizes / 2], axis=-1)
    outside = sizes.prod(-1) - _covered(boxes, frame)
    alone = 1.5 * _covered(boxes, marks) + 20 * outside + 2 * gaps  # (n, K)
    leaders = points[:, :, None] + np.linspace(0.2, 1, 6)[:, None] * offsets[:, :, None]
    chosen = alone.argmin(axis=1)
    for label in [*range(len(labels))] * 6:
        others = np.delete(boxes[range(len(labels)), chosen], label, axis=0)
        foreign = np.concatenate([others, np.delete(marks[: len(labels)], label, axis=0)])
        along = leaders[label][:, :, None]  # (K, 6, 1, 2)
        crossed = ((along > foreign[:, :2]) & (along < foreign[:, 2:])).all(-1).any(-1).sum(-1)
        cost = alone[label] + 10 * _covered(boxes[label], others) + 60 * crossed
        chosen[label] = cost.argmin()
    for label, places, choice in zip(labels, offsets, chosen, strict=True):
        label.set_position(tuple(places[choice]))
        label.set_in_layout(False)
        label.arrow_patch.set_visible(bool(gaps[choice] > 10))
    return labels


def _drawn(ax: Axes, apart: float) -> list[np.ndarray]:
    """Pixels (n, 2) of all markers, and along all lines and error bars, so far apart at most."""
    points, lines = [], []
    for line in ax.get_lines():
        xy = line.get_transform().transform(line.get_xydata())
        (points if line.get_linestyle() == "None" else lines).append(xy)
    for drawn in ax.collections:
        if isinstance(drawn, LineCollection):  # error bars
            lines += [
                ax.transData.transform(np.reshape(xy, (-1, 2))) for xy in drawn.get_segments()
            ]
        elif isinstance(drawn, PathCollection):
            points.append(drawn.get_offset_transform().transform(drawn.get_offsets()))
    for line in lines:
        line = line[np.isfinite(line).all(axis=1)]
        for start, end in itertools.pairwise(line):
            points.append(np.linspace(start, end, int(np.linalg.norm(end - start) // apart) + 2))
    return points


def _covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area of each box (..., 4) under any of `others` (m, 4), summed: (...)."""
    low = np.maximum(boxes[..., None, :2], others[:, :2])
    high = np.minimum(boxes[..., None, 2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(-1).sum(-1)


def save_figure(
    fig: Figure, path_stem: str | Path, *, rows: pd.DataFrame, caption: str
) -> list[Path]:
    """Write the figure (PDF and 300-dpi PNG), the rows behind it (CSV) and its caption (Markdown).

    The same figure and rows give the same bytes: no dates, no versions, floats with 6 significant
    digits. A file that is already as it should be is left alone, so nothing downstream runs again.
    Returns the paths `<stem>.pdf`, `.png`, `.csv` and `.md`.
    """
    pdf, png = io.BytesIO(), io.BytesIO()
    with plt.style.context(SHEET):
        undated = {"Creator": None, "Producer": None, "CreationDate": None}
        fig.savefig(pdf, format="pdf", dpi=300, metadata=undated)
        fig.savefig(png, format="png", dpi=300, metadata={"Software": None})
    table = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    contents = {"pdf": pdf.getvalue(), "png": png.getvalue(), "csv": table.encode()}
    contents["md"] = (caption.strip() + "\n").encode()
    stem = Path(path_stem)
    paths = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in contents}
    for ending, path in sorted(paths.items(), key=lambda pair: pair[0] == "png"):  # comes last
        if not (path.is_file() and path.read_bytes() == contents[ending]):
            with atomic_path(path) as temporary:
                temporary.write_bytes(contents[ending])
    return [*paths.values()]
