"""A run's rows, tokenised: read from their sources, or from disk where an earlier run with the same ones left them.

Many rows are written to a store (`preftune.train.stored`) as they are tokenised, and mapped into memory from there. A
store lies in the cache under a hash of all that it depends on (`preftune.train.rows_key`), so that the next start reads
nothing else. Whatever is wrong with the cache costs time, never the run, and is said in the run's notes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.config import Recipe
from preftune.methods import Method
from preftune.models import Policy
from preftune.records import Group, TokenCounts
from preftune.tokens import TokenContract
from preftune.train.reference import default_folder
from preftune.train.rows import Rows, Splits, read_splits, tokenise
from preftune.train.rows_key import draft_key, full_key
from preftune.train.stored import SPLITS, Damaged, NotExact, SplitWriter, StoredGroups, add_tokens

STORED_FROM = 5_000
"""Training rows from which they are stored; fewer are faster to tokenise than to look after."""
KEPT = 4
"""Data sets that stay in the cache: those used last."""
ABANDONED = 24 * 3600.0
"""Seconds after which a half-written store has no writer any more."""
META = "meta.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The rows of a run.

    Attributes:
        splits: train, validation and test.
        counts: what the token contract did, by split.
        notes: sentences for the report.
        facts: what the manifest says of each split's sources.
    """

    splits: Splits
    counts: dict[str, TokenCounts]
    notes: list[str]
    facts: dict[str, dict[str, Any]]


