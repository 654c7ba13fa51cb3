"""Retrieval from the docstrings of installed packages, which are read without importing them."""

import ast
import gc
import inspect
import re
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from codiemb_lib.core import normalise, sha256_text
from codiemb_lib.data import NearDuplicates, Record, split_of

_SKIPPED = {"tests", "test", "testing", "conftest", "setup", "externals", "vendored"}


class Documented:
    """A public object whose docstring gives a query and passages.

    Its name is qualified by its file: package.module.object.
    """

    def __init__(self, name: str, module: str, query: str, passages: list[str]) -> None:
        self.name, self.module, self.query, self.passages = name, module, query, passages


def build(
    sources: dict[str, Path],
    *,
    words: tuple[int, int],
    negatives: int,
    limits: Mapping[str, int],
    private: Mapping[str, Sequence[str]],
    skip: Mapping[str, Sequence[str]],
    fractions: dict[str, float],
) -> tuple[dict[str, list[Record]], tuple]:
    """Records of the packages whose folders `sources` names.

    Guarantees: queries are distinct, no passage serves two objects, no passage contains any query,
    no object repeats most of another's text, and a hard negative lies in its query's split.

    Args:
        sources: The folder of each package, which bears its name.
        words: Fewest and most words of a passage.
        negatives: At most so many hard negatives, one of each sibling in the module.
        limits: Most objects of each package, so that none dominates.
        private: Names with a leading underscore, of folders and files, that hold public objects.
        skip: Names of folders and files that few users of the package meet.
        fractions: The shares of the splits.
    """
    kept: list[Documented] = []
    queries: set[str] = set()
    seen = NearDuplicates()
    for package, root in sources.items():
        left = limits[package]
        with _collector_paused():
            candidates = [
                *_documented(root, words, private.get(package, ()), skip.get(package, ()))
            ]
        # First those with several passages, then by a hash (salted: the plain one is the split's),
        # so that a new object displaces few others.
        candidates.sort(key=lambda c: (len(c.passages) < 2, sha256_text("selection", c.name)))
        for candidate in candidates:
            query = normalise(candidate.query)
            if not left:
                break
            if query in queries or not seen.add(" ".join([query, *candidate.passages])):
                continue
            queries.add(query)
            kept.append(candidate)
            left -= 1
    _drop_ambiguous_passages(kept)
    kept = sorted((item for item in kept if item.passages), key=lambda item: item.name)
    where = {item.name: split_of(item.name, fractions) for item in kept}
    members: dict[tuple[str, str], list[Documented]] = defaultdict(list)
    for item in kept:
        members[item.module, where[item.name]].append(item)
    splits: dict[str, list[Record]] = {split: [] for split in fractions}
    for item in kept:
        siblings = [m for m in members[item.module, where[item.name]] if m is not item]
        siblings.sort(key=lambda sibling: sha256_text(item.name, sibling.name))
        lent = tuple(sibling.passages[0] for sibling in siblings[:negatives])
        record = Record("ir", item.query, tuple(item.passages), lent, id=item.name)
        splits[where[item.name]].append(record)
    return splits, ()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees have no cycles: looking for some would only take time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _drop_ambiguous_passages(items: list[Documented]) -> None:
    """Drop passages that several objects share, and those in which somebody's query stands."""
    normal = {passage: normalise(passage) for item in items for passage in item.passages}
    times = Counter(normal[passage] for item in items for passage in item.passages)
    # A query can only stand where its first four words do.
    queries: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item in items:
        query = normalise(item.query)
        queries[tuple(query.split()[:4])].append(query)

    def answers_itself(text: str) -> bool:
        words = text.split()
        starts = zip(*(words[start:] for start in range(4)), strict=False)
        return any(query in text for start in starts for query in queries.get(start, ()))

    for item in items:
        texts = [(passage, normal[passage]) for passage in item.passages]
        item.passages = [p for p, text in texts if times[text] == 1 and not answers_itself(text)]


# --- Files of a package ---------------------------------------------------------------------------


