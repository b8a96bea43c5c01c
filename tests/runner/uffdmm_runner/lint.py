# SPDX-License-Identifier: GPL-2.0-or-later
"""Every static check as one counted test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import tree
from .command import run, say
from .results import Outcome, Report

Verdict = tuple[bool, str]

COMMAND_TIMEOUT = 900.0


@dataclass(frozen=True)
class Lint:
    """The checks of one checkout, with the tools of its virtual environment."""

    top: Path
    logs: Path

    @property
    def bin(self) -> Path:
        return self.top / "build/venv/bin"

    def command(
        self, name: str, *argv: str | Path, silent: bool = False, env: dict[str, str] | None = None
    ) -> Verdict:
        """Passes on exit status 0, and with silent on no output besides."""
        done = run(
            f"lint {name}",
            argv,
            log=self.logs / f"lint-{name}.log",
            cwd=self.top,
            timeout=COMMAND_TIMEOUT,
            env={"PATH": f"{self.bin}:{os.environ['PATH']}"} | (env or {}),
        )
        good = done.status == 0 and not (silent and done.output.strip())
        return good, "" if good else f"exit status {done.status}\n{done.output}"

    def files(self, *ends: str, under: str = "") -> list[Path]:
        return [
            p
            for p in tree.project_files(self.top)
            if str(p).startswith(under) and p.name.endswith(ends)
        ]

    def clang_format(self) -> Verdict:
        files = self.files(".c", ".h", under="native/") + self.files(
            ".c", ".h", under="tests/guest/"
        )
        return self.command(
            "clang-format", "clang-format", "--dry-run", "-Werror", *files, silent=True
        )

    def clang_tidy(self) -> Verdict:
        """On what the build compiles, with its flags, each file once.

        Most files are compiled twice; the time with test hooks sees more of them.
        """
        database = self.top / "build/native/compile_commands.json"
        once: dict[Path, dict[str, str]] = {}
        for entry in json.loads(database.read_text()):
            path = (Path(entry["directory"]) / entry["file"]).resolve()
            if path.is_relative_to(self.top / "native") and (
                path not in once or "-DUFFDMM_TEST_HOOKS" in entry["command"]
            ):
                once[path] = entry
        if not once:
            return False, f"no file of native/ in {database}"
        folder = self.logs / "clang-tidy"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compile_commands.json").write_text(json.dumps(list(once.values())))
        # xargs -P: clang-tidy's own parallel driver is in another package.
        script = 'printf "%s\\0" "$@" | xargs -0 -n 1 -P "$JOBS" nice clang-tidy --quiet -p "$DB"'
        good, detail = self.command(
            "clang-tidy",
            "bash",
            "-c",
            f"set -o pipefail; {script}",
            "clang-tidy",
            *sorted(once),
            env={"JOBS": str(os.cpu_count() or 1), "DB": str(folder)},
        )
        lines = [x for x in detail.splitlines() if not x.endswith("generated.")]
        return good, "\n".join(lines)

    def warnings(self, compiler: str) -> Verdict:
        """A build of its own with all warnings as errors, optimised: some need that."""
        folder = self.top / f"build/lint-{compiler}"
        if not (folder / "build.ninja").exists():
            good, detail = self.command(
                f"{compiler}-setup",
                "meson",
                "setup",
                folder,
                "-Dbuildtype=release",
                "-Db_ndebug=false",
                "-Dwerror=true",
                "-Dpython=false",
                "-Dtests=enabled",
                env={"CC": compiler},
            )
            if not good:
                return good, detail
        return self.command(f"{compiler}-build", "nice", "ninja", "-C", folder)

    def gcc(self) -> Verdict:
        return self.warnings("gcc")

    def clang(self) -> Verdict:
        return self.warnings("clang")

    def python_scripts(self) -> list[Path]:
        """What the Python tools do not find by themselves."""
        return tree.python_scripts(self.top, tree.project_files(self.top))

    def ruff_check(self) -> Verdict:
        return self.command(
            "ruff-check", "ruff", "check", "--no-cache", ".", *self.python_scripts()
        )

    def ruff_format(self) -> Verdict:
        argv = ["ruff", "format", "--no-cache", "--check", "."]
        return self.command("ruff-format", *argv, *self.python_scripts())

    def mypy(self, name: str = "mypy", files: Sequence[Path] = ()) -> Verdict:
        cache = self.top / "build/mypy-cache"
        return self.command(name, "mypy", "--strict", "--cache-dir", cache, *files)

    def mypy_scripts(self) -> Verdict:
        """By themselves: naming files replaces those of the configuration."""
        scripts = self.python_scripts()
        return self.mypy("mypy-scripts", scripts) if scripts else (True, "")

    def shellcheck(self) -> Verdict:
        scripts = tree.shell_scripts(self.top, tree.project_files(self.top))
        return self.command("shellcheck", "shellcheck", "-x", *scripts, silent=True)

    def series_check(self) -> Verdict:
        return self.command("series-check", "scripts/qemu-series", "check")

    def series_style(self) -> Verdict:
        return self.command("series-style", "scripts/qemu-series", "checkpatch")

    def spdx(self) -> Verdict:
        complaints = tree.missing_spdx(self.top, tree.project_files(self.top))
        return not complaints, "\n".join(complaints)

    def links(self) -> Verdict:
        complaints = tree.broken_links(self.top, tree.project_files(self.top))
        return not complaints, "\n".join(complaints)

    def checks(self) -> dict[str, Callable[[], Verdict]]:
        return {
            "every file names its licence": self.spdx,
            "links of the documents lead somewhere": self.links,
            "shellcheck": self.shellcheck,
            "ruff check": self.ruff_check,
            "ruff format": self.ruff_format,
            "mypy --strict": self.mypy,
            "mypy --strict of the scripts": self.mypy_scripts,
            "clang-format": self.clang_format,
            "gcc without warnings": self.gcc,
            "clang without warnings": self.clang,
            "clang-tidy": self.clang_tidy,
            "qemu-patches equal backend/": self.series_check,
            "checkpatch": self.series_style,
        }


def lint(top: Path, logs: Path) -> Report:
    report = Report("lint")
    for name, check in Lint(top, logs).checks().items():
        try:
            good, detail = check()
        except Exception as error:  # noqa: BLE001 - whatever it was, it counts
            good, detail = False, f"the check itself failed: {error!r}"
        report.add(name, Outcome.PASSED if good else Outcome.FAILED, detail)
        say(f"lint: {name}: {'ok' if good else 'FAILED'}")
    return report.close(0)
