"""The scripts of data/build: what they guarantee of their sets, and when they run."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import textwrap
from collections import Counter, defaultdict
from importlib import metadata
from runpy import run_path
from types import SimpleNamespace

import pytest
import yaml

from codiemb_lib.core.files import project_root, sha256_file
from codiemb_lib.data import datasets
from codiemb_lib.data.datasets import cut_dev, load_dataset
from codiemb_lib.data.formats import SPLITS
from codiemb_lib.data.leaks import NearDuplicates
from codiemb_lib.data.records import Record, RecordError, SourceError

SCRIPTS = project_root() / "data" / "build"
API_DOCS = SimpleNamespace(**run_path(str(SCRIPTS / "api_docs.py")))
FRACTIONS = {"train": 0.6, "dev": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def api_docs(cache):
    return load_dataset("api-docs", cache=cache)


# --- When they run ---


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A project with one script, which counts its runs, and its entry; loads the data set."""
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    (tmp_path / "data" / "build").mkdir(parents=True)
    (tmp_path / "data" / "build" / "rows.py").write_text(
        "from codiemb_lib.data import Record\n"
        "def build(sources, *, least):\n"
        "    with open(sources['runs'].parent / 'log', 'a') as log:\n"
        "        log.write('x')\n"
        "    texts = sources['runs'].read_text().split()\n"
        "    records = [Record('ir', t, (t + '!',)) for t in texts if len(t) >= least]\n"
        "    return {'train': records[1:], 'test': records[:1]}, ['a', 'b', 'a']\n"
    )
    source = tmp_path / "root" / "runs"
    source.parent.mkdir()
    source.write_text("one three five")
    log = source.parent / "log"

    def load(least=1):
        entry = {"task": "ir", "licence": "none", "provenance": "made up", "build": "rows"}
        entry |= {"options": {"least": least}}
        entry |= {"files": {"runs": {"path": "runs", "sha256": sha256_file(source)}}}
        registry = tmp_path / "data" / "registry.yaml"
        registry.write_text(yaml.safe_dump({"mine": entry}))
        return load_dataset("mine", root="root"), len(log.read_text())

    return load


def test_a_script_runs_once_for_its_bytes_options_and_sources(mine, tmp_path, monkeypatch):
    first, runs = mine()
    assert runs == 1
    assert first.corpus == ("a", "b")
    assert [record.id for record in first.splits["train"]] == ["train-0", "train-1"]
    assert mine() == (first, 1)
    assert mine(least=4)[1] == 2
    assert mine() == (first, 2)
    (tmp_path / "root" / "runs").write_text("one two")
    assert mine()[1] == 3
    script = tmp_path / "data" / "build" / "rows.py"
    script.write_text(script.read_text() + "# changed\n")
    assert mine()[1] == 4
    monkeypatch.setattr(datasets, "NUMERICS", 99)
    assert mine()[1] == 5
    with pytest.raises(RecordError, match=r"mine-.* expected records in the split 'train'"):
        mine(least=9)
    script.unlink()
    with pytest.raises(SourceError, match=r"'mine': expected the script .*rows\.py, found none"):
        mine()


def test_a_newer_package_is_read_anew(cache, tmp_path, monkeypatch):
    version = metadata.version
    old = {path.name for path in cache.iterdir()}
    monkeypatch.setattr(metadata, "version", lambda name: version(name) + "+other")
    monkeypatch.setattr(datasets, "run_path", pytest.fail)
    with pytest.raises(pytest.fail.Exception, match="api_docs"):
        load_dataset("api-docs", cache=cache)
    assert {path.name for path in cache.iterdir()} == old