def _documented(
    root: Path, words: tuple[int, int], kept_private: Sequence[str], skip: Sequence[str]
) -> Iterator[Documented]:
    """The public objects of the package in folder `root` whose docstrings give a fit pair."""
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        *folders, stem = (root.name, *path.relative_to(root).with_suffix("").parts)
        hidden = [f for f in folders if f.startswith("_") and f not in kept_private]
        if not hidden and not _SKIPPED.union(skip).intersection((*folders, stem)):
            files[".".join(folders if stem == "__init__" else (*folders, stem))] = path
    exported = {
        alias.name
        for path in files.values()
        if path.stem == "__init__"
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for module, path in files.items():
        tree = _parse(path)  # one at a time: thousands of trees would keep the collector busy
        private = any(part.startswith("_") for part in module.split("."))
        public = _declared(tree) | exported if private else None
        # A getter and its setter, or two variants of a method, share a name: the first counts.
        for name, docstring in dict(reversed([*_docstrings(tree, public)])).items():
            query, passages = read_docstring(docstring, words)
            if passages:
                yield Documented(f"{module}.{name}", module, query, passages)


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():  # the invalid escapes of others are not our concern
        warnings.simplefilter("ignore")
        return ast.parse(path.read_bytes())


def _declared(tree: ast.Module) -> set[str]:
    """The names in a module's literal `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
    return set()


def _docstrings(tree: ast.Module, public: set[str] | None) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module's public functions, classes and their public methods."""
    definitions = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, definitions):
            if node.name.startswith("_") or (public is not None and node.name not in public):
                continue
            members = node.body if isinstance(node, ast.ClassDef) else []
            methods = [m for m in members if isinstance(m, ast.FunctionDef) and m.name[0] != "_"]
            for item in (node, *methods):
                if docstring := ast.get_docstring(item):
                    prefix = "" if item is node else f"{node.name}."
                    yield prefix + item.name, docstring
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _added_docstrings(node.value)


def _added_docstrings(call: ast.Call) -> Iterator[tuple[str, str]]:
    """The docstring of compiled code: `add_newdoc(..., name, text)`, `add_docstr(name, text)`."""
    function = ast.unparse(call.func).rpartition(".")[2]
    if function not in {"add_newdoc", "add_docstr"} or len(call.args) < 2:
        return
    *names, text = call.args
    if isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute):
        text = text.func.value  # "...".format(**shared): what it would fill in is left out later
    if isinstance(text, ast.Tuple) and len(text.elts) == 2:
        *more, text = text.elts
        names += more
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        parts = [n.value if isinstance(n, ast.Constant) else ast.unparse(n) for n in names]
        yield ".".join(map(str, parts)), inspect.cleandoc(text.value)


# --- One docstring --------------------------------------------------------------------------------

# A heading underlined as in numpydoc, or ended by a colon as in Google's style.
_UNDERLINE = re.compile(r"[-=~]{3,}\s*")
_GOOGLE = re.compile(
    r"(Args|Arguments|Parameters|Keyword Arg(?:ument)?s|Returns?|Yields|Raises|Examples?|Notes?"
    r"|Shape|Attributes|References|See Also|Warnings?|Inputs?|Outputs?|Usage|Variables)\s*::?\s*",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)(\s*->.*)?")
_PLACEHOLDER = re.compile(r"%\([\w:]+\)|\{\w*\}|%s|\$\{?\w")  # what a decorator was to fill in
_CODE = re.compile(r">>>|\.\.\. |\||\+[-=]+\+|={4,}|\$ |In \[")
_NO_SUMMARY = re.compile(
    r"(deprecated|alias|see|warning|note|todo|return self|bases|internal|helper|base class|mixin"
    r"|same as|wrapper|in-place version|this (function|method|class) is deprecated)\b",
    re.IGNORECASE,
)
# Sentences that lead to something left out here: a formula, code, another section or page.
_POINTER = re.compile(
    r".*:|(see|read|refer to)\b.*\b(examples?|notes|user guide|section|below)\b.*", re.IGNORECASE
)


def read_docstring(docstring: str, words: tuple[int, int]) -> tuple[str, list[str]]:
    """The summary and the passages of a docstring; ("", []) where it gives no fit pair.

    Passages, each of words[0] to words[1] words: description, notes, parameters, returns. Markup,
    code, formulas, tables and unfilled placeholders are left out.
    """
    sections = _sections(docstring.splitlines())
    summary, *description = _paragraphs(sections[""]) or [""]
    fits = 4 <= len(summary.split()) <= 30 and _is_prose(summary) and not summary.endswith(":")
    if not fits or _NO_SUMMARY.match(summary):
        return "", []

    def section(*names: str) -> list[str]:
        return next((sections[name] for name in names if name in sections), [])

    notes = _paragraphs(section("notes", "note"))
    units = (
        _sentences_of(description),
        _sentences_of(notes),
        _items(section("parameters", "args", "arguments")),
        _items(section("returns", "return")),
    )
    query = normalise(summary)
    passages = dict.fromkeys(_shorten(unit, words[1]) for unit in units)
    passages = [
        passage
        for passage in passages
        if len(passage.split()) >= words[0]
        and _is_prose(passage)
        and query not in normalise(passage)
    ]
    return (summary, passages) if passages else ("", [])


