"""Rows to figures and tables: one function a figure, one style for all."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "costs": ["cost_scores"],
        "figures": ["FIGURES", "write"],
        "style": ["ROLES", "label_points", "shades", "use_style"],
        "tables": ["claims_table", "merges_table", "results_table", "to_markdown"],
    },
)
