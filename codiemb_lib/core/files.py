"""Files written whole or not at all, the folders of the project, and the hashes of content."""

import bz2
import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from platform import node
from typing import Any

from codiemb_lib.core.words import CodiembError

logger = logging.getLogger(__name__)
PACKED = {"": open, ".gz": gzip.open, ".bz2": bz2.open}  # by the end of a name
_FULL = re.compile("No space left on device|File too large|quota exceeded")  # so in Rust, too
_MOST = 2**30  # bytes that a packed file may unpack to
Error = type[CodiembError]


def project_root() -> Path:
    """The folder of `notebooks/`, `data/` and `figures/`: `CODIEMB_ROOT`, or that above our own."""
    return Path(os.environ.get("CODIEMB_ROOT") or Path(__file__).resolve().parents[2])


def data_root(named: str = "") -> Path | None:
    """Where files of public data sets are looked for first, or None: `CODIEMB_DATA`, else `named`.

    Both are relative to the project's folder; `named` is the `data_root` of a preset.
    """
    named = os.environ.get("CODIEMB_DATA") or named
    return project_root() / named if named else None


class UnwritableError(CodiembError, OSError):
    """A file or folder that should receive results cannot be written."""


def check_writable(folder: str | Path) -> Path:
    """Create `folder` if it is missing and prove that it takes files: call it before long work."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnwritableError(
            f"{folder}: expected a folder that can be written, found: {error.strerror or error}. "
            "Choose another folder, or give yourself write permission on this one."
        ) from error
    return folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes the name `path`, else it vanishes.

    It may be a file or a folder. A reader sees the old content or the new, never a part; between an
    old folder and a new one there is a moment without any. Files are synced before the rename.

    Raises:
        UnwritableError: The parent cannot be written, or a folder stands where a file goes.
    """
    path = Path(path).absolute()  # "." has no name
    try:
        with scratch_beside(path) as scratch:
            temporary = scratch / path.name
            yield temporary
            if path.is_dir() and not temporary.is_dir():
                raise UnwritableError(f"{path}: expected the name of a file, found a folder.")
            for file in (temporary, *temporary.rglob("*")):
                _sync(file)
            if path.is_dir():  # a folder cannot be renamed onto a folder that is not empty
                path.rename(scratch / "replaced")
            temporary.replace(path)
            _sync(path.parent)
    except Exception as error:
        if found := _FULL.search(str(error)):
            raise UnwritableError(f"{path}: expected room to write, found: {found[0]}.") from error
        raise


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder beside `path` that vanishes at the end; those that killed processes left go now."""
    check_writable(path.parent)
    for left in path.parent.glob(".*.????????.partial"):
        try:
            held = _lock(left / ".lock")
        except OSError:  # of a process that lives, or of another user
            continue
        own = left.name.rsplit(".", 2)[0] == _hidden(path)
        if (old := left / "replaced").is_dir() and own and not path.exists():
            old.rename(path)  # killed between two renames
        if own or not old.exists():  # else it waits for who asks for its name
            shutil.rmtree(left, ignore_errors=True)
        os.close(held)
    held = None
    while held is None:
        scratch = Path(tempfile.mkdtemp(".partial", f"{_hidden(path)}.", path.parent))
        with suppress(BlockingIOError, FileNotFoundError):  # taken for one that was left: once more
            held = _lock(scratch / ".lock")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def _hidden(path: Path) -> str:
    """The beginning of hidden names beside `path`, short enough for what follows."""
    name = path.name if len(os.fsencode(path.name)) < 200 else sha256_text(path.name)[:32]
    return f".{name}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: str | Path) -> Iterator[int]:
    """Wait until no other process works on `path`; yield the descriptor of the lock.

    The lock is a hidden file beside `path`, which says who holds it. It ends with the last process
    that has the descriptor open: a kill leaves nothing locked. It is one of `flock`, and so holds
    among the hosts of a shared file system that passes such locks on: NFS does on Linux, Lustre
    where it is mounted with `flock`.

    Raises:
        UnwritableError: The folder of `path` cannot be written, or the lock is no plain file.
    """
    path = Path(path).resolve()
    check_writable(path.parent)
    file = path.with_name(f"{_hidden(path)}.lock")
    try:
        held = _lock(file, of=path)
    except OSError as error:
        raise UnwritableError(
            f"{file}: expected a file to be locked, found: {error.strerror}. Remove it."
        ) from error
    try:
        yield held
    finally:
        file.unlink(missing_ok=True)
        os.close(held)


def _lock(file: Path, of: Path | None = None) -> int:
    """The descriptor of a file that is locked; if another holds it, wait for that one to end `of`.

    Without `of` do not wait: raise BlockingIOError.
    """
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if of is None:
                    raise
                holder = os.read(held, 200).decode(errors="replace") or "another process"
                logger.warning("%s: %s works on it, waiting for its end", of, holder)
                fcntl.flock(held, fcntl.LOCK_EX)
            if os.fstat(held).st_nlink:  # else the one before has removed the file
                since = f"{datetime.now().astimezone():%F %T %Z}"
                os.truncate(held, 0)
                os.pwrite(held, f"process {os.getpid()} on {node()}, since {since},".encode(), 0)
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | Path, error: Error = CodiembError) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark, unpacked if its name says so.

    What cannot be read, and an empty file, is raised as an `error`, which names file and line.
    """
    path = Path(path)
    try:
        opened = PACKED.get(path.suffix.lower(), open)
        with opened(path, "rb") as stream:
            data = stream.read(-1 if opened is open else _MOST + 1)
    except (OSError, EOFError, ValueError, zlib.error) as wrong:
        found = getattr(wrong, "strerror", None) or wrong
        raise error(f"{path}: expected a file that can be read, found: {found}.") from wrong
    if opened is not open and len(data) > _MOST:
        raise error(f"{path}: expected {_MOST:,} bytes at most, found more. Unpack it first.")
    data = data.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors set before UTF-8
    try:
        text, place = data.decode("utf-8"), data.find(0)  # UTF-16 has NUL, or what a crash has cut
    except UnicodeDecodeError as wrong:
        place = wrong.start
    if place >= 0:
        line = data.count(10, 0, place) + 1
        raise error(
            f"{path}:{line}: expected UTF-8, found byte {data[place]:#04x}. Save it as UTF-8: "
            "iconv -f UTF-16 -t UTF-8 FILE > NEW, or -f of what it is."
        )
    if not text.strip():
        raise error(f"{path}: expected content, found an empty file.")
    return text


