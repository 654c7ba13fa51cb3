"""Data sets: what the splits guarantee, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import textwrap
import time
from collections import Counter
from importlib import metadata

import pytest
import yaml

from codiemb_lib import sources
from codiemb_lib.config import project_root
from codiemb_lib.docstrings import normalise, read_docstring
from codiemb_lib.records import Record, RecordError, write_jsonl
from codiemb_lib.sources import (
    SPLITS,
    ChecksumError,
    DocstringsEntry,
    HubEntry,
    MissingSourceError,
    NearDuplicates,
    RegistryError,
    UnknownDatasetError,
    describe,
    hold_out,
    list_datasets,
    load_dataset,
    load_split,
    read_docstrings,
    split_of,
    write_splits,
)

NAMES = ["api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity"]
PUBLIC = ["stsb", "sick", "squad-sentences", "scifact", "medquad"]  # see test_public_sets


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def api_docs(cache):
    return load_dataset("api-docs", cache=cache)


@pytest.fixture
def registry(tmp_path):
    """Writes a registry: the project's own with some entries changed."""
    content = yaml.safe_load((project_root() / "data" / "registry.yaml").read_text())

    def write(**changes):
        for name, change in changes.items():
            content.setdefault(name.replace("_", "-"), {}).update(change)
        path = tmp_path / "registry.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def passages(records):
    return {text for record in records for text in (*record.positives, *record.negatives)}


# --- The registry ---


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


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownDatasetError, match="Did you mean 'simlex-999'"):
        load_dataset("simlex999")
    with pytest.raises(UnknownDatasetError, match=r"unknown split 'tests'.*Did you mean 'test'"):
        load_split("simlex-999", "tests")


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


def test_a_split_that_stays_empty_is_refused(registry):
    fractions = {"train": 0.999998, "dev": 0.000001, "test": 0.000001}
    path = registry(wordsim_353={"fractions": fractions})
    with pytest.raises(RecordError, match=r"'wordsim-353'.*split 'dev', found none"):
        load_dataset("wordsim-353", registry=path)


# --- What holds for every data set ---


@pytest.mark.parametrize("name", NAMES)
def test_records_are_of_their_task_named_and_distinct(cache, name):
    dataset = load_dataset(name, cache=cache)
    assert tuple(dataset.splits) == SPLITS
    records = [record for split in SPLITS for record in dataset.splits[split]]
    assert {record.task for record in records} == {dataset.task}
    assert {record.dataset for record in records} == {name}
    assert len({record.id for record in records}) == len(records)
    assert load_dataset(name, cache=cache) == dataset


@pytest.mark.parametrize("name", ["api-docs", "lee-news"])
def test_retrieval_splits_share_neither_queries_nor_passages(cache, name):
    splits = load_dataset(name, cache=cache).splits
    queries = [normalise(record.query) for split in SPLITS for record in splits[split]]
    assert len(set(queries)) == len(queries)
    texts = {split: set(map(normalise, passages(splits[split]))) for split in SPLITS}
    for one, other in [("train", "dev"), ("train", "test"), ("dev", "test")]:
        assert not texts[one] & texts[other]


@pytest.mark.parametrize("name", ["api-docs", "lee-news"])
def test_a_passage_answers_one_query_and_holds_none(cache, name):
    splits = load_dataset(name, cache=cache).splits
    records = [record for split in SPLITS for record in splits[split]]
    times = Counter(normalise(text) for record in records for text in record.positives)
    assert max(times.values()) == 1
    for record in records:
        query = normalise(record.query)
        assert not any(query in normalise(text) for text in (*record.positives, *record.negatives))
        assert not set(record.positives) & set(record.negatives)


def test_a_limit_takes_a_nested_subsample_that_the_seed_decides():
    everything = load_split("wordsim-353", "train")
    small, large = (load_split("wordsim-353", "train", limit=n) for n in (10, 20))
    assert len(small) == 10
    assert set(small) < set(large) < set(everything)
    assert large == [record for record in everything if record in large]
    assert load_split("wordsim-353", "train", limit=10, seed=1) != small
    assert load_split("wordsim-353", "train", limit=10**6) == everything
    assert load_split("wordsim-353", "train", limit=0) == []
    with pytest.raises(ValueError, match="limit: expected None or a number >= 0, found -1"):
        load_split("wordsim-353", "train", limit=-1)


def test_the_hash_of_the_content_follows_the_content(registry):
    plain = load_dataset("wordsim-353").content_hash
    assert load_dataset("wordsim-353").content_hash == plain
    assert (
        load_dataset("wordsim-353", registry=registry(wordsim_353={"scale": 20})).content_hash
        != plain
    )


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


def test_a_pair_that_stands_twice_gets_the_mean_rating():
    splits = load_dataset("wordsim-353").splits
    scores = {record.id: record.score for split in SPLITS for record in splits[split]}
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
    assert load_scores(dataset)["2-37"] == 1  # row 3, column 38 of the file


