"""Public sets: where their files are found, how they are split, and that none needs a network."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import pytest
import yaml

from codiemb_lib.core.files import data_root, sha256_file
from codiemb_lib.core.words import normalise
from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.data.entries import cut_dev
from codiemb_lib.data.formats import SPLITS, MissingSourceError, read_beir
from codiemb_lib.data.records import Record, read_rows
from codiemb_lib.data.registry import ChecksumError

SIZES = {
    "stsb": (5749, 1500, 1379),
    "sick": (4500, 500, 4927),
    "squad-sentences": (10708, 1169, 10570),
    "scifact": (727, 82, 300),
    "medquad": (10487, 1425, 3067),
}
ROOT = data_root("../shared/data")
real_files = pytest.mark.skipif(
    not all((ROOT / name).is_dir() for name in ("stsb-en", "sick", "squad-nqg", "medquad")),
    reason=f"no public sets in {ROOT}: set CODIEMB_DATA",
)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("CODIEMB_DATA", raising=False)


@pytest.fixture
def make(tmp_path):
    """Writes the files of an entry in `tmp_path/root` and a registry with it; gives the options."""

    def make(entry: dict, contents: dict[str, str | bytes], url: str = "") -> dict:
        pins = {}
        for name, content in contents.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            pins[name] = {"path": name, "sha256": sha256_file(path)}
            if url:
                pins[name]["url"] = url + name
        filled = json.loads(json.dumps(entry), object_hook=partial(_fill, pins))
        registry = tmp_path / "registry.yaml"
        entry = {"licence": "none", "provenance": "made up"} | filled
        registry.write_text(yaml.safe_dump({"made-up": entry}, sort_keys=False))
        return {
            "registry": registry,
            "root": str(tmp_path / "root"),
            "cache": tmp_path / "cache",
        }

    return make


def _fill(pins: dict, found: dict) -> dict:
    """The pins of files in the place of their names."""
    for key, value in found.items():
        if isinstance(value, list):
            found[key] = [pins.get(v, v) if isinstance(v, str) else v for v in value]
        elif isinstance(value, str):
            found[key] = pins.get(value, value)
    return found


PAIRS = {
    "reader": "rated_pairs",
    "task": "sts",
    "columns": [0, 1, 2],
    "scale": [0, 5],
    "files": {"train": "set/a.csv", "test": "set/b.csv"},
}
FILES = {"set/a.csv": "a cat,the cat,5\na dog,a bus,1\n", "set/b.csv": "a car,a bus,2.5\n"}


def test_rated_pairs_come_from_the_data_root(make):
    dataset = load_dataset("made-up", **make(PAIRS, FILES))
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 2,
        "test": 1,
    }
    [pair] = dataset.splits["test"]
    assert (pair.query, pair.positives, pair.score) == ("a car", ("a bus",), 0.5)
    assert pair.dataset == "made-up"
    assert dataset.corpus == ()


def test_the_variable_names_the_root_where_the_caller_does_not(make, monkeypatch):
    options = make(PAIRS, FILES)
    monkeypatch.setenv("CODIEMB_DATA", options.pop("root"))
    assert len(load_dataset("made-up", **options).splits["train"]) == 2


def test_a_file_that_is_nowhere_is_named_with_the_remedy(make, tmp_path):
    options = make(PAIRS, FILES)
    (tmp_path / "root" / "set" / "b.csv").unlink()
    with pytest.raises(MissingSourceError, match=r"set/b\.csv: expected.*CODIEMB_DATA"):
        load_dataset("made-up", **options)
    with pytest.raises(MissingSourceError, match="found none in a data root, for none is named"):
        load_dataset("made-up", **options | {"root": ""})


def test_a_file_with_other_bytes_is_refused_and_not_replaced(make, tmp_path):
    options = make(PAIRS, FILES, url="http://localhost:1/")
    (tmp_path / "root" / "set" / "a.csv").write_text("a,b,1\n")
    with pytest.raises(ChecksumError, match=r"a\.csv: expected sha256 .* found"):
        load_dataset("made-up", **options)


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


def test_what_the_root_lacks_is_fetched_once(make, served, tmp_path):
    options = make(PAIRS, FILES, url=served) | {"root": ""}
    fetched = load_dataset("made-up", **options)
    assert len(fetched.splits["train"]) == 2
    for name in FILES:
        (tmp_path / "root" / name).unlink()  # the server has no more of it
    assert load_dataset("made-up", **options) == fetched


def test_a_fetched_file_with_other_bytes_is_refused(make, served, tmp_path):
    options = make(PAIRS, FILES, url=served) | {"root": ""}
    (tmp_path / "root" / "set" / "a.csv").write_text("a,b,1\n")
    with pytest.raises(ChecksumError, match=r"a\.csv: expected sha256"):
        load_dataset("made-up", **options)
    assert not list((tmp_path / "cache").rglob("a.csv"))


def test_an_address_that_cannot_be_reached_is_named_with_the_remedy(make):
    options = make(PAIRS, FILES, url="http://127.0.0.1:1/") | {"root": ""}
    with pytest.raises(MissingSourceError, match=r"127\.0\.0\.1:1.*expected a file.*data root as"):
        load_dataset("made-up", **options)


def test_aligned_files_give_dev_and_a_corpus_of_all_splits(make):
    entry = {
        "reader": "aligned",
        "task": "ir",
        "dev": 0.3,
        "files": {
            "train": {"queries": "q-train", "passages": "p-train"},
            "test": {"queries": "q-test", "passages": "p-test"},
        },
    }
    files = {
        "q-train": "".join(f"who is {i} ?\n" for i in range(60)),
        "p-train": "".join(f"number {i // 2} is\n" for i in range(60)),
        "q-test": "what ?\n",
        "p-test": "that\n",
    }
    dataset = load_dataset("made-up", **make(entry, files))
    assert tuple(dataset.splits) == SPLITS
    assert 0 < len(dataset.splits["dev"]) < 30
    passages = {split: {r.positives for r in records} for split, records in dataset.splits.items()}
    assert not passages["train"] & passages["dev"]
    assert set(dataset.corpus) == {f"number {i} is" for i in range(30)} | {"that"}


def test_dev_has_no_passage_of_test():
    train = [Record("ir", f"q{i}", (f"p{i}", "Shared!")) for i in range(50)]
    test = [Record("ir", "q", ("shared",))]
    assert cut_dev({"train": train, "test": test}, 0.5) == {
        "train": train,
        "dev": [],
        "test": test,
    }
    other = [Record("ir", "q", ("other",))]
    cut = cut_dev({"train": train, "test": other}, 0.5)
    # All share a passage, but what decides is the first in the alphabet, p0, p1, ...
    assert 10 < len(cut["dev"]) < 40
    assert cut_dev({"train": train[::-1], "test": other}, 0.5)["dev"] == cut["dev"][::-1]


def test_questions_of_a_group_stay_together_and_lend_each_other_negatives(make):
    rows = [
        {
            "about": f"Matter {i // 3}" if i < 297 else "",
            "question": f"question {i} ?",
            "answer": f"answer {i}" if i % 3 else f"answer {i + 1}",
        }
        for i in range(300)
    ]
    entry = {
        "reader": "questions",
        "task": "ir",
        "fractions": {"train": 0.6, "dev": 0.2, "test": 0.2},
        "columns": ["question", "answer"],
        "group": "about",
        "negatives": 2,
        "file": "qa.jsonl.gz",
    }
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    dataset = load_dataset("made-up", **make(entry, {"qa.jsonl.gz": packed}))
    records = {r.query: (split, r) for split in SPLITS for r in dataset.splits[split]}
    assert len(records) == 300
    answers = {row["question"]: row["answer"] for row in rows}
    group = {row["question"]: row["about"] for row in rows}
    by_group = defaultdict(set)
    for query, (split, record) in records.items():
        if group[query]:
            by_group[group[query]].add(split)
            siblings = {answers[q] for q in group if group[q] == group[query]}
            assert set(record.negatives) == siblings - {answers[query]}
        else:
            assert record.negatives == ()  # alone
    assert all(len(splits) == 1 for splits in by_group.values())
    assert set(dataset.corpus) == set(answers.values())


def test_a_beir_set_brings_its_whole_corpus_also_by_its_path(make, tmp_path, monkeypatch):
    documents = [{"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(60)]
    files = {
        "b/corpus.jsonl": "".join(json.dumps(row) + "\n" for row in documents),
        "b/queries.jsonl": "".join(
            json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in range(50)
        ),
        "b/qrels/train.tsv": "".join(f"q{i}\td{i}\t1\n" for i in range(40)),
        "b/qrels/test.tsv": "".join(f"q{i}\td{i}\t1\n" for i in range(40, 50)),
    }
    entry = {"reader": "beir", "task": "ir", "dev": 0.2, "files": [*files]}
    dataset = load_dataset("made-up", **make(entry, files))
    assert sum(len(dataset.splits[split]) for split in SPLITS) == 50
    assert dataset.corpus == tuple(f"text {i}" for i in range(60))
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.yaml").write_text("{}")
    local = load_dataset("root/b")
    assert local.corpus == dataset.corpus
    assert local.splits["test"][0].positives == ("text 40",)


def test_a_corpus_is_sampled_and_its_records_can_be_left_out(make):
    rows = "".join(f"a {i},b {i},{i % 5}\n" for i in range(20))
    dataset = load_dataset("made-up", **make(PAIRS, FILES | {"set/a.csv": rows}))
    fewer = dataset.without("train", {0, 19})
    assert fewer.splits["train"] == dataset.splits["train"][1:19]
    assert fewer.splits["test"] == dataset.splits["test"]
    assert fewer.content_hash != dataset.content_hash
    # What is left out moves no other record out of a subsample, or into it.
    assert set(fewer.split("train", limit=10)) >= set(dataset.split("train", limit=10)) - {
        dataset.splits["train"][0],
        dataset.splits["train"][19],
    }


def test_a_sample_of_a_corpus_is_nested(make):
    lines = {side: "".join(f"{side} {i}\n" for i in range(40)) for side in "qp"}
    entry = {
        "reader": "aligned",
        "task": "ir",
        "dev": 0.3,
        "files": {
            "train": {"queries": "q", "passages": "p"},
            "test": {"queries": "q-test", "passages": "p-test"},
        },
    }
    dataset = load_dataset("made-up", **make(entry, lines | {"q-test": "a", "p-test": "b"}))
    small, large = dataset.sample_corpus(5), dataset.sample_corpus(20)
    assert (len(small), len(large)) == (5, 20)
    assert set(small) < set(large) < set(dataset.corpus)
    assert dataset.sample_corpus(0) == []
    assert dataset.sample_corpus() == list(dataset.corpus)
    assert dataset.sample_corpus(5, seed=1) != small
    with pytest.raises(ValueError, match="found -1"):
        dataset.sample_corpus(-1)


# --- The real files ---


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setenv("CODIEMB_DATA", str(ROOT))


@real_files
@pytest.mark.parametrize("name", SIZES)
def test_the_sets_have_their_sizes_without_a_network(name, root, no_network, tmp_path):
    dataset = load_dataset(name, cache=tmp_path)
    assert tuple(len(dataset.splits[split]) for split in SPLITS) == SIZES[name]
    assert bool(dataset.corpus) == (dataset.task == "ir")
    assert not list(tmp_path.iterdir())  # nothing fetched
    records = [record for split in SPLITS for record in dataset.splits[split]]
    assert {record.task for record in records} == {dataset.task}
    for split in SPLITS:
        ids = Counter(record.id for record in dataset.splits[split])
        assert max(ids.values()) == 1


@real_files
def test_squad_sentences_are_those_of_the_beir_folder(root):
    """The folder beside the lines was made from them by others, who left braces as tokens."""

    def texts(records):
        pairs = ((record.query, *record.positives) for record in records)
        return Counter(
            tuple(t.replace("-lcb-", "{").replace("-rcb-", "}") for t in pair) for pair in pairs
        )

    dataset, beir = load_dataset("squad-sentences"), read_beir(Path(ROOT) / "squad-nqg")
    assert texts(dataset.splits["test"]) == texts(beir["dev"])
    assert texts(dataset.splits["train"] + dataset.splits["dev"]) == texts(beir["train"])
    assert len(dataset.corpus) == 13447


@real_files
def test_no_focus_of_medquad_stands_in_two_splits(root):
    path = Path(ROOT) / "medquad" / "medquad_qa.jsonl.gz"
    focus = {row["question"].strip(): normalise(row["focus"]) for _, row in read_rows(path)}
    where = defaultdict(set)
    for split, records in load_dataset("medquad").splits.items():
        for record in records:
            where[focus[record.query]].add(split)
    del where[""]  # 14 questions name none
    assert len(where) > 4000
    assert all(len(splits) == 1 for splits in where.values())


@real_files
def test_dev_of_scifact_shares_no_abstract_with_test(root):
    splits = load_dataset("scifact").splits
    dev, test = ({t for r in splits[s] for t in r.positives} for s in ("dev", "test"))
    assert not dev & test