def read_json(path: str | Path) -> Any:
    """Read JSON; a CodiembError names the file and the line of what is none."""
    return parse_json(read_text(path), path)


def parse_json(text: str, path: str | Path, line: int = 1, error: Error = CodiembError) -> Any:
    """What JSON says that begins at a line of a file; an `error` names the line of what is none."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as wrong:  # also too many digits, or lists within lists
        line, found = line + getattr(wrong, "lineno", 1) - 1, getattr(wrong, "msg", wrong)
        raise error(f"{path}:{line}: expected JSON, found: {found}.") from wrong


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a key twice among {[*found]!r:.200}")
    return found


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_files(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The hashes of files in a folder, by their places in it."""
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in sorted(files)}


def damaged(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """The files that a folder lacks, or that have other hashes."""
    files = {name: folder / name for name in hashes}
    return [n for n, f in files.items() if not f.is_file() or sha256_file(f) != hashes[n]]


def sha256_folder(folder: Path) -> str:
    """SHA-256 over a model folder's weights, configuration, tokeniser and code."""
    kinds = {".safetensors", ".json", ".txt", ".model", ".py"}
    files = sorted(file for file in folder.rglob("*") if file.suffix in kinds)
    return sha256_text(*(f"{file.relative_to(folder)} {sha256_file(file)}" for file in files))


def sha256_text(*parts: str) -> str:
    """Hexadecimal SHA-256 of strings, each preceded by its length so that joints count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
