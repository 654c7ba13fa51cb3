"""The registry: what an entry may say, and files that are missing or have changed."""

from __future__ import annotations

import pytest

from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.data.formats import SPLITS, MissingSourceError
from codiemb_lib.data.registry import (
    ChecksumError,
    HubEntry,
    RegistryError,
    list_datasets,
    public_files,
)

NAMES = ["api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity"]
PUBLIC = ["stsb", "sick", "squad-sentences", "scifact", "medquad"]  # see test_public_sets
HUB = {
    "reader": "hub",
    "task": "sts",
    "repository": "somebody/pairs",
    "splits": {"train": "train", "test": "validation"},
    "columns": ["left", "right", "rating"],
    "scale": [0, 5],
    "licence": "none",
    "provenance": "none",
}


def test_the_registry_lists_every_data_set_with_its_origin():
    entries = list_datasets()
    embedded = entries[: len(NAMES)]
    assert [entry.name for entry in embedded] == NAMES
    assert [entry.task for entry in embedded] == ["ir", "ir", "sts", "sts", "sts"]
    public = entries[len(NAMES) : len(NAMES) + len(PUBLIC)]
    assert [entry.name for entry in public] == PUBLIC
    assert all(entry.splits == SPLITS for entry in embedded + public)
    for entry in entries[len(NAMES) + len(PUBLIC) :]:
        assert isinstance(entry, HubEntry)
        assert entry.name.startswith("cmteb-")
        assert len(entry.revision) == 40  # pinned
        assert len(set(entry.splits.values())) == len(entry.splits)  # none serves twice
    for entry in entries:
        assert entry.licence
        assert entry.provenance


def test_public_files_are_those_with_a_place_in_the_data_root():
    entries = {entry.name: entry for entry in list_datasets()}
    found = {name: [file.path for file in public_files(entry)] for name, entry in entries.items()}
    assert {name for name, files in found.items() if files} == set(PUBLIC)
    assert found["sick"] == [f"sick/SICK_{s}.txt" for s in ("train", "trial", "test_annotated")]
    assert len(found["squad-sentences"]) == 4  # questions and passages, twice
    assert found["scifact"][0] == "scifact/corpus.jsonl"
    assert [file.path for file in public_files(list(entries.values()))] == [
        path for files in found.values() for path in files
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licenze": "MIT"}, "licenze: Extra inputs are not permitted"),
        ({"reader": "pickle"}, "reader"),
        ({"fractions": {"train": 0.6, "dev": 0.3, "test": 0.3}}, "sum to 1"),
        ({"pairs": {"path": "x", "sha256": "abc"}}, r"pairs\.sha256"),
        ({"task": "classify"}, "task"),
    ],
)
def test_a_wrong_registry_is_refused(registry, change, message):
    with pytest.raises(RegistryError, match=rf"data set 'simlex-999'.*{message}"):
        list_datasets(registry(simlex_999=change))


def test_a_registry_that_is_missing_or_no_mapping(tmp_path):
    with pytest.raises(RegistryError, match="expected a YAML registry"):
        list_datasets(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(RegistryError, match="expected a mapping"):
        list_datasets(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["left", "right"]}, "two texts and their score"),
        ({"scale": None}, "two texts and their score"),
        ({"scale": [5, 0]}, "LOW < HIGH"),
        ({"task": "ir"}, "no scale"),
        ({"splits": {}}, r"splits: .*at least 1 item"),
        ({"splits": {"validation": "validation"}}, "splits"),
        ({"fractions": {"train": 1}}, "fractions: Extra inputs"),
    ],
)
def test_a_wrong_hub_entry_is_refused(registry, change, message):
    with pytest.raises(RegistryError, match=rf"data set 'mine'.*{message}"):
        list_datasets(registry(mine=HUB | change))


def test_a_changed_source_file_is_refused(registry):
    path = registry(
        wordsim_353={"pairs": {"path": "test/test_data/wordsim353.tsv", "sha256": "0" * 64}}
    )
    with pytest.raises(ChecksumError, match=r"expected sha256 0{64}, found f92a022f.*Reinstall"):
        load_dataset("wordsim-353", registry=path)


def test_a_missing_package_or_file_is_named_with_the_remedy(registry, cache):
    path = registry(lee_news={"package": "gensimm"})
    with pytest.raises(MissingSourceError, match=r"'gensimm', found none.*pip install"):
        load_dataset("lee-news", registry=path)
    path = registry(simlex_999={"pairs": {"path": "nowhere.txt", "sha256": "0" * 64}})
    with pytest.raises(MissingSourceError, match=r"no file .*nowhere\.txt.*pip install"):
        load_dataset("simlex-999", registry=path)
    package = {"distribution": "numpyy", "limit": 9, "licence": "none"}
    path = registry(api_docs={"packages": {"numpyy": package}})
    with pytest.raises(MissingSourceError, match="'numpyy', found none"):
        load_dataset("api-docs", registry=path, cache=cache)
