# SPDX-License-Identifier: GPL-2.0-or-later
"""File and drop-ins to one document that remembers where each value came from.

``uffdmm.toml`` is read first, then ``uffdmm.toml.d/*.toml`` in the order of their names.  Tables
are merged, tiers by their name, and of two values for one key the later one wins.  Nothing is
checked here but what the merging needs.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .problem import Problem, Severity

DEFAULT_FILE = Path("/etc/uffdmm/uffdmm.toml")

_BARE = re.compile(r"[A-Za-z0-9_-]+")

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """What the files say together.

    ``data`` is plain TOML data; in ``origins`` a tier is addressed by its index.
    """

    main: Path
    files: list[Path] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Path | None:
        """The file that a key, or the nearest table around it, came from."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.files[0] if len(self.files) == 1 else None

    def value(self, path: KeyPath) -> Any:
        """The value at a key path, or None."""
        found: Any = self.data
        for step in path:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def name_of(self, path: KeyPath) -> str:
        """The key path for people: ``tier.ssd.capacity``."""
        words: list[str] = []
        for index, step in enumerate(path):
            if isinstance(step, int):
                name = self.value((*path[: index + 1], "name"))
                words[-1] += f".{name}" if isinstance(name, str) and name else f"[{step}]"
            else:
                words.append(step if _BARE.fullmatch(step) else f'"{step}"')
        return ".".join(words)

    def problem(
        self, path: KeyPath, message: str, remedy: str | None, *, warning: bool = False
    ) -> Problem:
        """A problem with what stands at a key path."""
        file = self.origin(path)
        return Problem(
            severity=Severity.WARNING if warning else Severity.ERROR,
            file=None if file is None else str(file),
            key=self.name_of(path),
            value=self.value(path),
            message=message,
            remedy=remedy,
        )


def read_document(path: Path | None = None) -> Document:
    """The file and its drop-ins as one document; what cannot be read becomes a problem.

    :param path: the main file; None is ``/etc/uffdmm/uffdmm.toml``
    """
    main = path or DEFAULT_FILE
    document = Document(main)
    folder = main.with_name(main.name + ".d")
    try:
        drop_ins = sorted(entry for entry in folder.iterdir() if entry.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    except OSError as error:
        drop_ins = []
        document.problems.append(_unreadable(folder, error))
    # Without a main file the drop-ins may say all that is needed.
    wanted = drop_ins if drop_ins and not main.exists() else [main, *drop_ins]
    for file in wanted:
        _read_file(document, file)
    return document


def _read_file(document: Document, file: Path) -> None:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        document.problems.append(_unreadable(file, error))
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        text = str(error)
        document.problems.append(
            Problem(
                severity=Severity.ERROR,
                file=str(file),
                key="",
                message=f"this is not TOML: {text[:1].lower()}{text[1:]}",
                remedy="correct that line; uffdmm.toml(5) has an example",
            )
        )
        return
    document.files.append(file)
    tiers = data.get("tier")
    named = isinstance(tiers, list) and all(isinstance(tier, dict) for tier in tiers)
    for key, value in data.items():
        if key == "tier" and named:
            _merge_tiers(document, value, file)
        else:
            _merge(document, document.data, {key: value}, (), file)


def _merge(
    document: Document, old: dict[str, Any], new: dict[str, Any], path: KeyPath, file: Path
) -> None:
    """Put a table over another one."""
    for key, value in new.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(document, old[key], value, here, file)
            continue
        for known in [known for known in document.origins if known[: len(here)] == here]:
            del document.origins[known]
        old[key] = value
        _note_origin(document, here, value, file)


def _note_origin(document: Document, path: KeyPath, value: object, file: Path) -> None:
    document.origins[path] = file
    if isinstance(value, dict):
        for key, inner in value.items():
            _note_origin(document, (*path, key), inner, file)


def _merge_tiers(document: Document, tiers: list[dict[str, Any]], file: Path) -> None:
    """Tiers are one by name; new ones go to the end."""
    if not isinstance(document.data.setdefault("tier", []), list):
        document.data["tier"] = []
    known: list[dict[str, Any]] = document.data["tier"]
    document.origins.setdefault(("tier",), file)
    seen: set[str] = set()
    for tier in tiers:
        name = tier.get("name")
        index = next(
            (i for i, old in enumerate(known) if name is not None and old.get("name") == name),
            len(known),
        )
        if index == len(known):
            known.append({})
            document.origins["tier", index] = file
        if isinstance(name, str):
            if name in seen:
                document.problems.append(
                    Problem(
                        severity=Severity.ERROR,
                        file=str(file),
                        key=f"tier.{name}",
                        message="there are two tiers of this name in this file",
                        remedy="give one of them another name",
                    )
                )
            seen.add(name)
        _merge(document, known[index], tier, ("tier", index), file)


def _unreadable(path: Path, error: OSError) -> Problem:
    missing = isinstance(error, FileNotFoundError)
    return Problem(
        severity=Severity.ERROR,
        file=str(path),
        key="",
        message=f"cannot be read: {os.strerror(error.errno or 0).lower()}",
        remedy="create it (uffdmm.toml(5) has an example), or name another one"
        if missing
        else None,
    )
