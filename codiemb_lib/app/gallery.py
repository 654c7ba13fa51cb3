"""The pictures that are kept, on one page: each with its caption and the command that draws it."""

from __future__ import annotations

from pathlib import Path

from codiemb_lib.core import PresetError
from codiemb_lib.draw import FIGURES

_HEAD = """\
# Figures

Each figure stands here as PNG and PDF, with its rows as CSV and its caption. The command below a
caption draws it anew from the rows, in seconds; notebook `09_paper_figures` draws them all. This
page is made by `codiemb gallery`.
"""


def drawn(folder: str | Path) -> list[str]:
    """The figures that a folder holds, in the order of the registry."""
    return [stem for stem in FIGURES if (Path(folder) / f"{stem}.png").is_file()]


def gallery(folder: str | Path, presets: list[str]) -> str:
    """The page, in Markdown, for the presets whose figures lie below a folder.

    Raises:
        FileNotFoundError: A figure has no caption beside it.
        PresetError: A preset has no figures.
    """
    parts = [_HEAD]
    for preset in presets:
        if not (stems := drawn(Path(folder) / preset)):
            raise PresetError(
                f"{Path(folder) / preset}: expected figures of a preset, found none. Draw them by "
                f"`make reproduce PRESET={preset}`, or correct the name."
            )
        parts.append(f"\n## {preset}\n")
        for stem in stems:
            caption = (Path(folder) / preset / f"{stem}.md").read_text(encoding="utf-8")
            files = ", ".join(f"[{end.upper()}]({preset}/{stem}.{end})" for end in ("pdf", "csv"))
            parts.append(
                f"\n### {stem}\n\n![{stem}]({preset}/{stem}.png)\n\n{caption.strip()}\n\n"
                f"`codiemb draw {stem} --preset {preset}` ({files})\n"
            )
    return "".join(parts)