class RowsOf:
    """A recipe's rows, opened in two steps: `RowsOf(…)` reads the sources, so that a mistake in the data is found
    before a model is loaded; `prepare` tokenises. Where the cache seems to have the rows, the first step reads nothing.

    Raises:
        PreftuneError: as `read_splits` does.
    """

    def __init__(self, recipe: Recipe, method: Method, base_dir: Path | None) -> None:
        self._recipe, self._method, self._base_dir = recipe, method, base_dir
        self._folder = default_folder("rows")
        self._draft, self._why = "", ""
        if recipe.tokens.cache:
            try:
                self._draft, self._why = draft_key(recipe, method, base_dir)
            except OSError as error:  # a file that went away just now: reading says so
                self._why = str(error)
        known = bool(self._draft) and any(self._folder.glob(f"{self._draft}-*/{META}"))
        self._loaded: dict[str, Rows] | None = None if known else read_splits(recipe, base_dir)

    def prepare(self, contract: TokenContract, policy: Policy) -> Prepared:
        """The tokenised rows. Raises DataError as `read_splits` and `tokenise` do."""
        key, trouble = "", ""
        if self._draft:
            key, self._why = full_key(self._draft, contract, policy)
        if key:
            path = self._folder / f"{self._draft}-{key}"
            if path.exists():
                try:
                    found = open_store(path, key)
                except (Damaged, OSError) as error:
                    trouble = f"; those in {path} were not used: {error}"
                    _remove(path)
                else:
                    rows = len(found.splits["train"])
                    found.notes.append(f"{rows:,} training rows come from {path}, as an earlier run tokenised them")
                    return found
        loaded = read_splits(self._recipe, self._base_dir) if self._loaded is None else self._loaded
        self._loaded = None
        many = len(loaded["train"].examples) >= STORED_FROM
        if many and key:
            made = self._store(loaded, contract, policy, key)
            if isinstance(made, Prepared):
                if trouble:
                    made.notes[-1] += trouble
                return made
            self._why = made
        splits, counts, notes = tokenise(loaded, self._recipe, self._method, contract, policy)
        if (many or trouble) and self._why:
            notes.append(f"the tokenised rows are kept in memory, not on disk: {self._why}{trouble}")
        elif trouble:
            notes.append(f"the training rows were tokenised again{trouble}")
        return Prepared(splits, counts, notes, {name: rows.facts for name, rows in loaded.items()})

    def _store(self, loaded: dict[str, Rows], contract: TokenContract, policy: Policy, key: str) -> Prepared | str:
        """Tokenise into a store. Returns what the store holds, or why there is none."""
        name = f"{self._draft}-{key}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._folder))
        except OSError as error:
            return f"{self._folder} can't be written ({error.strerror or error}); set PREFTUNE_CACHE to another folder"
        writers: dict[str, SplitWriter] = {}
        digest = hashlib.sha256()
        try:

            def writer(split: str) -> SplitWriter:
                assert split == SPLITS[len(writers)], "the digest is over the splits in their order"
                writers[split] = SplitWriter(temporary, split, digest)
                return writers[split]

            _, counts, notes = tokenise(loaded, self._recipe, self._method, contract, policy, writer)
            for split in SPLITS[len(writers) :]:
                writer(split)
            meta = {
                "key": key, "digest": digest.hexdigest(), "notes": notes,
                "splits": {split: one.finish() for split, one in writers.items()},
                "counts": {split: asdict(one) for split, one in counts.items()},
                "facts": {split: rows.facts for split, rows in loaded.items()},
            }  # fmt: skip
            if draft_key(self._recipe, self._method, self._base_dir)[0] != self._draft:
                return "a data file changed while it was read"
            text = json.dumps(meta)
            about = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "meta": text}
            (temporary / META).write_text(json.dumps(about), encoding="utf-8")
            path = _publish(temporary, self._folder / name)
            out = open_store(path, key)
        except NotExact as error:
            return str(error)
        except (Damaged, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return f"{self._folder} can't be written ({why}); set PREFTUNE_CACHE to another folder"
        finally:
            for one in writers.values():
                with suppress(OSError):  # a full disk once more
                    one.close()
            shutil.rmtree(temporary, ignore_errors=True)
        _tidy(self._folder)
        out.notes.append(f"the tokenised rows are kept in {path}, for this and later runs")
        return out


def open_store(path: Path, key: str) -> Prepared:
    """What a store's folder holds; counts as a use of it.

    Raises:
        Damaged: it is no whole store, or one of another key.
        OSError: it can't be read.
    """
    try:
        about = json.loads((path / META).read_text(encoding="utf-8"))
        text = about["meta"]
        if hashlib.sha256(text.encode()).hexdigest() != about["sha256"]:
            raise Damaged(f"{META} is damaged")
        meta = json.loads(text)
        if meta["key"] != key:
            raise Damaged(f"{META} is another store's")
        counts = {split: TokenCounts(**one) for split, one in meta["counts"].items()}
        splits: dict[str, StoredGroups] = {name: StoredGroups(path, name, meta["splits"][name]) for name in SPLITS}
        notes, facts, digest = list(meta["notes"]), dict(meta["facts"]), str(meta["digest"])
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{META} can't be read ({type(error).__name__})") from error
    for one in splits.values():
        one.digest = (digest, tuple(splits.values()))
    with suppress(OSError):  # a cache that others wrote may be read-only
        os.utime(path / META)
    return Prepared(dict(splits), counts, notes, facts)


def tokens_digest(splits: Sequence[Sequence[Group]]) -> str:
    """Hash of all ids of the splits in this order; splits of one store know theirs."""
    first = splits[0] if splits else None
    if isinstance(first, StoredGroups) and first.digest is not None:
        known, together = first.digest
        if len(together) == len(splits) and all(a is b for a, b in zip(splits, together, strict=True)):
            return known
    digest = hashlib.sha256()
    for groups in splits:
        for group in groups:
            add_tokens(digest, group)
    return digest.hexdigest()


def _publish(temporary: Path, path: Path) -> Path:
    """Move a finished store to its place. Where another process was faster, its store is as good."""
    try:
        os.rename(temporary, path)
    except OSError:
        if not (path / META).exists():
            raise
    return path


def _remove(path: Path) -> None:
    """Away under another name first, so that nobody opens half of it."""
    aside = path.with_name(f".removing-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):  # another process was faster
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove the data sets that were used longest ago, and what killed processes left behind. A run that still reads
    one keeps its mapped files until it ends."""
    used: dict[Path, float] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith((".writing-", ".removing-")):
                newest = max((one.stat().st_mtime for one in path.iterdir()), default=path.stat().st_mtime)
                if time.time() - newest > ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)
            elif (path / META).is_file():
                used[path] = (path / META).stat().st_mtime
    for path in sorted(used, key=lambda one: used[one], reverse=True)[KEPT:]:
        _remove(path)
