"""The geometry of embeddings: measures, by kind of text, by layer; maps."""

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "associations": ["rank_correlations", "with_scores"],
        "geometry": ["anisotropy", "uniformity"],
        "layers": ["measures_by_layer"],
        "maps": ["VEGA_LITE", "coordinates_hash", "hover_chart", "maps_of"],
        "tables": ["FEWEST", "measures"],
    },
)
