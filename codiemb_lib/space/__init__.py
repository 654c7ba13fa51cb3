"""The geometry of a model's embeddings: measures, maps, and whether they go with the scores.

The way through it: the embeddings of data sets (`evaluate.load_encoded`) become a table of all
measures with their intervals (`measures_by_kind`), an encoder and some texts one by layer
(`measures_by_layer`); `rank_correlations` sets such tables beside scores, and `maps_of` draws
several models' texts in planes that can be compared. The measures themselves, such as
`anisotropy`, are functions of any array of embeddings.
"""

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
# 2: 2026-12-01: the SVD entropy of a text's tokens stands beside their other three measures.
# 3: 2026-12-01: Student's intervals of means over texts, the jackknife's else: no bootstrap.
NUMERICS = 3

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "associations": ["FEWEST_CLUSTERS", "associations_of"],
        "maps": ["coordinates_hash", "maps_of"],
        "measures": [
            *["alignment_by_text", "anisotropy", "anisotropy_by_text", "cosine_gap_by_text"],
            *["hubness", "intrinsic_dimension", "isoscore", "potential_by_text"],
            *["spectrum", "uniformity"],
        ],
        "tables": [
            *["BINS", "COLUMNS", "cosine_histograms", "equal_texts", "measures_by_kind"],
            *["measures_by_layer", "positive_pairs", "rated_pairs", "spectra"],
        ],
    },
)
