"""What the readers of the registry's entries guarantee, and how they cut into splits."""

from __future__ import annotations

import json
import multiprocessing
import textwrap
import time
from collections import Counter
from importlib import metadata

import pytest

from codiemb_lib.data import entries
from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.data.entries import NearDuplicates, read_docstrings, split_of
from codiemb_lib.data.formats import SPLITS
from codiemb_lib.data.records import Record, RecordError
from codiemb_lib.data.registry import DocstringsEntry


@pytest.fixture(scope="module")
def api_docs(cache):
    return load_dataset("api-docs", cache=cache)


def test_a_split_that_stays_empty_is_refused(registry):
    fractions = {"train": 0.999998, "dev": 0.000001, "test": 0.000001}
    path = registry(wordsim_353={"fractions": fractions})
    with pytest.raises(RecordError, match=r"'wordsim-353'.*split 'dev', found none"):
        load_dataset("wordsim-353", registry=path)


def test_splits_come_close_to_their_fractions():
    fractions = {"train": 0.7, "dev": 0.1, "test": 0.2}
    found = Counter(split_of(f"item {i}", fractions) for i in range(5000))
    assert {split: found[split] / 5000 for split in fractions} == pytest.approx(fractions, abs=0.02)


# --- The sets in gensim ---


@pytest.mark.parametrize(("name", "pairs"), [("simlex-999", 998), ("wordsim-353", 351)])
def test_word_sets_are_whole_and_scaled(name, pairs):
    dataset = load_dataset(name)
    records = [record for split in SPLITS for record in dataset.splits[split]]
    assert len(records) == pairs  # 999 and 353 less those that stand twice
    assert all(0 <= record.score <= 1 for record in records)
    assert len({frozenset((r.query.lower(), r.positives[0].lower())) for r in records}) == pairs


def scores_of(dataset):
    return {record.id: record.score for split in SPLITS for record in dataset.splits[split]}


def test_a_pair_that_stands_twice_gets_the_mean_rating():
    scores = scores_of(load_dataset("wordsim-353"))
    assert scores["cash money"] == pytest.approx((9.15 + 9.08) / 20)
    assert scores["tiger tiger"] == 1


def test_word_sets_agree_on_the_split_of_a_pair():
    where = [
        {record.id: split for split in SPLITS for record in load_dataset(name).splits[split]}
        for name in ("simlex-999", "wordsim-353")
    ]
    shared = where[0].keys() & where[1].keys()
    assert shared
    assert all(where[0][pair] == where[1][pair] for pair in shared)


def test_lee_pairs_come_from_one_triangle_and_documents_keep_to_their_split():
    dataset = load_dataset("lee-similarity")
    documents = {split: set() for split in SPLITS}
    for split in SPLITS:
        for record in dataset.splits[split]:
            i, j = map(int, record.id.split("-"))
            assert i < j
            assert record.query != record.positives[0]
            assert 0.2 <= record.score <= 1  # the lowest rating is 1 of 5; the lower triangle is 0
            documents[split] |= {record.query, *record.positives}
    counts = {split: len(texts) for split, texts in documents.items()}
    assert counts == {"train": 25, "dev": 10, "test": 15}
    assert {split: len(dataset.splits[split]) for split in SPLITS} == {
        split: n * (n - 1) // 2 for split, n in counts.items()
    }
    assert len(set.union(*documents.values())) == 50
    assert scores_of(dataset)["2-37"] == 1  # row 3, column 38 of the file


def test_lee_news_leaves_out_the_similarity_documents_and_repeats():
    news = load_dataset("lee-news").splits
    pairs = load_dataset("lee-similarity").splits
    seen = NearDuplicates()
    for text in {text for s in SPLITS for r in pairs[s] for text in (r.query, *r.positives)}:
        seen.add(text)
    articles = [f"{r.query} {r.positives[0]}" for split in SPLITS for r in news[split]]
    assert 280 <= len(articles) <= 300
    assert all(seen.add(article) for article in articles)


