# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the files' text."""

from pathlib import Path

from uffdmm_runner.tree import (
    SPDX,
    anchor,
    broken_links,
    missing_spdx,
    python_scripts,
    shell_scripts,
)


def write(top: Path, name: str, text: str) -> Path:
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    (top / name).write_text(text)
    return Path(name)


def test_licence_line_is_wanted_near_the_head(tmp_path: Path) -> None:
    good = write(tmp_path, "good.py", f"#!/usr/bin/python3\n# {SPDX}\n")
    late = write(tmp_path, "late.py", "\n" * 40 + f"# {SPDX}\n")
    none = write(tmp_path, "none.c", "int x;\n")
    data = write(tmp_path, "data.json", "{}\n")
    complaints = missing_spdx(tmp_path, [good, late, none, data])
    assert [c.partition(":")[0] for c in complaints] == ["late.py", "none.c"]


def test_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"\xff\xfe\x00")
    assert "not text" in missing_spdx(tmp_path, [Path("blob")])[0]


def test_links_are_followed_from_the_folder_of_the_document(tmp_path: Path) -> None:
    write(tmp_path, "docs/other.md", "# Life of a fault\n")
    write(tmp_path, "native/src/fault.c", "\n")
    page = write(
        tmp_path,
        "docs/page.md",
        "[ok](other.md) [ok](other.md#life-of-a-fault) [out](https://example.org/x)\n"
        "see `native/src/fault.c`, `native/src/gone.c` and [gone](gone.md)\n"
        "[heading](other.md#life-of-a-page)\n"
        "```\n[not](a-link.md)\n```\n",
    )
    complaints = broken_links(tmp_path, [page])
    assert len(complaints) == 3
    assert "docs/page.md:2: link to gone.md: no such file" in complaints
    assert "docs/page.md:2: names native/src/gone.c, which does not exist" in complaints
    assert "docs/page.md:3: link to other.md#life-of-a-page: no such heading" in complaints


def test_anchor_of_a_heading_with_code() -> None:
    assert anchor(" The `file` tier: slots, TRIM") == "the-file-tier-slots-trim"


def test_scripts_are_known_by_their_first_line(tmp_path: Path) -> None:
    bash = write(tmp_path, "run", "#!/usr/bin/env bash\n")
    posix = write(tmp_path, "init", "#!/bin/sh\n")
    library = write(tmp_path, "lib.sh", "# sourced\n")
    python = write(tmp_path, "tool", "#!/usr/bin/env python3\n")
    module = write(tmp_path, "module.py", "#!/usr/bin/env python3\n")
    files = [bash, posix, library, python, module]
    assert shell_scripts(tmp_path, files) == [bash, posix, library]
    assert python_scripts(tmp_path, files) == [python]
