"""The registry: what an entry may say; files that are missing, fetched, or have changed."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections import Counter
from functools import partial

import pytest
import yaml

from codiemb_lib.core.files import data_root, sha256_file
from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.data.formats import SPLITS, read_beir
from codiemb_lib.data.records import Record, SourceError
from codiemb_lib.data.registry import DatasetError, HubEntry, list_datasets, public_files

EMBEDDED = ["api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity"]
SIZES = {
    "stsb": (5749, 1500, 1379),
    "sick": (4500, 500, 4927),
    "squad-sentences": (10643, 1165, 10529),
    "scifact": (727, 82, 300),
    "medquad": (10487, 1425, 3067),
}
HUB = {
    "task": "sts",
    "hub": "somebody/pairs",
    "splits": {"train": "train", "test": "validation"},
    "columns": ["left", "right", "rating"],
    "scale": [0, 5],
    "licence": "none",
    "provenance": "none",
}
ROOT = data_root("../shared/data")
real_files = pytest.mark.skipif(
    not all((ROOT / name).is_dir() for name in ("stsb-en", "sick", "squad-nqg", "medquad")),
    reason=f"no public sets in {ROOT}: set CODIEMB_DATA",
)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("CODIEMB_DATA", raising=False)


# --- Entries ---


def test_the_registry_lists_every_data_set_with_its_origin():
    entries = list_datasets()
    assert {*EMBEDDED, *SIZES} <= {entry.name for entry in entries}
    for entry in entries:
        assert entry.licence
        assert entry.provenance
        if isinstance(entry, HubEntry):
            assert len(entry.revision) == 40  # pinned
            assert len(set(entry.splits.values())) == len(entry.splits)  # none serves twice
        else:
            assert entry.splits == SPLITS


def test_public_files_are_those_with_a_place_in_the_data_root():
    found = {entry.name: [f.path for f in public_files([entry])] for entry in list_datasets()}
    assert set(SIZES) == {name for name, files in found.items() if files}
    assert found["sick"] == [f"sick/SICK_{s}.txt" for s in ("train", "trial", "test_annotated")]
    assert len(found["squad-sentences"]) == 4  # questions and passages, twice
    assert found["scifact"][0] == "scifact/corpus.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licenze": "MIT"}, "unknown key 'licenze'"),
        ({"build": "../script"}, "build"),
        ({"fractions": {"train": 0.6, "dev": 0.3, "test": 0.3}}, "sum to 1"),
        ({"files": {"pairs": {"path": "x", "sha256": "abc"}}}, r"files\.pairs\.sha256"),
        ({"task": "classify"}, "task"),
    ],
)
def test_a_wrong_registry_is_refused(registry, change, message):
    with pytest.raises(DatasetError, match=rf"data set 'simlex-999'.*{message}"):
        list_datasets(registry(simlex_999=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["left", "right"]}, "two texts and their score"),
        ({"scale": None}, "two texts and their score"),
        ({"scale": [5, 0]}, "LOW < HIGH"),
        ({"task": "ir"}, "no scale"),
        ({"splits": {}}, r"splits: .*at least 1 item"),
        ({"splits": {"validation": "validation"}}, "splits"),
        ({"fractions": {"train": 1}}, "unknown key 'fractions'"),
    ],
)
def test_a_wrong_hub_entry_is_refused(registry, change, message):
    with pytest.raises(DatasetError, match=rf"data set 'mine'.*{message}"):
        list_datasets(registry(mine=HUB | change))


def test_a_registry_that_is_missing_or_no_mapping(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.yaml: expected a file that can be read"):
        list_datasets(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(DatasetError, match="valid dictionary"):
        list_datasets(tmp_path / "list.yaml")


# --- Files of packages ---


def test_a_file_of_a_package_that_changed_or_is_missing_is_named_with_the_remedy(registry, cache):
    for change, message in [
        ({"sha256": "0" * 64}, r"expected sha256 0{64}, found f92a022f.*Reinstall gensim"),
        ({"package": "gensimm"}, r"'gensimm' with .*, found none.*pip install"),
        ({"path": "nowhere.txt"}, r"'gensim' with nowhere\.txt, found none.*pip install"),
    ]:
        [entry] = [entry for entry in list_datasets() if entry.name == "wordsim-353"]
        file = entry.files["pairs"].model_dump() | change
        with pytest.raises(SourceError, match=message):
            load_dataset("wordsim-353", registry=registry(wordsim_353={"files": {"pairs": file}}))
    package = {"numpyy": {"distribution": "numpyy", "licence": "none"}}
    with pytest.raises(SourceError, match="'numpyy', found none"):
        load_dataset("api-docs", registry=registry(api_docs={"packages": package}), cache=cache)


# --- Files of the data root, and fetched ones ---


@pytest.fixture
def make(tmp_path):
    """Writes files below `tmp_path/root` and a registry with an entry of them; gives options."""

    def make(entry: dict, contents: dict[str, str], url: str = "") -> dict:
        pins = {}
        for name, content in contents.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            pins[name] = {"path": name, "sha256": sha256_file(path), "url": url and url + name}
        files = entry["files"]
        if isinstance(files, dict):
            files = {split: pins[name] for split, name in files.items()}
        else:
            files = [pins[name] for name in files]
        entry = {"licence": "none", "provenance": "made up"} | entry | {"files": files}
        registry = tmp_path / "registry.yaml"
        registry.write_text(yaml.safe_dump({"made-up": entry}, sort_keys=False))
        return {
            "registry": registry,
            "root": str(tmp_path / "root"),
            "cache": tmp_path / "cache",
        }

    return make


PAIRS = {"task": "sts", "scale": [0, 5], "files": {"train": "set/a.csv", "test": "set/b.csv"}}
FILES = {"set/a.csv": "a cat,the cat,5\na dog,a bus,1\n", "set/b.csv": "a car,a bus,2.5\n"}


def test_rated_pairs_come_from_the_data_root(make, monkeypatch):
    options = make(PAIRS, FILES)
    dataset = load_dataset("made-up", **options)
    assert len(dataset.splits["train"]) == 2
    pair = Record("sts", "a car", ("a bus",), (), (0.5,), dataset="made-up", id="test-0")
    assert dataset.splits["test"] == (pair,)
    assert dataset.corpus == ()
    monkeypatch.setenv("CODIEMB_DATA", options.pop("root"))
    assert load_dataset("made-up", **options) == dataset


def test_a_file_that_is_nowhere_or_has_other_bytes_is_named_with_the_remedy(make, tmp_path):
    options = make(PAIRS, FILES)
    (tmp_path / "root" / "set" / "b.csv").unlink()
    with pytest.raises(SourceError, match=r"set/b\.csv: expected.*CODIEMB_DATA"):
        load_dataset("made-up", **options)
    with pytest.raises(SourceError, match="found none in no root"):
        load_dataset("made-up", **options | {"root": ""})
    options = make(PAIRS, FILES, url="http://localhost:1/")
    (tmp_path / "root" / "set" / "a.csv").write_text("a,b,1\n")
    with pytest.raises(SourceError, match=r"a\.csv: expected sha256 .* found"):
        load_dataset("made-up", **options)  # and not replaced


@pytest.fixture
def served(tmp_path):
    """The address of a server of `tmp_path/root` on this machine."""
    handler = partial(_Quiet, directory=tmp_path / "root")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_what_the_root_lacks_is_fetched_once_and_checked(make, served, tmp_path):
    options = make(PAIRS, FILES, url=served) | {"root": ""}
    fetched = load_dataset("made-up", **options)
    assert len(fetched.splits["train"]) == 2
    (tmp_path / "root" / "set" / "a.csv").write_text("a,b,1\n")
    assert load_dataset("made-up", **options) == fetched
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(SourceError, match=r"a\.csv: expected sha256"):
        load_dataset("made-up", **options)
    assert not list((tmp_path / "cache").rglob("a.csv"))


def test_an_address_that_cannot_be_reached_is_named_with_the_remedy(make):
    options = make(PAIRS, FILES, url="http://127.0.0.1:1/") | {"root": ""}
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1.*expected a file.*CODIEMB_DATA"):
        load_dataset("made-up", **options)


def test_a_beir_set_brings_its_whole_corpus_also_by_its_path(make, tmp_path, monkeypatch):
    def lines(*rows):
        return "".join(json.dumps(row) + "\n" for row in rows)

    files = {
        "b/corpus.jsonl": lines(*({"_id": f"d{i}", "text": f"text {i}"} for i in range(60))),
        "b/queries.jsonl": lines(*({"_id": f"q{i}", "text": f"query {i}"} for i in range(50))),
        "b/qrels/train.tsv": "".join(f"q{i}\td{i}\t1\n" for i in range(40)),
        "b/qrels/test.tsv": "".join(f"q{i}\td{i}\t1\n" for i in range(40, 50)),
    }
    dataset = load_dataset("made-up", **make({"task": "ir", "dev": 0.2, "files": [*files]}, files))
    assert tuple(dataset.splits) == SPLITS
    assert sum(len(dataset.splits[split]) for split in SPLITS) == 50
    assert dataset.corpus == tuple(f"text {i}" for i in range(60))
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.yaml").write_text("{}")
    local = load_dataset("root/b")
    assert local.corpus == dataset.corpus
    assert local.splits["test"][0].positives == ("text 40",)


def test_a_hub_data_set_of_the_registry(registry, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the optional package of the Hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"left": f"a {i}", "right": f"b {i}", "rating": i % 6} for i in range(40)]
    for split, members in (("train", rows[:30]), ("validation", rows[30:])):
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in members))
    splits = {"test": "validation", "train": "train[20%:]", "dev": "train[:20%]"}
    entry = HUB | {"hub": str(tmp_path / "hub"), "splits": splits}
    dataset = load_dataset("mine", registry=registry(mine=entry))
    sizes = [(split, len(records)) for split, records in dataset.splits.items()]
    assert sizes == [("train", 24), ("dev", 6), ("test", 10)]
    expected = Record("sts", "a 3", ("b 3",), positive_scores=(0.6,), dataset="mine")
    assert dataset.splits["dev"][3] == expected


# --- The real files ---


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Loads a public set from the data root, built once."""
    cache = tmp_path_factory.mktemp("cache")
    return lambda name: load_dataset(name, root=str(ROOT), cache=cache)


@real_files
@pytest.mark.parametrize("name", SIZES)
def test_the_sets_have_their_sizes_without_a_network(name, public, no_network):
    dataset = public(name)
    assert tuple(len(dataset.splits[split]) for split in SPLITS) == SIZES[name]
    assert bool(dataset.corpus) == (dataset.task == "ir")
    assert {r.task for split in SPLITS for r in dataset.splits[split]} == {dataset.task}
    for split in SPLITS:
        assert max(Counter(record.id for record in dataset.splits[split]).values()) == 1


@real_files
def test_squad_sentences_are_those_of_the_beir_folder(public):
    """The folder beside the lines was made from them by others, who left braces as tokens."""

    def texts(records):
        pairs = ((record.query, text) for record in records for text in record.positives)
        return {
            tuple(t.replace("-lcb-", "{").replace("-rcb-", "}") for t in pair) for pair in pairs
        }

    dataset, beir = public("squad-sentences"), read_beir(ROOT / "squad-nqg")
    assert texts(dataset.splits["test"]) == texts(beir["dev"])
    assert texts(dataset.splits["train"] + dataset.splits["dev"]) == texts(beir["train"])
    assert len(dataset.corpus) == 13447
