"""The command `codiemb`, and the doors to papermill and to Snakemake."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cli": ["main"],
        "rooms": ["imported_rooms", "notebook_files"],
    },
)
