"""The registry of data sets: what an entry may say, and where the files that it names are.

One key of an entry of `data/registry.yaml` says what its records come from: `files` of a form that
`formats` reads, a data set of the Hugging Face `hub`, or a script of data/build (`build`), for what
has a form of its own. Files are pinned to their bytes and come from an installed package, which is
never imported; from the data root; or from an address, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, RootModel, ValidationError, model_validator

from codiemb_lib import core
from codiemb_lib.data.formats import SPLITS, Scale, check_columns
from codiemb_lib.data.records import SourceError

Split = Literal["train", "dev", "test"]
Share = Annotated[float, Field(gt=0, lt=1)]


class DatasetError(core.CodiembError, ValueError):
    """A registry that cannot be read, or no data set or split of this name."""


class PinnedFile(core.Settings):
    """A file and its bytes: inside an installed package, else of the data root or an address."""

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    package: str = ""
    url: str = ""  # empty: it is not fetched


class Package(core.Settings):
    """An installed package whose whole folder a script reads; its version stands for its bytes."""

    distribution: str  # its name for pip
    licence: str


class Entry(core.Settings):
    """What every data set of the registry says about itself."""

    name: str
    task: core.Task
    licence: str
    provenance: str


class FilesEntry(Entry):
    """Files of a known form: one for each split, or all of a BEIR folder, its corpus first."""

    files: dict[Split, PinnedFile] | Annotated[tuple[PinnedFile, ...], Field(min_length=1)]
    columns: tuple[str | int, ...] = ()
    scale: Scale | None = None  # lowest and highest score
    dev: Share | None = None  # how much of train becomes dev

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        there = {"dev"} if self.dev else set()
        one_each = isinstance(self.files, dict)
        there |= {*self.files} if one_each else {Path(file.path).stem for file in self.files}
        return tuple(split for split in SPLITS if split in there)


class HubEntry(Entry):
    """A data set of the Hugging Face Hub: downloaded when it is loaded, and only then."""

    hub: str  # organisation/name
    config: str = ""
    revision: str = ""  # a commit, so that nobody changes it under us
    splits: Annotated[dict[Split, str], Field(min_length=1)]
    columns: tuple[str, ...]  # two texts and their score, or query, positive, negative
    scale: Scale | None = None  # lowest and highest score

    @model_validator(mode="after")
    def _columns_fit_the_task(self) -> HubEntry:
        check_columns(self.hub, self.task, self.columns, self.scale)
        return self


class BuildEntry(Entry):
    """What a script makes: its `build(sources, **options)` gives splits and a corpus.

    Of what comes in one piece, `fractions` say how the script cuts it into splits.
    """

    build: Annotated[str, Field(pattern=r"^\w+$")]  # data/build/NAME.py
    options: dict[str, Any] = {}
    files: dict[str, PinnedFile] = {}  # these two are the sources, by name
    packages: dict[str, Package] = {}
    fractions: dict[Split, Share] | None = None  # an option of the script too
    splits: ClassVar = SPLITS

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> BuildEntry:
        if self.fractions is None:
            return self
        if tuple(self.fractions) != SPLITS or abs(sum(self.fractions.values()) - 1) > 1e-9:
            raise ValueError("`fractions` must name train, dev, test in this order and sum to 1")
        return self


def list_datasets(registry: str | Path | None = None) -> list[Entry]:
    """The entries of `data/registry.yaml`, or of another registry, in the order of the file.

    Raises:
        DatasetError: It is no YAML, or an entry has an unknown or wrong key.
    """
    path = Path(registry) if registry else core.project_root() / "data" / "registry.yaml"
    content = core.read_settings(path, RootModel[dict[str, dict[str, Any]]], DatasetError).root
    return [_entry(path, name, settings) for name, settings in content.items()]


def _entry(path: Path, name: str, settings: dict[str, Any]) -> Entry:
    kind = HubEntry if "hub" in settings else BuildEntry if "build" in settings else FilesEntry
    try:
        return kind.model_validate(settings | {"name": name})
    except ValidationError as error:
        raise DatasetError(f"{path}: data set {name!r}: {core.explain(error)}") from error


def public_files(entries: Iterable[Entry]) -> Iterator[PinnedFile]:
    """The files of entries that lie in the data root or are fetched."""
    for entry in entries:
        files = getattr(entry, "files", ())
        for file in files.values() if isinstance(files, dict) else files:
            if not file.package:
                yield file


def package_folder(package: str, file: str = "") -> Path:
    """The folder of an installed package, or a file in it; the package is not imported."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (path := Path(folder, file)).exists():
            return path
    raise SourceError(
        f"expected the installed package {package!r}{file and f' with {file}'}, found none. "
        f"Install it: pip install --force-reinstall {package}"
    )


def find_file(file: PinnedFile, root: Path | None, fetched: Path) -> Path:
    """A pinned file: of its package, of the data root, of those fetched before, or of its address.

    A SourceError says that it is nowhere, or that its bytes are not those that the registry pins.
    """
    if file.package:
        path, remedy = package_folder(file.package, file.path), f"Reinstall {file.package}"
    elif root and (root / file.path).is_file():
        path, remedy = root / file.path, "Take the file of the release that data/README.md names"
    else:
        path, remedy = fetched / file.path, "Remove it, to have it fetched again"
        if not path.is_file():
            _fetch(file, path, root)
    if (found := core.sha256_file(path)) != file.sha256:
        raise SourceError(
            f"{path}: expected sha256 {file.sha256}, found {found}. {remedy}; if the file has "
            "changed on purpose, look at it, then correct data/registry.yaml."
        )
    return path


def _fetch(file: PinnedFile, path: Path, root: Path | None) -> None:
    import pooch  # only here: whoever has the files needs no network

    remedy = "Set CODIEMB_DATA, or the preset's `data_root`, to a folder that has it"
    if not file.url:
        raise SourceError(
            f"{file.path}: expected this file in the data root, found none in {root or 'no root'}. "
            f"{remedy}; data/README.md says how it was made."
        )
    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # no connection; other bytes, which pooch does not keep
        raise SourceError(
            f"{file.url}: expected sha256 {file.sha256}, found: {error}. {remedy}, as {file.path}."
        ) from error