def test_near_duplicates():
    seen = NearDuplicates()
    text = "one two three four five six seven eight nine ten"
    assert seen.add(text)
    assert not seen.add(text.upper() + "!")
    assert not seen.add(text + " and then eleven twelve thirteen fourteen fifteen sixteen")
    assert seen.add("ten nine eight seven six five four three two one")
    assert seen.add("two words")
    assert not seen.add("Two words.")


# --- Docstrings ---


def test_api_docs_have_the_size_and_the_shape_that_training_counts_on(api_docs):
    sizes = {split: len(api_docs.splits[split]) for split in SPLITS}
    total = sum(sizes.values())
    assert 4000 <= total <= 5000
    fractions = {split: size / total for split, size in sizes.items()}
    assert fractions == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.03)
    records = [record for split in SPLITS for record in api_docs.splits[split]]
    assert all(4 <= len(record.query.split()) <= 30 for record in records)
    assert all(8 <= len(p.split()) <= 64 for record in records for p in record.positives)
    assert all(len(record.negatives) <= 6 for record in records)
    assert sum(bool(record.negatives) for record in records) > 0.7 * total
    assert sum(len(record.positives) > 1 for record in records) > 0.5 * total
    texts = {t for r in records for t in (r.query, *r.positives, *r.negatives)}
    for noise in (">>>", "%(", "``", ":func:", ".. note", "\\", "\n", "  "):
        assert not [text for text in texts if noise in text], noise
    assert max(Counter(record.id.split(".")[0] for record in records).values()) < 0.2 * total


def test_a_hard_negative_is_a_positive_of_a_sibling_in_the_same_split(api_docs):
    for split in SPLITS:
        owner = {text: r.id for r in api_docs.splits[split] for text in r.positives}
        for record in api_docs.splits[split]:
            owners = [owner[text] for text in record.negatives]  # KeyError: from another split
            assert len(set(owners)) == len(owners)
            for sibling in owners:
                assert sibling != record.id
                assert sibling.split(".")[0] == record.id.split(".")[0]


def test_the_second_loading_is_fast(api_docs, cache):
    start = time.perf_counter()
    assert load_dataset("api-docs", cache=cache).content_hash == api_docs.content_hash
    assert time.perf_counter() - start < 2


def test_the_cache_is_used_and_a_newer_package_does_not_get_it(registry, tmp_path, monkeypatch):
    package = {"distribution": "networkx", "limit": 40, "licence": "BSD"}
    path = registry(api_docs={"packages": {"networkx": package}})

    def load():
        return load_dataset("api-docs", registry=path, cache=tmp_path / "cache")

    first = load()
    calls = []
    build = read_docstrings
    monkeypatch.setattr(entries, "read_docstrings", lambda entry: calls.append(1) or build(entry))
    assert load() == first
    assert not calls
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version(name) + "+other")
    assert load() == first
    assert calls == [1]


