from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from codiemb_lib import __version__
from codiemb_lib.app.benchmark import benchmark
from codiemb_lib.app.cli import cli, main
from codiemb_lib.core.files import alone
from codiemb_lib.core.preset import preset_path
from codiemb_lib.core.words import say_once
from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.data.records import Record, read_jsonl, write_jsonl
from codiemb_lib.data.registry import list_datasets
from codiemb_lib.model.encoder import Encoder


@pytest.fixture
def notebook(tmp_path):
    """A notebook that writes its kernel's process id, then waits, or fails if told not to wait."""
    sources = [
        "wait: bool = False",
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))",
        "while wait: time.sleep(0.1)",
        "raise KeyError('no wait')",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    path = tmp_path / "a folder" / "n.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "codiemb_lib", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def error_of(capsys, *arguments) -> str:
    """The one line that a refused command prints."""
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_failing_cell_takes_one_line_and_status_1(capsys, notebook, tmp_path):
    assert main(["execute", str(notebook), str(tmp_path / "n.ipynb"), "-p", "wait", "false"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"codiemb: {notebook}: cell In [5], `raise KeyError('no wait')`, failed")
    assert line.endswith(str(tmp_path / "n.failed.ipynb"))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_waits_for_a_killed_run_finds_its_kernel_gone(notebook, tmp_path, by):
    out = tmp_path / "n.ipynb"
    process = start("execute", notebook, out, "-p", "wait", "true")
    written = notebook.with_name("pid")
    while not (written.is_file() and written.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    kernel = int(written.read_text())
    assert is_alive(kernel)
    process.send_signal(by)
    process.communicate()
    with alone(out):
        # A process that ends closes its files, the lock among them, a moment before it is gone.
        psutil.wait_procs([psutil.Process(kernel)] if is_alive(kernel) else [], timeout=3600)
        assert not is_alive(kernel)
    assert not out.exists()


def test_bad_input_takes_one_line_and_status_2(capsys, notebook, tmp_path):
    out = tmp_path / "out.ipynb"
    unknown = error_of(capsys, "execute", notebook, out, "-p", "wiat", "true")
    assert unknown.startswith("codiemb: ")
    assert "Did you mean 'wait'?" in unknown
    missing = error_of(capsys, "execute", tmp_path / "none.ipynb", out)
    assert "expected a file that can be read, found: No such file" in missing
    assert "Did you mean 'smoke'?" in error_of(capsys, "reproduce", "--preset", "smoek")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": [{"name": "api-docs"}]}, "both tasks with dev records, found none of 'sts'"),
        ({"datasets": [{"name": "api-docs"}, {"name": "mine/typo"}]}, "unknown data set"),
    ],
)
def test_data_that_cannot_be_used_stop_before_anything_runs(
    capsys, tmp_path, monkeypatch, changes, message
):
    preset = yaml.safe_load(preset_path("smoke").read_text()) | {"name": "mine"} | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(preset))
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("something ran"))
    assert message in error_of(capsys, "reproduce", "--preset", path)


def test_a_preset_elsewhere_is_not_taken_for_the_one_of_its_name(capsys, tmp_path, monkeypatch):
    path = tmp_path / "smoke.yaml"
    path.write_text(preset_path("smoke").read_text())
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("something ran"))
    assert "expected the name of a preset in" in error_of(capsys, "reproduce", "--preset", path)


def test_error_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("codiemb_lib.data.list_datasets", broken)
    with pytest.raises(ZeroDivisionError):
        main(["data", "list"])


