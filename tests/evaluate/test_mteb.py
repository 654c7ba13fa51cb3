"""Our models under mteb: the same scores, from the same prompts, without a network."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

from codiemb_lib import evaluate as face
from codiemb_lib.app.cli import main
from codiemb_lib.core import DatasetSettings, EncoderSettings, Prompts, load_preset
from codiemb_lib.data import load_dataset
from codiemb_lib.evaluate import (
    EvaluationError,
    Store,
    local_task,
    mteb_task,
    mteb_tasks,
)
from codiemb_lib.model import Embedder, Encoder

PROMPTS = Prompts(query_prompt="find: ", passage_prompt="text: ")


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb", reason="mteb is not installed: pip install mteb")


@pytest.fixture
def store(tmp_path):
    settings = EncoderSettings(name="minilm-l6", max_length=32)
    return Store(Embedder(settings, tmp_path / "kept" / "embeddings"), tmp_path / "kept")


def about(mteb, name: str, kind: str, main_score: str, revision: str = "1"):
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="an embedded set",
        type=kind,
        dataset={"path": "none/none", "revision": revision},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


@pytest.fixture
def retrieval(mteb):
    """A function that makes a task of mteb from an embedded retrieval set."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    def make(name: str, limit: int | None = None, revision: str = "1"):
        records = load_dataset(name).split("test", limit=limit)
        own = (text for r in records for text in (*r.positives, *r.negatives))
        # Names in the order of the passages, so that equals rank as ours do.
        names = {text: f"d{i:05d}" for i, text in enumerate(dict.fromkeys(own))}

        class Task(AbsTaskRetrieval):
            metadata = about(mteb, f"Own-{name}", "Retrieval", "ndcg_at_10", revision)

            def load_data(self, **_):
                queries = [{"id": f"q{i}", "text": r.query} for i, r in enumerate(records)]
                corpus = [{"id": d, "text": text, "title": ""} for text, d in names.items()]
                relevant = {
                    f"q{i}": {names[text]: 1 for text in r.positives} for i, r in enumerate(records)
                }
                data = {
                    "queries": Dataset.from_list(queries),
                    "corpus": Dataset.from_list(corpus),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
                self.dataset = {"default": {"test": data}}
                self.data_loaded = True

            def task_specific_scores(self, scores, *_, **__):
                """What mteb rounds to five decimals."""
                ndcg = [of_query["ndcg_cut_10"] for of_query in scores.values()]
                recall = [of_query["recall_100"] for of_query in scores.values()]
                return {"ndcg_at_10": np.mean(ndcg).item(), "recall_at_100": np.mean(recall).item()}

        return Task()

    return make


@pytest.fixture
def similarity(mteb):
    """A function that makes a task of mteb from an embedded similarity set."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskSTS

    def make(name: str):
        class Task(AbsTaskSTS):
            metadata = about(mteb, f"Own-{name}", "STS", "cosine_spearman")
            min_score, max_score = 0, 1

            def load_data(self, **_):
                rows = [
                    {"sentence1": r.query, "sentence2": r.positives[0], "score": r.score}
                    for r in load_dataset(name).split("test")
                ]
                self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
                self.data_loaded = True

        return Task()

    return make


def values(rows) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.parametrize(("name", "limit"), [("lee-news", None), ("api-docs", 60)])
@pytest.mark.parametrize("prompts", [Prompts(), PROMPTS])
def test_retrieval_scores_are_mtebs(store, retrieval, no_network, name, limit, prompts):
    theirs = mteb_task(store, retrieval(name, limit), prompts)
    ours = local_task(store, DatasetSettings(name=name, test=limit), prompts)
    assert values(theirs).keys() == {"ndcg@10", "recall@100", "mrr@10"}
    assert values(theirs) == pytest.approx(values(ours), abs=1e-6, rel=0)


@pytest.mark.parametrize("ignore", [True, False])
def test_documents_of_the_querys_id_count_as_they_do_in_mteb(
    mteb, store, tmp_path, no_network, ignore
):
    """The same data by mteb and by ours: 100 without the query itself, 63.09 with it."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    corpus = [
        {"id": i, "text": t} for i, t in (("a", "a cat sits"), ("b", "a cat sat"), ("c", "x"))
    ]
    relevant = {"a": {"b": 1}, "b": {"a": 1}}

    class Task(AbsTaskRetrieval):
        metadata = about(mteb, "Own-arguana", "Retrieval", "ndcg_at_10", str(ignore))
        ignore_identical_ids = ignore

        def load_data(self, **_):
            data = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(corpus[:2])}
            data |= {"relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": data}}, True

    (tmp_path / "qrels").mkdir()
    for stem, rows in (("corpus", corpus), ("queries", corpus[:2])):
        lines = (json.dumps({"_id": row["id"], "text": row["text"]}) for row in rows)
        (tmp_path / f"{stem}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\tb\t1\nb\ta\t1\n")
    settings = DatasetSettings(name=str(tmp_path), ignore_identical_ids=ignore)
    theirs, ours = mteb_task(store, Task(), Prompts()), local_task(store, settings, Prompts())
    assert values(theirs)["ndcg@10"] == pytest.approx(1 if ignore else 0.6309, abs=1e-4)
    assert values(theirs) == pytest.approx(values(ours), abs=1e-5)
    assert {row["ignore_identical_ids"] for row in (*theirs, *ours)} == {ignore}


