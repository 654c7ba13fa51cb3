"""The command `codiemb`, and the doors to papermill and to Snakemake.

`main` runs a command; what a command needs of other rooms is loaded when it runs. `notebook_files`
tells the Snakefile which files a notebook hangs on.
"""

import atexit
import gc
import sys

import lazy_loader

# What our processes import stays: to look through it for garbage, again and again and once more at
# the end, takes a third of their start.
gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)
# jsonschema, by which notebooks are checked, would spend as long on a grammar of web addresses.
sys.modules.setdefault("rfc3987_syntax", None)

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"cli": ["main"], "reproduce": ["notebook_files"]},
)