def test_a_reader_who_has_enough_is_no_error():
    command = [sys.executable, "-m", "codiemb_lib", "data", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before there is a line
        errors = process.stderr.read()
    assert (errors, process.returncode) == (b"", 1)


def test_a_value_may_begin_with_a_minus(monkeypatch):
    given = []
    monkeypatch.setattr("codiemb_lib.app.notebooks.execute", lambda *a, **_: given.append(a[2]))
    assert main(["execute", "a.ipynb", "b.ipynb", "-p", "x", "-1e-3", "-p", "y", "-p"]) == 0
    assert given == [{"x": "-1e-3", "y": "-p"}]


COMMANDS = ["execute", "reproduce", "draw", "verify", "report", "fuse", "benchmark"]
COMMANDS += ["data list", "data describe", "data prepare", "data mine"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples_that_can_be_parsed(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    examples = capsys.readouterr().out.partition("Examples:\n")[2].strip().splitlines()
    assert examples
    for example in examples:
        group, words = cli, example.split()[1:]
        while isinstance(group, click.Group):
            group, words = group.commands[words[0]], words[1:]
        group.make_context(command, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command. See `codiemb --help`."),
        (["data"], "Missing command. See `codiemb data --help`."),
        (["fusee"], "No such command 'fusee'. Did you mean 'fuse'? See `codiemb --help`."),
        (["draw"], "Missing argument 'FIGURE'. See `codiemb draw --help`."),
        (["draw", "x", "--prest", "mini"], "No such option '--prest'. Did you mean '--preset'?"),
        (["execute", "a", "b", "-p", "x"], "Option '-p' requires 2 arguments."),
        (["benchmark", "m", "--tasks"], "Option '--tasks' requires an argument."),
        (["benchmark", "m", "--split", "all"], "'all' is not one of 'train', 'dev', 'test'."),
    ],
)
def test_a_wrong_call_takes_one_line_and_status_2(capsys, words, message):
    line = error_of(capsys, *words)
    assert line.startswith("codiemb: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "tasks", "scale"),
    [
        ("m --tasks a b c --scale 0 5", ("a", "b", "c"), (0, 5)),
        ("--tasks a --tasks b --tasks c -- m", ("a", "b", "c"), None),
        ("--scale -1 1 m --tasks a", ("a",), (-1, 1)),
        ("--tasks a b --split dev m", ("a", "b"), None),
    ],
)
def test_an_option_takes_several_values_or_is_repeated(words, tasks, scale):
    given = benchmark.make_context("benchmark", words.split()).params
    assert (given["encoder"], given["tasks"], given["scale"]) == ("m", tasks, scale)


def test_the_shell_completes_commands(capsys, monkeypatch):
    for name, value in (("", "bash_complete"), ("COMP_WORDS", "codiemb re"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(name or "_CODIEMB_COMPLETE", value)
    with pytest.raises(SystemExit):
        main([])
    assert {*capsys.readouterr().out.split()} == {"plain,report", "plain,reproduce"}


def test_data_list_has_a_line_for_each_data_set(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for entry, line in zip(list_datasets(), lines, strict=True):
        assert line.split()[:2] == [entry.name, entry.task]
        assert line.endswith(entry.licence)
        assert all(split in line for split in entry.splits)


# --- Data ---


def test_data_describe_takes_a_name_or_a_path(capsys, tmp_path, monkeypatch):
    assert main(["data", "describe", "wordsim-353"]) == 0
    out = capsys.readouterr().out
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    sizes = {split: len(records) for split, records in load_dataset("wordsim-353").splits.items()}
    assert rows["records"] == [str(n) for n in sizes.values()]
    histogram = [rows[f"score {i / 5} to {(i + 1) / 5}"] for i in range(5)]
    assert [sum(map(int, column)) for column in zip(*histogram, strict=True)] == [*sizes.values()]
    assert load_dataset("wordsim-353").content_hash in out
    record = Record("ir", "what?", ("x" * 500,))
    write_jsonl(tmp_path / "mine" / "test.jsonl", [record])
    monkeypatch.chdir(tmp_path)  # a shell's path, not one of the project's folder
    assert main(["data", "describe", "mine"]) == 0
    out = capsys.readouterr().out
    assert out.split()[0] == "test"
    assert out.endswith("xxx...\n")


def test_data_prepare_makes_a_folder_that_a_preset_can_name(capsys, caplog, tmp_path):
    rows = [{"question": f"what {i}?", "answer": f"this {i}"} for i in range(30)]
    rows += [{"question": "what 0?", "answer": "that"}, {"question": "why?", "answer": ""}]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "prepare", str(tmp_path / "qa.jsonl"), str(tmp_path / "out")]
    command += ["--task", "ir", "--columns", "question", "answer", "--dev", "5", "--test", "6"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert [line.rsplit("/")[-1] for line in out.splitlines()] == [
        "train.jsonl: 19 records",
        "dev.jsonl: 5 records",
        "test.jsonl: 6 records",
    ]
    assert "1 rows left out, for they lack a text" in caplog.text
    assert "1 rows merged with an earlier one of the same query" in caplog.text
    written = load_dataset(str(tmp_path / "out"))
    assert [len(records) for records in written.splits.values()] == [19, 5, 6]
    assert main(command) == 0  # the same once more
    capsys.readouterr()
    assert "no such file, or the same" in error_of(capsys, *command, "--seed", "1")
    assert load_dataset(str(tmp_path / "out")) == written


def test_data_prepare_reads_a_table_by_position_as_the_split_that_it_is(capsys, tmp_path):
    (tmp_path / "pairs.csv").write_text("7,a,b,2.5\n8,c,d,5\n")
    command = ["data", "prepare", str(tmp_path / "pairs.csv"), str(tmp_path / "out")]
    form = ["--columns", "1", "2", "3", "--scale", "0", "5"]
    assert main([*command, *form, "--split", "dev"]) == 0
    capsys.readouterr()
    expected = [Record("sts", "a", ("b",), positive_scores=(0.5,))]
    expected += [Record("sts", "c", ("d",), positive_scores=(1.0,))]
    assert read_jsonl(tmp_path / "out" / "dev.jsonl") == expected
    assert "--scale LOW HIGH" in error_of(capsys, *command)
    taken = error_of(capsys, *command, *form, "--split", "dev", "--test", "1")
    assert "expected a split 'train' and no ['test'] yet" in taken
    assert "found 2 in all" in error_of(capsys, *command, *form, "--test", "2")
    several = error_of(capsys, "data", "prepare", "wordsim-353", tmp_path, "--split", "dev")
    assert "expected one split to be renamed, found ['train', 'dev', 'test']" in several
    named = error_of(capsys, *command[:2], "wordsim-353", tmp_path, *form)
    assert "expected the registry alone to say its form" in named


def test_data_prepare_reads_a_table_with_semicolons(capsys, tmp_path):
    (tmp_path / "pairs.csv").write_text("left;right;score\na, or b;c;2.5\n")
    command = ["data", "prepare", str(tmp_path / "pairs.csv"), str(tmp_path / "out")]
    form = ["--columns", "left", "right", "score", "--scale", "0", "5"]
    assert "separated by ','" in error_of(capsys, *command, *form)
    assert main([*command, *form, "--delimiter", ";"]) == 0
    expected = [Record("sts", "a, or b", ("c",), positive_scores=(0.5,))]
    assert read_jsonl(tmp_path / "out" / "train.jsonl") == expected
    capsys.readouterr()
    assert "one character" in error_of(capsys, *command, *form, "--delimiter", "")
    of_hub = error_of(capsys, *command, *form, "--delimiter", ";", "--hub", "train")
    assert "--delimiter is for files" in of_hub
    of_hub = error_of(capsys, *command, *form, "--quoting", "no", "--hub", "train")
    assert "--delimiter is for files, as is --quoting" in of_hub


def test_data_prepare_is_told_what_quotation_marks_are(capsys, tmp_path):
    (tmp_path / "qa.csv").write_text('"a,b\nc",d\n')
    command = ["data", "prepare", str(tmp_path / "qa.csv")]
    form = ["--columns", "0", "1"]
    assert "1 rows by --quoting yes" in error_of(capsys, *command, str(tmp_path / "out"), *form)
    for quoting, queries in (("yes", ["a,b\nc"]), ("no", ['"a', 'c"'])):
        assert main([*command, str(tmp_path / quoting), *form, "--quoting", quoting]) == 0
        written = read_jsonl(tmp_path / quoting / "train.jsonl")
        assert [record.query for record in written] == queries


def test_data_prepare_reads_a_data_set_of_the_hub(capsys, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the optional package of the Hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [json.dumps({"left": f"a {i}", "right": f"b {i}", "rating": i}) for i in range(6)]
    for split, members in (("train", rows[:4]), ("validation", rows[4:])):
        file = tmp_path / "organisation" / "set" / "data" / f"{split}-00000-of-00001.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(members))
    monkeypatch.chdir(tmp_path)
    command = ["data", "prepare", "organisation/set", "out"]
    form = ["--columns", "left", "right", "rating", "--scale", "0", "5"]
    assert main([*command, *form, "--hub", "train", "dev=validation", "--test", "1"]) == 0
    capsys.readouterr()
    sizes = {
        split: len(records) for split, records in load_dataset(f"{tmp_path}/out").splits.items()
    }
    assert sizes == {"train": 3, "dev": 2, "test": 1}
    expected = Record("sts", "a 5", ("b 5",), positive_scores=(1.0,))
    assert read_jsonl("out/dev.jsonl")[1] == expected
    untold = error_of(capsys, *command, "--hub", "train")
    assert "the columns of query, positive" in untold
    assert "Write OURS=THEIRS" in error_of(capsys, *command, *form, "--hub", "validation")
    other = error_of(capsys, *command, *form, "--hub", "dev=best")
    assert "expected a data set of the Hub" in other
    twice = error_of(capsys, *command, *form, "--hub", "train", "train=validation")
    assert "at most once" in twice
    assert "need --hub" in error_of(capsys, *command, *form, "--revision", "main")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit")
    scripted = error_of(capsys, *command[:2], "script", "out", *form, "--hub", "train")
    assert "found: Dataset scripts are no longer supported" in scripted


class ColourEncoder:
    """Texts of one colour are alike (cosine 1), of two colours less so (0.5)."""

    key = "colours"

    def embed(self, texts, *, prompt="", progress=False):
        words = [f"{prompt}{text}".split() for text in texts]
        vectors = np.float32([[1, *(c in text for c in ("red", "blue"))] for text in words])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_data_mine_fills_one_split_and_keeps_the_others(capsys, tmp_path, monkeypatch):
    settings = []
    monkeypatch.setattr(
        "codiemb_lib.model.Embedder", lambda s: settings.append(s) or ColourEncoder()
    )
    records = [Record("ir", f"find {c}", (f"a {c} cat",)) for c in ("red", "blue", "grey")]
    write_jsonl(tmp_path / "in" / "train.jsonl", records[:2])
    write_jsonl(tmp_path / "in" / "dev.jsonl", records[2:])
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "1", "text": "a bus"}) + "\n")
    command = ["data", "mine", str(tmp_path / "in"), str(tmp_path / "out"), "--encoder", "tiny"]
    assert main([*command, "--negatives", "2", "--corpus", str(corpus)]) == 0
    assert settings[0].name == "tiny"
    assert "4 hard negatives for 2 records, 0 of them without any" in capsys.readouterr().out
    assert read_jsonl(tmp_path / "out" / "train.jsonl") == [
        replace(records[0], negatives=("a bus", "a blue cat")),
        replace(records[1], negatives=("a bus", "a red cat")),
    ]
    assert read_jsonl(tmp_path / "out" / "dev.jsonl") == records[2:]
    monkeypatch.setattr("codiemb_lib.evaluate.mine", lambda *_, **__: pytest.fail("it began"))
    assert "train.jsonl: expected no such file" in error_of(capsys, *command)
    assert main([*command, "--negatives", "2", "--corpus", str(corpus)]) == 0
    assert "mined before" in capsys.readouterr().out
    (tmp_path / "out" / "train.jsonl").unlink()
    assert "found ['train.jsonl'] missing or changed" in error_of(capsys, *command)
    (tmp_path / "out" / "manifest.json").unlink()
    write_jsonl(tmp_path / "out" / "dev.jsonl", records[:1])
    assert "dev.jsonl: expected no such file, or the same" in error_of(capsys, *command)
    monkeypatch.undo()
    monkeypatch.setattr("codiemb_lib.model.Embedder", lambda _: ColourEncoder())
    assert "unknown split 'test'" in error_of(capsys, *command, "--split", "test")
    assert main([*command[:3], str(tmp_path / "strict"), *command[4:], "--margin", "0.6"]) == 0
    assert "0 hard negatives for 2 records, 2 of them" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["mine", "in", "out/deep", "--encoder", "tiny", "--split", "test"],
        ["mine", "nowhere", "out/deep", "--encoder", "tiny"],
        ["mine", "in", "in/train.jsonl/out", "--encoder", "tiny"],
        ["prepare", "nowhere", "out/deep"],
        ["prepare", "in", "out/deep", "--dev", "5"],
        ["prepare", "in", "out/deep", "--columns", "a", "--scale", "0", "1"],
        ["prepare", "in", "in/train.jsonl/out"],
    ],
)
def test_a_refused_command_leaves_no_folder(capsys, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    if "tiny" in options:
        monkeypatch.setattr("codiemb_lib.model.Embedder", lambda _: ColourEncoder())
    write_jsonl("in/train.jsonl", [Record("ir", "find red", ("a red cat",))])
    error_of(capsys, "data", *options)
    assert sorted(map(str, Path().rglob("*"))) == ["in", "in/train.jsonl"]


def test_data_mine_finds_its_encoder_where_one_stands_and_encodes_in_chunks(
    make_encoder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_encoder().save("a model")
    records = [Record("ir", f"a {c} bus", (f"a {c} bus is it",)) for c in ("red", "blue", "old")]
    write_jsonl("in/train.jsonl", records)
    sizes = []
    encode = Encoder.encode
    monkeypatch.setattr("codiemb_lib.model.store.CHUNK", 2)
    monkeypatch.setattr(
        Encoder, "encode", lambda s, texts, **o: sizes.append(len(texts)) or encode(s, texts, **o)
    )
    assert main(["data", "mine", "in", "out", "--encoder", "a model", "--margin", "0"]) == 0
    assert sizes == [2, 1, 2, 1]
    assert len(read_jsonl("out/train.jsonl")) == 3


def test_a_corpus_is_mined_and_stays_with_its_data_set(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("codiemb_lib.model.Embedder", lambda _: ColourEncoder())
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    passages = {"1": "a red cat", "2": "a red bus", "3": "a grey bus"}
    rows = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in passages.items()]
    (beir / "corpus.jsonl").write_text("".join(rows))
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "find red"}) + "\n")
    (beir / "qrels" / "train.tsv").write_text("q\t1\t1\n")
    for number, form in enumerate([[], ["--task", "ir"]]):
        prepared = tmp_path / f"prepared {number}"
        assert main(["data", "prepare", str(beir), str(prepared), *form]) == 0
        assert "corpus.jsonl: 3 passages" in capsys.readouterr().out
        assert load_dataset(str(prepared)).corpus == tuple(passages.values())
    for source in (beir, prepared):
        out = tmp_path / f"{source.name} mined"
        command = ["data", "mine", str(source), str(out), "--encoder", "tiny"]
        assert main([*command, "--negatives", "1"]) == 0
        mined = load_dataset(str(out))
        assert mined.splits["train"][0].negatives == ("a grey bus",)  # the red one is too near
        assert mined.corpus == tuple(passages.values())


