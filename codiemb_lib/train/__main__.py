"""Every process that `accelerate launch --config_file FILE -m codiemb_lib.train ...` starts."""

import argparse
import logging

from codiemb_lib.core import load_preset
from codiemb_lib.train.loop import train


def main(argv: list[str] | None = None) -> None:
    """Train in the processes that were started, whatever configuration the preset names."""
    parser = argparse.ArgumentParser(prog="codiemb_lib.train", description=__doc__)
    parser.add_argument("--preset", required=True, help="a name, or the path of a YAML file")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    preset = load_preset(given.preset)
    train(preset, given.variant, given.seed, accelerate="", progress=given.progress)


if __name__ == "__main__":
    main()