def test_two_processes_may_build_at_once(registry, tmp_path):
    package = {"distribution": "networkx", "limit": 40, "licence": "BSD"}
    path = registry(api_docs={"packages": {"networkx": package}})
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.starmap(_hash, [(str(path), str(tmp_path / "cache"))] * 2)
    assert hashes[0] == hashes[1]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def _hash(registry, cache):
    return load_dataset("api-docs", registry=registry, cache=cache).content_hash


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """A package with public, private, copied and compiled objects; importing it would fail."""
    root = tmp_path / "site" / "fakepkg"
    (root / "tests").mkdir(parents=True)
    (root / "_private").mkdir()

    def function(name, topic):
        return textwrap.dedent(f'''
            def {name}():
                """Return the {topic} of all numbers.

                What {topic} means for a long array is said in these many words about {topic}.
                """
        ''')

    public = (
        "raise RuntimeError('imported')\n" + function("mean", "mean") + function("_hidden", "x")
    )
    public += function("copied", "mean")  # the same text once more
    public += (
        "class Table:\n"
        '    """A table that holds numbers in rows.\n\n'
        '    Its rows have names, and its columns have types, which nobody may change."""\n'
        "    def total(self):\n"
        '        """Add up all that the table holds.\n\n'
        '        The total leaves out what is missing, and it is zero where nothing stands."""\n'
        "    def _secret(self):\n"
        '        """Add up all that nobody should see.\n\n'
        '        The secret total leaves out nothing at all, and it is never zero anywhere."""\n'
    )
    (root / "__init__.py").write_text("from ._impl import median\n" + function("mode", "mode"))
    (root / "stats.py").write_text(public)
    (root / "_impl.py").write_text(function("median", "median") + function("internal", "entropy"))
    (root / "_all.py").write_text("__all__ = ['range_of']\n" + function("range_of", "range"))
    (root / "_private" / "core.py").write_text(function("variance", "variance"))
    (root / "tests" / "test_stats.py").write_text(function("test", "test"))
    (root / "_docs.py").write_text(
        "add_newdoc('fakepkg', 'ufunc', ('Return the sine of all numbers.\\n\\n"
        "The sine is computed in radians, element by element, for every number.'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")

    def entry(**changes):
        package = {"distribution": "fakepkg", "licence": "none", "limit": 99} | changes
        return DocstringsEntry(
            name="fake",
            task="ir",
            reader="docstrings",
            fractions={"train": 0.98, "dev": 0.01, "test": 0.01},
            licence="none",
            provenance="none",
            words=(8, 64),
            negatives=2,
            packages={"fakepkg": package},
        )

    return entry


def test_public_objects_are_found_without_an_import(fake_package):
    records = [record for _, record in read_docstrings(fake_package())]
    names = {record.id for record in records}
    assert names - {"fakepkg.stats.mean", "fakepkg.stats.copied"} == {
        "fakepkg.mode",
        "fakepkg.stats.Table",
        "fakepkg.stats.Table.total",
        "fakepkg._impl.median",
        "fakepkg._all.range_of",
        "fakepkg._docs.fakepkg.ufunc",
    }
    assert len(names) == 7  # of the two that say the same, one
    by_name = {record.id: record for record in records}
    total = by_name["fakepkg.stats.Table.total"]
    assert set(total.negatives) == {
        by_name[name].positives[0]
        for name in names
        if name.startswith("fakepkg.stats") and name != total.id
    }
    assert by_name["fakepkg.mode"].negatives == ()


def test_private_folders_and_limits_of_a_package(fake_package):
    names = {record.id for _, record in read_docstrings(fake_package(private=("_private",)))}
    assert "fakepkg._private.core.variance" not in names  # nobody exports it
    some = [record.id for _, record in read_docstrings(fake_package(limit=3))]
    assert len(some) == 3
    assert set(some) < {record.id for _, record in read_docstrings(fake_package())}


# --- The Hub ---


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A folder as a data set of the Hub is laid out, and a registry entry that names it."""
    datasets = pytest.importorskip("datasets", reason="the optional package of the Hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"left": f"a {i}", "right": f"b {i}", "rating": i % 6} for i in range(40)]
    for split, members in (("train", rows[:30]), ("validation", rows[30:])):
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in members))
    return {
        "reader": "hub",
        "task": "sts",
        "repository": str(tmp_path / "hub"),
        "splits": {"test": "validation", "train": "train[20%:]", "dev": "train[:20%]"},
        "columns": ["left", "right", "rating"],
        "scale": [0, 5],
        "licence": "none",
        "provenance": "none",
    }


def test_a_hub_data_set_of_the_registry(registry, hub_folder):
    dataset = load_dataset("mine", registry=registry(mine=hub_folder))
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 24,
        "dev": 6,
        "test": 10,
    }
    assert tuple(dataset.splits) == SPLITS
    expected = Record("sts", "a 3", ("b 3",), positive_scores=(0.6,), dataset="mine")
    assert dataset.splits["dev"][3] == expected
