"""Knobs to turn in a notebook, with a still picture for print.

What the widget shows is also in the output as a plain picture or table, for printers, web pages and
executed copies, where no kernel answers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Exhibit(widgets.VBox):
    """Controls above what they show.

    `show` gives the value of `shown` for the values of the controls, in their order.
    """

    def __init__(
        self,
        controls: list[widgets.ValueWidget],
        shown: widgets.Image | widgets.HTML,
        show: Callable[..., bytes | str],
    ) -> None:
        self.controls, self.shown, self._show = controls, shown, show
        super().__init__([widgets.HBox(controls, layout={"flex_flow": "row wrap"}), shown])
        for control in controls:
            control.observe(self._update, names="value")
        self._update()

    def _update(self, _: object = None) -> None:
        self.shown.value = self._show(*(control.value for control in self.controls))

    def _repr_mimebundle_(self, **options) -> dict:
        bundle, value = super()._repr_mimebundle_(**options), self.shown.value
        if isinstance(self.shown, widgets.HTML):
            return bundle | {"text/html": value}
        return bundle | {"image/png": base64.b64encode(value).decode()}


def knobs(draw: Callable[..., Figure | Axes], **controls: widgets.ValueWidget) -> Exhibit:
    """A picture that is drawn again whenever a control changes.

    Args:
        draw: Takes the values of the controls by their names, and returns what it drew.
        controls: Widgets by the argument that they set; a slider acts when it is let go.
    """
    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.style.description_width = "initial"
        if control.has_trait("continuous_update"):
            control.continuous_update = False

    def show(*values: object) -> bytes:
        drawn = draw(**dict(zip(controls, values, strict=True)))
        figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=144)
        plt.close(figure)
        return png.getvalue()

    size = {"align_self": "flex-start", "max_width": "100%"}  # its own, not that of the page
    return Exhibit([*controls.values()], widgets.Image(format="png", layout=size), show)
