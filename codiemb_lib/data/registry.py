"""The registry of data sets: what an entry may say, and where the files that it names are.

`data/registry.yaml` has an entry a data set; its `reader` decides which of the models below checks
it, and unknown keys are refused. Files are pinned to their bytes and come from three places: an
installed package, which is found and never imported; the data root; or a download, kept for later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from codiemb_lib.core import CodiembError, Task, project_root, sha256_file
from codiemb_lib.data.formats import SPLITS, MissingSourceError, Scale, check_columns


class RegistryError(CodiembError, ValueError):
    """The registry says something that cannot be read."""


class ChecksumError(CodiembError, ValueError):
    """A source file has other bytes than the registry says."""


# --- Entries --------------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(_Strict):
    """A file inside an installed package, pinned to its bytes."""

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PackageDocs(_Strict):
    """A package whose docstrings are read."""

    distribution: str  # its name for pip
    licence: str
    limit: Annotated[int, Field(ge=1)]  # most entries, so that no package dominates
    private: tuple[str, ...] = ()  # folders with a leading underscore that hold public objects
    skip: tuple[str, ...] = ()  # folders that few users of the package meet


class Entry(_Strict):
    """What every data set of the registry says about itself."""

    name: str
    task: Task
    licence: str
    provenance: str


class CutEntry(Entry):
    """A data set that comes in one piece, and that we cut into splits."""

    fractions: dict[Literal["train", "dev", "test"], Annotated[float, Field(gt=0, lt=1)]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(self.fractions)

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Entry:
        if tuple(self.fractions) != SPLITS or abs(sum(self.fractions.values()) - 1) > 1e-9:
            raise ValueError("`fractions` must name train, dev, test in this order and sum to 1")
        return self


class DocstringsEntry(CutEntry):
    """Retrieval from API documentation."""

    reader: Literal["docstrings"]
    words: tuple[int, int]
    negatives: Annotated[int, Field(ge=0)]
    packages: dict[str, PackageDocs]


class LeeNewsEntry(CutEntry):
    """Retrieval of a news article by its first sentence."""

    reader: Literal["lee_news"]
    package: str
    background: SourceFile
    documents: SourceFile


class WordPairsEntry(CutEntry):
    """Rated word pairs, one a line, separated by tabs."""

    reader: Literal["word_pairs"]
    package: str
    pairs: SourceFile
    scale: Annotated[float, Field(gt=0)]


class LeeSimilarityEntry(CutEntry):
    """Rated pairs of documents, in the upper triangle of a matrix."""

    reader: Literal["lee_similarity"]
    package: str
    documents: SourceFile
    similarities: SourceFile


class HubEntry(Entry):
    """A data set of the Hugging Face Hub: downloaded when it is loaded, and only then."""

    reader: Literal["hub"]
    repository: str  # organisation/name
    config: str = ""
    revision: str = ""  # a commit, so that nobody changes it under us
    splits: Annotated[dict[Literal["train", "dev", "test"], str], Field(min_length=1)]
    columns: tuple[str, ...]  # two texts and their score, or query, positive, negative
    scale: Scale | None = None  # lowest and highest score

    @model_validator(mode="after")
    def _columns_fit_the_task(self) -> HubEntry:
        check_columns(self.repository, self.task, self.columns, self.scale)
        return self


class PublicFile(SourceFile):
    """A file of a public data set: its place in the data root, and where else it may come from."""

    url: str = ""  # empty: it is not fetched


class RatedPairsEntry(Entry):
    """Rated pairs, a table for each split."""

    reader: Literal["rated_pairs"]
    files: dict[Literal["train", "dev", "test"], PublicFile]
    columns: tuple[str, str, str] | tuple[int, int, int]
    scale: Scale

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(self.files)


class CutDevEntry(Entry):
    """A retrieval set with train and test, of which we take dev out of train."""

    dev: Annotated[float, Field(gt=0, lt=1)]  # its share of train
    splits: ClassVar[tuple[str, ...]] = SPLITS


class AlignedFiles(_Strict):
    """Questions, and the passage that answers each on the same line of another file."""

    queries: PublicFile
    passages: PublicFile


class AlignedEntry(CutDevEntry):
    """Retrieval of the passages that stand beside questions."""

    reader: Literal["aligned"]
    files: dict[Literal["train", "test"], AlignedFiles]


class BeirEntry(CutDevEntry):
    """A BEIR folder of the data root."""

    reader: Literal["beir"]
    files: Annotated[tuple[PublicFile, ...], Field(min_length=1)]  # the corpus first


class QuestionsEntry(CutEntry):
    """Questions and answers in groups, about one matter each, which no split divides."""

    reader: Literal["questions"]
    file: PublicFile
    columns: tuple[str, str]  # question, answer
    group: str  # the column that names the matter
    negatives: Annotated[int, Field(ge=0)]  # at most: answers to other questions of the group


AnyEntry = Annotated[
    DocstringsEntry
    | LeeNewsEntry
    | WordPairsEntry
    | LeeSimilarityEntry
    | RatedPairsEntry
    | AlignedEntry
    | BeirEntry
    | QuestionsEntry
    | HubEntry,
    Field(discriminator="reader"),
]


_ENTRY: TypeAdapter[Entry] = TypeAdapter(AnyEntry)


def list_datasets(registry: str | Path | None = None) -> list[Entry]:
    """The entries of `data/registry.yaml`, or of another registry, in the order of the file.

    Raises:
        RegistryError: The file is missing, no YAML, or an entry has an unknown or wrong key.
    """
    path = Path(registry) if registry else project_root() / "data" / "registry.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RegistryError(f"{path}: expected a YAML registry, found: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(e, dict) for e in content.values()):
        raise RegistryError(f"{path}: expected a mapping of data set names to their settings.")
    return [_entry(path, name, settings) for name, settings in content.items()]


def _entry(path: Path, name: str, settings: dict) -> Entry:
    try:
        return _ENTRY.validate_python(settings | {"name": name})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'][1:])) or 'reader'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise RegistryError(f"{path}: data set {name!r}: {problems}.") from error


# --- Files of installed packages ------------------------------------------------------------------


def version(entry: Entry, distribution: str) -> str:
    """An installed package that an entry reads, with its version, as in "numpy==2.0".

    Raises:
        MissingSourceError: It is not installed.
    """
    try:
        return f"{distribution}=={metadata.version(distribution)}"
    except metadata.PackageNotFoundError as error:
        raise MissingSourceError(_missing(entry, distribution, "none")) from error


def _missing(entry: Entry, package: str, found: str) -> str:
    return (
        f"data set {entry.name!r}: expected the installed package {package!r}, found {found}. "
        f"Install it: pip install --force-reinstall {package}"
    )


def package_folder(entry: Entry, package: str) -> Path:
    """The folder of an installed package that an entry reads.

    Raises:
        MissingSourceError: It is not installed.
    """
    spec = find_spec(package)  # finds a package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise MissingSourceError(_missing(entry, package, "none"))
    return Path(spec.submodule_search_locations[0])


def source_lines(entry: Entry, package: str, source: SourceFile) -> list[str]:
    """The lines of a file in an installed package.

    Raises:
        MissingSourceError: The package or the file is not there.
        ChecksumError: Its bytes are not those that the registry pins.
    """
    path = package_folder(entry, package) / source.path
    if not path.is_file():
        raise MissingSourceError(_missing(entry, package, f"no file {path}"))
    _check_bytes(path, source, f"Reinstall {package}")
    # Latin-1, as the Lee files are; the word lists are plain ASCII.
    return path.read_text(encoding="latin-1").strip("\n").split("\n")


# --- Public files ---------------------------------------------------------------------------------


def public_files(part: object) -> Iterator[PublicFile]:
    """All public files that stand in an entry, in several, or in a part of one."""
    if isinstance(part, PublicFile):
        yield part
    elif isinstance(part, BaseModel | Mapping):
        yield from public_files(tuple(dict(part).values()))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for member in part:
            yield from public_files(member)


def find_file(file: PublicFile, root: Path | None, fetched: Path) -> Path:
    """A public file: of the data root, else of those fetched before, else fetched from its URL.

    Raises:
        MissingSourceError: It is in neither folder and has no URL, or that cannot be reached.
        ChecksumError: Its bytes are not those that the registry pins.
    """
    if root and (path := root / file.path).is_file():
        _check_bytes(path, file, "Take the file of the release that data/README.md names")
        return path
    path = fetched / file.path
    if not path.is_file():
        if not file.url:
            where = root or "a data root, for none is named"
            raise MissingSourceError(
                f"{file.path}: expected this file in the data root, found none in {where}. Set "
                "CODIEMB_DATA, or the preset's `data_root`, to a folder that has it; "
                "data/README.md says how it was made."
            )
        _fetch(file, path)
    _check_bytes(path, file, "Remove it, to have it fetched again")
    return path


def _check_bytes(path: Path, source: SourceFile, remedy: str) -> None:
    if (found := sha256_file(path)) != source.sha256:
        raise ChecksumError(
            f"{path}: expected sha256 {source.sha256}, found {found}. {remedy}; if the file has "
            "changed on purpose, look at it, then correct data/registry.yaml."
        )


def _fetch(file: PublicFile, path: Path) -> None:
    import pooch  # only here: whoever has the files needs no network

    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
    except OSError as error:  # those of requests are such
        raise MissingSourceError(
            f"{file.url}: expected a file to fetch, found: {error}. Without a connection, put it "
            f"into the data root as {file.path}, and name that folder by CODIEMB_DATA."
        ) from error
    except ValueError as error:  # other bytes, which pooch does not keep
        raise ChecksumError(f"{file.url}: expected sha256 {file.sha256}, found: {error}") from error
