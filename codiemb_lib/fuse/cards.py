"""The card of a merged model: how it was made, and nothing about how good it is."""

from __future__ import annotations

import inspect
import json
import platform
import re
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from codiemb_lib import __version__


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    method: Callable[..., Any],
    *,
    kept: Collection[str],
    settings: Path,
    files: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The README.md of a merged model.

    Args:
        name: The model's.
        recipe: What was merged and how, with the keys of a recipe.
        method: The function whose docstring states formula and source.
        kept: The names of the ingredients in the result.
        settings: The folder whose tokenizer, pooling and prompts the result has.
        files: By ingredient, the SHA-256 of its files of weights by their paths in it.
    """
    library = "sentence-transformers" if (settings / "modules.json").is_file() else "transformers"
    head = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity",
        "tags": [library, "feature-extraction", "sentence-similarity", "merge"],
        "base_model": recipe["base"],
    }
    rows = [
        f"| {ingredient} | {'yes' if ingredient in kept else 'no'} | {file} | {digest} |"
        for ingredient in recipe["ingredients"]
        for file, digest in ((files or {}).get(ingredient) or {"": ""}).items()
    ]
    packages = {p: metadata.version(p) for p in ("torch", "transformers")}
    versions = {"codiemb": __version__, "python": platform.python_version()} | packages
    plain = json.loads(json.dumps(recipe, default=float))  # numbers of any library
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {name}\n",
            "The weights of models that were trained from one base, fused by this recipe:\n",
            f"```yaml\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}```\n",
            f"## Method: {method.__name__}\n",
            f"{_in_markdown(inspect.getdoc(method))}\n",
            "## Ingredients\n",
            "| ingredient | in the result | file | sha256 |\n| --- | --- | --- | --- |",
            *rows,
            "\n## Versions\n",
            ", ".join(f"{package} {version}" for package, version in versions.items()) + "\n",
        ]
    )


def _in_markdown(docstring: str) -> str:
    """A docstring with its formulas as Markdown has them."""
    text = re.sub(r"\.\. math::((?:.|\n)+?)\n\n", r"$$\1$$\n\n", docstring)
    text = re.sub(r":math:`((?:.|\n)+?)`", r"$\1$", text)
    return re.sub(r":func:`(.+?)`", r"`\1`", text)