# --- Benchmark ---


@pytest.fixture
def model(make_encoder, tmp_path):
    """The folder of a sentence-transformers model."""
    return make_encoder().save(tmp_path / "a model")


def test_benchmark_scores_names_and_paths_without_a_network(
    capsys, tmp_path, monkeypatch, model, no_network
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rated.csv").write_text("a cat,the cat,5\na dog,a bus,1\na car,old car,3\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dev.CSV").write_text("old cat,a cat,4\na bus,a dog,2\n")
    command = ["benchmark", "a model", "--scale", "0", "5", "--out", "out/scores.csv"]
    command += ["--cache", "kept", "--tasks", "wordsim-353", "mine/dev.CSV", "rated.csv"]
    assert main(command) == 0
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert list(dict.fromkeys(rows["dataset"])) == ["wordsim-353", "mine/dev.CSV", "rated.csv"]
    assert list(rows["n"]) == [89, 89, 2, 2, 3, 3]
    assert set(rows["model"]) == {"a model"}
    main_metrics = rows[rows["metric"].isin(["spearman", "ndcg@10"])]
    lines = out.splitlines()
    for line, row in zip(lines, main_metrics.itertuples(), strict=False):
        assert line.split() == [
            *(row.dataset, row.split, row.metric),
            *(f"{100 * row.value:.2f}", f"{row.n}"),
        ]
    assert lines[-1] == "out/scores.csv"
    monkeypatch.setattr(Encoder, "load", lambda _: pytest.fail("something was computed again"))
    assert main(command) == 0
    assert pd.read_csv(tmp_path / "out" / "scores.csv").equals(rows)


def test_every_door_says_what_was_left_out_and_whether_identical_ids_are_ranked(
    capsys, caplog, tmp_path, model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = [
        Record("ir", "a cat", (text,), id="1", same_id="the cat") for text in ("a bus", "a car")
    ]
    for part, records in {"test": rows, "train": rows}.items():
        write_jsonl(tmp_path / "mine" / f"{part}.jsonl", records)
    command = ["benchmark", str(model), "--tasks", "mine", "--out", "s.csv"]
    for door in (["data", "describe", "mine"], command, [*command, "--ignore-identical-ids"]):
        caplog.clear()
        say_once.cache_clear()  # each door is another process
        assert main(door) == 0
        assert "test.jsonl: 1 rows merged with an earlier one of the same query" in caplog.text
    assert set(pd.read_csv("s.csv")["ignore_identical_ids"]) == {True}
    assert set(pd.read_csv("s.csv")["n"]) == {1}


def test_benchmark_names_failing_tasks_at_the_end(capsys, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["benchmark", str(model), "--out", "s.csv", "--cache", "kept", "--tasks"]
    assert main([*command, "wordsim353", "wordsim-353"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("wordsim-353 ")
    assert "1 of 2 tasks failed, the others stand in s.csv: wordsim353: " in captured.err
    assert "Did you mean 'wordsim-353'?" in captured.err
    assert set(pd.read_csv("s.csv")["dataset"]) == {"wordsim-353"}
    assert "expected --tasks" in error_of(capsys, *command[:2])


def test_benchmark_takes_prompts_sizes_and_encoder_settings_of_a_preset(
    capsys, tmp_path, model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    preset = yaml.safe_load(preset_path("smoke").read_text())
    preset |= {"name": "mine", "fusion": {}, "encoder": {"name": "minilm-l6", "max_length": 8}}
    preset["datasets"] = [
        {"name": "wordsim-353", "test": 12, "query_prompt": "find "},
        {"name": "simlex-999", "test": 0, "dev": 10},
    ]
    preset["datasets"][0]["dev"] = 0
    Path("mine.yaml").write_text(yaml.safe_dump(preset))
    how = ["--preset", "mine.yaml", "--out", "s.csv", "--cache", "kept"]
    loaded, load = [], Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda s: loaded.append(s) or load(s))
    assert main(["benchmark", str(model), *how]) == 0
    rows = pd.read_csv("s.csv", keep_default_na=False)
    assert set(rows["dataset"]) == {"wordsim-353"}
    assert set(rows["n"]) == {12}
    assert set(rows["query_prompt"]) == {"find "}
    assert main(["benchmark", str(model), *how, "--passage-prompt", "the "]) == 0
    rows = pd.read_csv("s.csv", keep_default_na=False)
    assert set(zip(rows["query_prompt"], rows["passage_prompt"], strict=True)) == {
        ("find ", "the ")
    }
    assert main(["benchmark", str(model), *how, "--split", "dev"]) == 0
    assert set(pd.read_csv("s.csv")["dataset"]) == {"simlex-999"}
    assert {(s.name, s.max_length) for s in loaded} == {(str(model), 8)}


def test_version_and_help_are_quick():
    code = (
        "import sys; from codiemb_lib.app import main; main(['--help']); main(['--version']); "
        "print({'papermill', 'torch', 'pandas'} & {*sys.modules})"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert found[-2:] == [f"codiemb {__version__}", "set()"]


def test_describe_and_prepare_say_that_scores_are_no_grades(capsys, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"query": "q", "pos": ["a"], "pos_scores": [0.7], "neg": ["b"]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["data", "prepare", "x.jsonl", "out", "--task", "ir"]) == 0
    assert "train.jsonl: scores of positives are not all whole numbers" in caplog.text
    caplog.clear()
    assert main(["data", "describe", "out"]) == 0
    assert "scores of positives are not all whole numbers" in caplog.text


def test_a_task_that_is_named_twice_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"task": "ir", "query": "q", "positives": ["p"]}\n')
    for names in (["wordsim-353"] * 2, ["x.jsonl", "./x.jsonl"]):
        assert main(["benchmark", "minilm-l6", "--tasks", *names]) == 2
        assert "expected each task once" in capsys.readouterr().err