def load_scores(dataset):
    return {record.id: record.score for split in SPLITS for record in dataset.splits[split]}


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
    texts = [record.query for record in records] + list(passages(records))
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
    monkeypatch.setattr(sources, "read_docstrings", lambda entry: calls.append(1) or build(entry))
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


NUMPYDOC = """Compute the mean of an array.

The *average* is taken over the flattened array by default, see :func:`~numpy.sum`
or ``median`` [1]_, otherwise over the axis:

.. math:: \\bar x

.. versionadded:: 1.2
   Not worth a word.

>>> mean([1, 2])
1.5

Parameters
----------
a : array_like
    Numbers whose mean is desired.

    More about them.
axis : int, optional
    Axis along which the means are computed.
%(out)s

Returns
-------
m : ndarray
    The means, in an array of the same type.

Examples
--------
>>> mean([1])

Notes
-----
The arithmetic mean is the sum of the elements divided by their number. See Notes below.
"""


def test_a_numpydoc_docstring():
    summary, texts = read_docstring(NUMPYDOC, (4, 64))
    assert summary == "Compute the mean of an array."
    assert texts == [
        "The arithmetic mean is the sum of the elements divided by their number.",
        "a (array_like): Numbers whose mean is desired. "
        "axis (int, optional): Axis along which the means are computed.",
        "m (ndarray): The means, in an array of the same type.",
    ]


GOOGLE = """mean(input, dim) -> Tensor

Returns the mean value of each row.

.. note:: Rows are those of the ``input`` tensor
    in the given dimension, `dim`.

Args:
    input (Tensor): the input tensor,
        of any shape
    dim: the dimension to reduce
    {keepdim}

Returns:
    A tensor with one dimension fewer.

Example::

    >>> mean(x, 1)
"""


def test_a_google_docstring():
    summary, texts = read_docstring(GOOGLE, (4, 64))
    assert summary == "Returns the mean value of each row."
    assert texts == [
        "Rows are those of the input tensor in the given dimension, dim.",
        "input (Tensor): the input tensor, of any shape. dim: the dimension to reduce.",
    ]


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Too short.\n\nThis description would do, but nobody asks for it.",
        "Deprecated since 1.2, use another function.\n\nA description that would otherwise do.",
        "Return the %(name)s of an array.\n\nA description that would otherwise do quite well.",
        "Return the mean of an array.",
        "Return the mean of an array.\n\nHere we return the mean of an array, once more.",
        "Return the mean of an array.\n\nToo short.",
    ],
)
def test_a_docstring_without_a_fit_pair(docstring):
    assert read_docstring(docstring, (5, 64)) == ("", [])


def test_passages_end_at_a_sentence():
    sentence = "This sentence has just seven words inside."
    _, (text,) = read_docstring(f"Return the mean of it.\n\n{' '.join([sentence] * 9)}", (4, 20))
    assert text == f"{sentence} {sentence}"
    _, (text,) = read_docstring(f"Return the mean of it.\n\n{'word ' * 50}", (4, 20))
    assert len(text.split()) == 20


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


# --- Local records ---


def test_a_local_folder_and_a_local_file(tmp_path):
    records = [Record("ir", f"question {i}", (f"answer {i}",)) for i in range(5)]
    write_jsonl(tmp_path / "mine" / "train.jsonl", records[:4])
    write_jsonl(tmp_path / "mine" / "test.jsonl", records[4:])
    name = str(tmp_path / "mine")
    dataset = load_dataset(name)
    assert (dataset.name, dataset.task, tuple(dataset.splits)) == (name, "ir", ("train", "test"))
    assert [record.query for record in load_split(name, "test")] == ["question 4"]
    assert {record.dataset for record in dataset.splits["train"]} == {name}
    assert len(load_split(name, "train", limit=2)) == 2
    with pytest.raises(UnknownDatasetError, match="unknown split 'dev'"):
        load_split(name, "dev")
    assert load_split(name, "dev", limit=0) == []  # as a preset may say of a set without dev
    write_jsonl(tmp_path / "lone.jsonl", records)
    assert len(load_split(str(tmp_path / "lone.jsonl"), "train")) == 5
    assert len(load_split(str(tmp_path / "mine" / "test.jsonl"), "test")) == 1