@pytest.mark.parametrize("name", ["wordsim-353", "simlex-999", "lee-similarity"])
@pytest.mark.parametrize("prompts", [Prompts(), PROMPTS])
def test_similarity_scores_are_mtebs(store, similarity, no_network, name, prompts):
    theirs = mteb_task(store, similarity(name), prompts)
    ours = local_task(store, DatasetSettings(name=name), prompts)
    assert values(theirs).keys() == {"spearman", "pearson"}
    assert values(theirs) == pytest.approx(values(ours), abs=1e-6, rel=0)


def test_a_finished_task_is_not_computed_again_until_something_changes(
    mteb, store, retrieval, monkeypatch
):
    first = mteb_task(store, retrieval("lee-news"), Prompts())
    evaluate, calls = mteb.evaluate, []
    monkeypatch.setattr(mteb, "evaluate", lambda *a, **o: calls.append(1) or evaluate(*a, **o))
    load = Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda _: pytest.fail("the model was loaded"))
    fresh = Store(Embedder(store.embedder.settings), store.folder)
    assert mteb_task(fresh, retrieval("lee-news"), Prompts()) == first
    assert not calls
    monkeypatch.setattr(Encoder, "load", load)
    mteb_task(store, retrieval("lee-news"), PROMPTS)
    mteb_task(store, retrieval("lee-news", revision="2"), Prompts())
    assert len(calls) == 2


def test_a_task_that_mteb_goes_on_without_is_a_failure(mteb, store, similarity, monkeypatch):
    class NoResult:  # as where a private data set is not to be had
        task_results = ()
        exceptions = ("not found",)

    monkeypatch.setattr(mteb, "evaluate", lambda *_, **__: NoResult())
    with pytest.raises(EvaluationError, match=r"a result of Own-wordsim-353, found .*not found"):
        mteb_task(store, similarity("wordsim-353"), Prompts())


@pytest.mark.parametrize("kind", ["retrieval", "similarity"])
def test_a_collapsed_encoder_has_no_score_of_mteb_either(
    request, make_encoder, tmp_path, no_network, kind
):
    encoder = make_encoder()
    encoder.backbone.encoder.layer[-1].output.LayerNorm.weight.data.zero_()
    encoder.backbone.encoder.layer[-1].output.LayerNorm.bias.data.fill_(0.1)
    store = Store(Embedder(encoder.save(tmp_path / "model")), tmp_path / "kept")
    name = {"retrieval": "lee-news", "similarity": "wordsim-353"}[kind]
    with pytest.raises(EvaluationError, match="similarities that differ"):
        mteb_task(store, request.getfixturevalue(kind)(name), PROMPTS)


def test_benchmarks_are_found_by_name(mteb):
    papers = [task.metadata for task in mteb_tasks(["cmteb15"])]
    assert [task.name for task in papers] == [*load_preset("cmteb-bge").benchmark]
    assert [task.type for task in papers] == ["Retrieval"] * 8 + ["STS"] * 7
    assert len(mteb_tasks(["nanobeir"])) == 13
    assert [task.metadata.name for task in mteb_tasks(["AFQMC", "cmteb15"])][:1] == ["AFQMC"]
    assert len(mteb_tasks(["AFQMC", "cmteb15"])) == 15
    with pytest.raises(EvaluationError, match=r"'AFQMX'.*Did you mean: 'AFQMC'"):
        mteb_tasks(["AFQMX"])


def test_the_command_runs_tasks_of_mteb_with_a_presets_prompts(
    similarity, monkeypatch, tmp_path, no_network, capsys
):
    made = similarity("wordsim-353")
    made.metadata = made.metadata.model_copy(update={"name": "T2Retrieval"})  # one that has prompts
    monkeypatch.setattr(face, "mteb_tasks", lambda names: [made] if "x" in names else [])
    out = tmp_path / "s.csv"
    command = ["benchmark", "minilm-l6", "--mteb", "x", "--preset", "cmteb-bge"]
    command += ["--passage-prompt", "the "]
    assert main([*command, "--out", str(out), "--cache", str(tmp_path / "c")]) == 0
    rows = pd.read_csv(out)
    assert set(rows["query_prompt"]) == {
        load_preset("cmteb-bge").benchmark["T2Retrieval"].query_prompt
    }
    assert rows["by"].str.startswith("mteb 2.").all()
    assert set(rows["passage_prompt"]) == {"the "}  # given, and the other side stays the preset's
    captured = capsys.readouterr()
    assert captured.out.startswith("T2Retrieval ")
    assert captured.err == ""  # no bars in a log


def test_without_mteb_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert main(["benchmark", "minilm-l6", "--mteb", "nanobeir"]) == 2
    assert "pip install 'mteb" in capsys.readouterr().err
