# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files the project has, and checks of their text."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

SPDX = "SPDX-License-Identifier: GPL-2.0-or-later"
SPDX_LINES = 10
"""The licence line is looked for in this many first lines."""

# Bytes as fuzz targets take them: a line more would be another input.
FUZZ_INPUTS = ("native/fuzz/corpus/", "native/fuzz/regressions/")
NO_SPDX = (
    "LICENSE",
    "py.typed",
    ".json",
    # archives of arrays: recorded traces
    ".npz",
    # the series, and what it is made of: every line in them is part of it
    ".patch",
    ".diff",
    "backend/BASE",
    "backend/edits/cover.txt",
    "backend/manifest",
    "qemu-patches/BASE",
    "qemu-patches/series",
)
"""Ends of paths whose format has no comment, or whose text others prescribe."""

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*(```|~~~)")
CODE_SPAN = re.compile(r"`([^`]+)`")
TREE_PATH = re.compile(
    r"^(?:native|pycontrol|backend|qemu-patches|scripts|tests|docs|\.ci)/[\w./-]*[\w-]/?$"
)


def project_files(top: Path) -> list[Path]:
    """Paths relative to top of all files that are, or could be, committed."""
    listing = subprocess.run(
        # A checkout of another user is still only read here.
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=top,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [Path(n) for n in listing.stdout.split("\0") if n]
    else:
        # Not a git checkout: a tarball, where nothing but build/ was added.
        names = [
            p.relative_to(top)
            for p in top.rglob("*")
            if p.relative_to(top).parts[0] not in ("build", ".git") and "__pycache__" not in p.parts
        ]
    return sorted(n for n in names if (top / n).is_file())


def first_line(top: Path, path: Path) -> bytes:
    with (top / path).open("rb") as file:
        return file.readline(80)


def shell_scripts(top: Path, files: Iterable[Path]) -> list[Path]:
    """Scripts for a shell, by their first line or the end of their name."""
    shebang = re.compile(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b")
    return [p for p in files if p.suffix == ".sh" or shebang.match(first_line(top, p))]


def python_scripts(top: Path, files: Iterable[Path]) -> list[Path]:
    """Python programs whose name does not say so."""
    shebang = re.compile(rb"#!\s*/(usr/)?bin/(env )?python3\b")
    return [p for p in files if p.suffix != ".py" and shebang.match(first_line(top, p))]


def missing_spdx(top: Path, files: Iterable[Path]) -> list[str]:
    """One line for each file without the licence line."""
    complaints = []
    for path in files:
        if str(path).endswith(NO_SPDX) or str(path).startswith(FUZZ_INPUTS):
            continue
        try:
            head = (top / path).read_text().splitlines()[:SPDX_LINES]
        except UnicodeDecodeError:
            complaints.append(f"{path}: not text: a binary file in the tree")
            continue
        if not any(SPDX in line for line in head):
            complaints.append(f"{path}: no line '{SPDX}' in its first {SPDX_LINES} lines")
    return complaints


def anchor(heading: str) -> str:
    """The fragment by which a heading of a Markdown document is linked to."""
    plain = re.sub(r"[`*_]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a Markdown document outside its fenced blocks."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(document: Path) -> set[str]:
    lines = (line for _, line in prose(document.read_text()))
    return {anchor(line.lstrip("#")) for line in lines if line.startswith("#")}


def broken_links(top: Path, files: Iterable[Path]) -> list[str]:
    """Relative links, and paths of the tree in code spans, that lead nowhere."""
    complaints = []
    for path in files:
        if path.suffix != ".md":
            continue
        for number, line in prose((top / path).read_text()):
            where = f"{path}:{number}"
            for target in LINK.findall(line):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, fragment = target.partition("#")
                document = (top / path).parent / name if name else top / path
                if not document.exists():
                    complaints.append(f"{where}: link to {target}: no such file")
                elif fragment and fragment not in anchors(document):
                    complaints.append(f"{where}: link to {target}: no such heading")
            for span in CODE_SPAN.findall(line):
                word = span.split(" ")[0]
                if TREE_PATH.match(word) and not (top / word).exists():
                    complaints.append(f"{where}: names {word}, which does not exist")
    return complaints