def _sections(lines: list[str]) -> dict[str, list[str]]:
    """The lines below each heading, in lower case; those above the first are at ""."""
    current: list[str] = []
    sections = {"": current}
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if line[:1].strip() and _UNDERLINE.fullmatch(following):
            current = sections.setdefault(line.strip().lower(), [])
        elif match := _GOOGLE.fullmatch(line):
            current = sections.setdefault(match[1].lower(), [])
        elif not _UNDERLINE.fullmatch(line):
            current.append(line)
    return sections


def _paragraphs(lines: list[str]) -> list[str]:
    """Clean paragraphs of prose: no code, formulas, tables, directives or signatures."""
    blocks: list[list[str]] = [[]]
    skip_below: int | None = None  # skip lines indented deeper than this
    fenced = False
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if text.startswith("```"):
            fenced = not fenced
        elif not text:
            blocks.append([])
        elif not fenced and (skip_below is None or indent <= skip_below):
            skip_below = None
            if admonition := re.match(r"\.\. *(note|warning|tip|important|hint) *:+ *", text):
                text = text[admonition.end() :]
            elif re.match(r"\.\.(?!\.)", text):  # a formula, a picture, a footnote, a comment
                skip_below, text = indent, ""
            elif text.endswith("::"):  # code follows
                skip_below, text = indent, text[:-1]
            blocks[-1].append(re.sub(r"^[-*+] (?=\S)", "", text))
    joined = (_clean(" ".join(block)) for block in blocks if not any(map(_CODE.match, block)))
    return [text for text in joined if text and not _SIGNATURE.fullmatch(text)]


def _items(lines: list[str]) -> list[str]:
    """The items of a section such as Parameters, as "name (type): first paragraph"."""
    groups: list[list[str]] = []
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if line[:1].strip():
            groups.append([line])
        elif groups:
            groups[-1].append(line)
    items = []
    for head, *body in groups:
        if head.startswith(".. "):  # a directive between the items
            continue
        if google := re.match(r"([\w*, ]+(?:\([^:]*\))?) ?: *(?=\S)", head):
            numpydoc = head[: google.end()].rstrip().endswith(" :")
        else:
            numpydoc = True
        if numpydoc:  # "name : type" or "type", and the text below
            head = re.sub(r" : +(.+)", r" (\1)", head)
            text = " ".join(_paragraphs(body)[:1])
        else:  # "name (type): text", which goes on below
            head, first = head[: google.end()].rstrip(": "), head[google.end() :]
            body = textwrap.dedent("\n".join(body)).splitlines()
            text = " ".join(_paragraphs([first, *body])[:1])
        text = f"{_clean(head)}: {text}"
        if not text.endswith(": ") and not _PLACEHOLDER.search(text):
            items.append(text if text[-1] in ".!?" else text.rstrip(":;,") + ".")
    return items


def _clean(text: str) -> str:
    text = re.sub(r":[\w:+-]+:(?=`)", "", text)  # :func:`x` -> `x`
    text = re.sub(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}", r"\1", text)  # `text <link>`_ -> text
    text = re.sub(r"`~\.?(?:\w+\.)*(\w+)`", r"\1", text)  # `~package.name` -> name
    text = re.sub(r"\[(?:\d+|#?\w+)\]_", "", text)  # footnotes
    text = re.sub(r"`{1,2}([^`]+?)`{1,2}_{0,2}", r"\1", text)
    text = re.sub(r"(?<![\w*])(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1(?![\w*])", r"\2", text)  # *emphasis*
    text = re.sub(r"\|(\w[\w ]*)\|", r"\1", text)  # |substitution|
    text = re.sub(r"\s+([,.;])(?=\s|$)", r"\1", " ".join(text.split()))
    return text.strip(" -")


def _sentences_of(paragraphs: list[str]) -> list[str]:
    sentences = [s for text in paragraphs for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z(])", text)]
    return [sentence for sentence in sentences if not _POINTER.fullmatch(sentence)]


def _shorten(units: list[str], most: int) -> str:
    """As many whole units (sentences, items) as `most` words hold, or the start of the first."""
    words: list[str] = []
    for unit in units:
        if words and len(words) + len(unit.split()) > most:
            break
        words += unit.split()
    return " ".join(words[:most])


def _is_prose(text: str) -> bool:
    """Mostly letters, no formula, no placeholder."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.8 * len(text) and "\\" not in text and not _PLACEHOLDER.search(text)