def test_two_processes_may_build_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.map(_hash, [tmp_path / "cache"] * 2)
    assert hashes[0] == hashes[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def _hash(cache):
    return load_dataset("lee-news", cache=cache).content_hash


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


# --- The sets in gensim ---


def test_a_pair_that_stands_twice_gets_the_mean_rating_and_all_sets_agree_on_its_split():
    simlex, wordsim = (
        {r.id: (split, r.score) for split in SPLITS for r in load_dataset(name).splits[split]}
        for name in ("simlex-999", "wordsim-353")
    )
    assert (len(simlex), len(wordsim)) == (998, 351)  # 999 and 353 less those that stand twice
    assert wordsim["cash money"][1] == pytest.approx((9.15 + 9.08) / 20)
    shared = simlex.keys() & wordsim.keys()
    assert shared
    assert all(simlex[pair][0] == wordsim[pair][0] for pair in shared)


def test_lee_documents_keep_to_their_split():
    splits = load_dataset("lee-similarity").splits
    documents = [{t for r in splits[s] for t in (r.query, *r.positives)} for s in SPLITS]
    assert [*map(len, documents)] == [25, 10, 15]
    assert len(set.union(*documents)) == 50
    scores = {record.id: record.score for split in SPLITS for record in splits[split]}
    assert scores["2-37"] == 1  # row 3, column 38 of the file
    assert min(scores.values()) >= 0.2  # the lowest rating is 1 of 5; the lower triangle is 0


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


# --- Public sets ---


def test_squad_loses_the_tokens_of_the_treebank(tmp_path):
    texts = {
        "train_queries": "".join(f"who is `` {i} '' ?\n" for i in range(60)),
        "train_passages": "".join(f"number {i // 2} -lrb- is -rrb- \n" for i in range(60)),
        "test_queries": "what ?\n",
        "test_passages": "that\n",
    }
    sources = {name: tmp_path / name for name in texts}
    for name, text in texts.items():
        sources[name].write_text(text)
    splits, corpus = run_path(str(SCRIPTS / "squad.py"))["build"](sources, dev=0.3)
    assert splits["test"] == [Record("ir", "what ?", ("that",), id="1")]
    first = Record("ir", 'who is " 0 " ?', ("number 0 ( is )",), id="1")
    assert first in splits["train"] + splits["dev"]
    assert 0 < len(splits["dev"]) < 30
    passages = {split: {r.positives for r in records} for split, records in splits.items()}
    assert not passages["train"] & passages["dev"]
    assert set(corpus) == {f"number {i} ( is )" for i in range(30)} | {"that"}


def test_questions_of_medquad_stay_with_their_focus_and_lend_each_other_negatives(tmp_path):
    focus = {f"question {i} ?": f"Matter {i // 3}" if i < 297 else "" for i in range(300)}
    answers = {f"question {i} ?": f"answer {i if i % 3 else i + 1}" for i in range(300)}
    rows = [{"question": q, "answer": answers[q], "focus": focus[q]} for q in focus]
    path = tmp_path / "qa.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    build = run_path(str(SCRIPTS / "medquad.py"))["build"]
    splits, corpus = build({"questions": path}, negatives=2, fractions=FRACTIONS)
    where = defaultdict(set)
    for split, records in splits.items():
        for record in records:
            matter = focus[record.query]
            where[matter].add(split)
            siblings = {answers[q] for q in focus if focus[q] == matter} if matter else set()
            assert set(record.negatives) == siblings - {answers[record.query]}
    assert sum(map(len, splits.values())) == 300
    del where[""]  # each alone
    assert all(len(splits) == 1 for splits in where.values())
    assert set(corpus) == set(answers.values())


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


@pytest.fixture
def fake_package(tmp_path):
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

    def build(limit=99):
        splits, _ = API_DOCS.build(
            {"fakepkg": root},
            words=(8, 64),
            negatives=2,
            limits={"fakepkg": limit},
            private={},
            skip={},
            fractions={"train": 0.98, "dev": 0.01, "test": 0.01},
        )
        return [record for split in SPLITS for record in splits[split]]

    return build


def test_public_objects_are_found_without_an_import(fake_package):
    records = fake_package()
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
    some = {record.id for record in fake_package(limit=3)}
    assert len(some) == 3
    assert some < names


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
    summary, texts = API_DOCS.read_docstring(NUMPYDOC, (4, 64))
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
    summary, texts = API_DOCS.read_docstring(GOOGLE, (4, 64))
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
    assert API_DOCS.read_docstring(docstring, (5, 64)) == ("", [])


def test_passages_end_at_a_sentence():
    sentence = "This sentence has just seven words inside."
    _, (text,) = API_DOCS.read_docstring(
        f"Return the mean of it.\n\n{' '.join([sentence] * 9)}", (4, 20)
    )
    assert text == f"{sentence} {sentence}"
    _, (text,) = API_DOCS.read_docstring(f"Return the mean of it.\n\n{'word ' * 50}", (4, 20))
    assert len(text.split()) == 20