def test_bad_local_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingSourceError, match="expected a file, or a folder of train, dev or"):
        load_dataset(str(tmp_path / "empty"))
    with pytest.raises(UnknownDatasetError, match=r"unknown data set .*none\.jsonl"):
        load_dataset(str(tmp_path / "none.jsonl"))
    pair = Record("sts", "cup", ("mug",), positive_scores=(0.9,))
    write_jsonl(tmp_path / "both.jsonl", [Record("ir", "a", ("b",)), pair])
    with pytest.raises(RecordError, match="expected one task in a data set"):
        load_dataset(str(tmp_path / "both.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"task": "ir", "query": "a", "positives": []}) + "\n")
    with pytest.raises(RecordError, match=r"bad\.jsonl:1: field 'positives'"):
        load_dataset(str(bad))


def test_a_path_may_have_any_form_that_says_what_it_is(tmp_path):
    row = {"task_type": "ir", "query": "q", "positives": ["p"], "negatives": ["p", "n"]}
    (tmp_path / "validation.json").write_text(json.dumps([row]))
    dataset = load_dataset(str(tmp_path))
    name = str(tmp_path)
    assert dataset.splits["dev"] == (Record("ir", "q", ("p",), ("n",), dataset=name),)
    (tmp_path / "train.csv").write_text("a,b,0.5\n")
    with pytest.raises(RecordError, match=r"train\.csv: expected to be told .* data prepare"):
        load_dataset(name)


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
def test_a_wrong_hub_entry_is_refused(registry, hub_folder, change, message):
    with pytest.raises(RegistryError, match=rf"data set 'mine'.*{message}"):
        list_datasets(registry(mine=hub_folder | change))


# --- Sets of one's own ---


def test_held_out_records_are_decided_by_the_seed_and_keep_to_their_query():
    records = [Record("ir", f"query {i // 2}", (f"answer {i}",)) for i in range(100)]
    splits = hold_out(records, {"dev": 9, "test": 20}, seed=3)
    assert {split: len(members) for split, members in splits.items()} == {
        "train": 70,
        "dev": 10,  # five queries of two records each
        "test": 20,
    }
    assert sorted(r.positives for s in splits.values() for r in s) == sorted(
        r.positives for r in records
    )
    queries = [{record.query for record in members} for members in splits.values()]
    assert len(set.union(*queries)) == sum(map(len, queries)) == 50
    assert splits["dev"] == [record for record in records if record in splits["dev"]]
    assert hold_out(records, {"dev": 9, "test": 20}, seed=3) == splits
    assert hold_out(records, {"dev": 9, "test": 20}, seed=4) != splits


def test_held_out_pairs_take_their_mirror_image_along():
    pairs = [("a", "b"), ("B", "a"), ("a", "c"), ("d", "e")]
    records = [Record("sts", x, (y,), positive_scores=(0.5,)) for x, y in pairs]
    for seed in range(9):
        where = {
            (record.query, *record.positives): split
            for split, members in hold_out(records, {"dev": 1}, seed=seed).items()
            for record in members
        }
        assert where["a", "b"] == where["B", "a"]


@pytest.mark.parametrize("sizes", [{"dev": 3}, {"dev": 2, "test": 1}, {"dev": 5}, {"dev": 0}])
def test_no_split_may_stay_empty(sizes):
    records = [Record("ir", f"query {i}", ("answer",)) for i in range(3)]
    with pytest.raises(RecordError, match=r"expected records for train .* found 3 in all"):
        hold_out(records, sizes)


def test_written_splits_never_replace_others(tmp_path):
    records = [Record("ir", f"query {i}", ("answer",), dataset="old") for i in range(3)]
    files = write_splits(tmp_path / "out", {"train": records[:2], "dev": records[2:]})
    assert files == {tmp_path / "out" / "train.jsonl": 2, tmp_path / "out" / "dev.jsonl": 1}
    dataset = load_dataset(str(tmp_path / "out"))
    assert [record.query for record in dataset.splits["train"]] == ["query 0", "query 1"]
    assert "old" not in (tmp_path / "out" / "train.jsonl").read_text()
    assert write_splits(tmp_path / "out", {"train": records[:2]}) == {
        tmp_path / "out" / "train.jsonl": 2
    }
    with pytest.raises(RecordError, match=r"dev\.jsonl: expected no such file, or the same"):
        write_splits(tmp_path / "out", {"test": records, "dev": records})
    assert not (tmp_path / "out" / "test.jsonl").exists()  # nothing is written before the refusal
    pair = Record("sts", "a", ("b",), positive_scores=(1,))
    with pytest.raises(RecordError, match="expected one task"):
        write_splits(tmp_path / "both", {"train": [*records, pair]})


def test_a_description_counts_what_it_says():
    records = [
        Record("ir", "one two", ("three", "four five six"), ("three four",)),
        Record("ir", "one", ("three",)),
    ]
    assert describe(records) == {
        "records": "2",
        "distinct texts": "5",
        "query words": "1 / 1.5 / 2",
        "query characters": "3 / 5 / 7",
        "passage words": "1 / 2 / 3",
        "passage characters": "5 / 10 / 13",
        "positives a record": "1 / 1.5 / 2",
        "negatives a record": "0 / 0.5 / 1",
        "records without negatives": "50%",
    }
    scores = (0, 0.19, 0.2, 0.6, 0.8, 1)
    pairs = [Record("sts", "a", ("b",), positive_scores=(score,)) for score in scores]
    histogram = [n for name, n in describe(pairs).items() if name.startswith("score")]
    assert histogram == ["2", "1", "0", "1", "2"]
