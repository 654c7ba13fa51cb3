"""Rows to figures and tables: one function a figure, one style for all.

Ask `FIGURES` for a figure by name, or `figures.write` to draw it, with rows and caption beside it;
tables come from their functions. Rows are those that `evaluate`, `fuse` and `space` make; nothing
here trains, embeds or scores.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["figures"],
    submod_attrs={
        "figures": ["FIGURES", "caption", "write"],
        "frame": ["FigureError"],
        "scores": ["cost_scores"],
        "style": ["ROLES", "TASK_ROLES", "label_points", "shades", "use_style", "variant_styles"],
        "tables": [
            *("claims_table", "merges_table", "results_table"),
            "to_markdown",
        ],
    },
)
