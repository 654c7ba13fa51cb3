"""The command `codiemb`, and the doors to papermill and to Snakemake.

`main` runs a command; what a command needs of other rooms is loaded when it runs. `notebook_files`
tells the Snakefile which files a notebook hangs on.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"cli": ["main"], "reproduce": ["notebook_files"]},
)
