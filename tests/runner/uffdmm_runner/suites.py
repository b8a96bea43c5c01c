# SPDX-License-Identifier: GPL-2.0-or-later
"""The test runners of the project: how each is called and what it is asked."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .command import run
from .lint import lint
from .readers import ReportError, head, read_avocado, read_junit, read_meson_log, read_tap, tail
from .results import Outcome, Report, Result

BUILD_TIMEOUT = 2400.0
NATIVE_TIMEOUT = 1200.0
SANITIZER_TIMEOUT = 1800.0
PYTHON_TIMEOUT = 600.0
QTEST_TIMEOUT = 600.0
AVOCADO_TIMEOUT = 2700.0

# Where threads meet: the thread sanitizer makes the others slow and tells nothing new.
THREADED_TESTS = (
    *("conn", "slots", "tier_inject", "tier_io", "tier_pool"),
    *("nbd_links", "tier_file", "tier_nbd", "tier_volume"),
    *("overcommit", "protocol", "protocol_region", "recovery_tables"),
)
# A build with -fsanitize=thread says that it does not see fences, once for each.
THREAD_SANITIZER_ARGS = ("-Dc_args=-Wno-tsan",)

MESON_TEST_LINE = re.compile(r"^\s*\d+/\d+ .*")
AVOCADO_LINE = re.compile(r"^\s*\(\d+/\d+\) .*: +(?!STARTED)[A-Z]+.*")


def sanitizer_reports(prefix: Path) -> list[Result]:
    """What the sanitizers wrote to PREFIX.PID: each file is a failure."""
    files = sorted(prefix.parent.glob(f"{prefix.name}.*"))
    return [
        Result(f"(sanitizer) {file.name}", Outcome.FAILED, head(file.read_text(errors="replace")))
        for file in files
    ]


@dataclass
class Suites:
    """Runs suites of one checkout; what several need is made once."""

    top: Path
    logs: Path
    fast: bool = False
    made: dict[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        return self.top / "build/venv/bin"

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "UFFDMM_MANAGER": str(self.top / "build/native/native/uffdmm-manager"),
        }

    def all(self) -> dict[str, Callable[[], list[Report]]]:
        return {
            "lint": self.lint,
            "native": self.native,
            "python": self.python,
            "qtest": self.qtest,
            "avocado": self.avocado,
        }

    def lint(self) -> list[Report]:
        return [lint(self.top, self.logs)]

    # ---- C ---------------------------------------------------------------

    def native(self) -> list[Report]:
        reports = [self.meson("native", self.top / "build/native", NATIVE_TIMEOUT, {})]
        if not self.fast:
            reports.append(self.sanitized("address,undefined"))
            reports.append(self.threads())
            reports.append(self.fuzzed())
        return reports

    def fuzzed(self) -> Report:
        """The fuzz targets for some seconds each, in a build of clang's."""
        folder = self.top / "build/fuzz"
        suite = "native fuzz"
        if not (folder / "build.ninja").exists():
            done = run(
                suite,
                [
                    *("meson", "setup", folder, "-Dfuzz=true"),
                    *("-Db_sanitize=address,undefined", "-Db_lundef=false"),
                    *("-Dpython=false", "-Dtests=disabled"),
                ],
                log=self.logs / "fuzz-setup.log",
                cwd=self.top,
                timeout=BUILD_TIMEOUT,
                env={**self.environment(), "CC": "clang"},
            )
            if done.status != 0:
                report = Report(suite)
                report.fail("(meson setup)", tail(done.output))
                return report.close(done.status)
        return self.meson(suite, folder, SANITIZER_TIMEOUT, {})

    def threads(self) -> Report:
        """The tests of what threads share, in a build that sees races between them."""
        missing = self.without_thread_sanitizer()
        if missing:
            report = Report("native thread")
            report.results.append(Result("(compiler)", Outcome.SKIPPED, missing))
            return report
        return self.sanitized("thread", THREADED_TESTS, THREAD_SANITIZER_ARGS)

    def without_thread_sanitizer(self) -> str:
        """Why programs with the thread sanitizer cannot be built or run here, or nothing."""
        program = self.logs / "thread-sanitizer-probe"
        done = subprocess.run(
            ["cc", "-fsanitize=thread", "-x", "c", "-", "-o", program],
            input="int main(void) { return 0; }\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            done = subprocess.run([program], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ""
        return f"no program runs with -fsanitize=thread here: {tail(done.stderr, 1)}"

    def sanitized(
        self, sanitizers: str, tests: tuple[str, ...] = (), setup: tuple[str, ...] = ()
    ) -> Report:
        """The same programs once more, stopped by the first thing a sanitizer sees."""
        folder = self.top / f"build/{sanitizers.partition(',')[0]}-sanitizer"
        suite = f"native {sanitizers}"
        if not (folder / "build.ninja").exists():
            done = run(
                suite,
                [
                    "meson",
                    "setup",
                    folder,
                    f"-Db_sanitize={sanitizers}",
                    "-Db_lundef=false",
                    "-Dpython=false",
                    "-Dtests=enabled",
                    *setup,
                ],
                log=self.logs / f"{folder.name}-setup.log",
                cwd=self.top,
                timeout=BUILD_TIMEOUT,
                env=self.environment(),
            )
            if done.status != 0:
                report = Report(suite)
                report.fail("(meson setup)", tail(done.output))
                return report.close(done.status)
        # Into files: a report of a manager that a test started would be lost.
        reports = self.logs / f"{folder.name}-report"
        env = {
            "ASAN_OPTIONS": f"abort_on_error=1:detect_leaks=1:log_path={reports}",
            "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:log_path={reports}",
            # races do not end a program: it has more of them to show
            "TSAN_OPTIONS": f"exitcode=0:history_size=4:report_thread_leaks=0:log_path={reports}:"
            f"suppressions={self.top}/native/tests/thread-sanitizer.supp",
            "UFFDMM_SANITIZER": sanitizers,
        }
        report = self.meson(suite, folder, SANITIZER_TIMEOUT, env, tests)
        report.results += sanitizer_reports(reports)
        return report

    def meson(
        self,
        suite: str,
        folder: Path,
        timeout: float,
        env: dict[str, str],
        tests: tuple[str, ...] = (),
    ) -> Report:
        report = Report(suite)
        testlog = folder / "meson-logs/testlog.json"
        testlog.unlink(missing_ok=True)
        slower = ["--timeout-multiplier", "3"] if env else []
        done = run(
            suite,
            ["meson", "test", "-C", folder, *slower, *tests],
            log=self.logs / f"{folder.name}-test.log",
            cwd=self.top,
            timeout=timeout,
            env=self.environment() | env,
            show=lambda line: line if MESON_TEST_LINE.match(line) else None,
        )
        report.results += self.read(testlog, read_meson_log, done.output)
        return report.close(done.status)

    # ---- Python ----------------------------------------------------------

    def python(self) -> list[Report]:
        report = Report("python")
        junit = self.logs / "pytest.xml"
        junit.unlink(missing_ok=True)
        done = run(
            "python",
            ["pytest", "-p", "no:cacheprovider", "-v", f"--junitxml={junit}"],
            log=self.logs / "pytest.log",
            cwd=self.top,
            timeout=PYTHON_TIMEOUT,
            env=self.environment(),
            show=lambda line: line if line.startswith("=====") and " in " in line else None,
        )
        report.results += self.read(junit, read_junit, done.output)
        return [report.close(done.status)]

    # ---- QEMU ------------------------------------------------------------

    def make(self, script: str) -> tuple[str, str]:
        """The path that scripts/SCRIPT --print-path prints, or what went wrong."""
        if script not in self.made:
            done = run(
                script,
                [self.top / "scripts" / script, "--print-path"],
                log=self.logs / f"{script}.log",
                cwd=self.top,
                timeout=BUILD_TIMEOUT,
                env=self.environment(),
                show=lambda line: line.removeprefix(f"{script}: "),
                stdout_only=True,
            )
            lines = done.output.split("\n")
            path = lines[0].strip()
            if done.status != 0 or not Path(path).exists():
                return "", f"scripts/{script} --print-path: status {done.status}\n" + tail(
                    done.output
                )
            self.made[script] = path
        return self.made[script], ""

    def qtest(self) -> list[Report]:
        report = Report("qtest")
        qemu, problem = self.make("qemu-build")
        if problem:
            report.fail("(qemu-build)", problem)
            return [report]
        done = run(
            "qtest",
            [self.top / "scripts/qemu-build", "--run-tests"],
            log=self.logs / "qtest.tap",
            cwd=self.top,
            timeout=QTEST_TIMEOUT,
            env=self.environment() | {"UFFDMM_QEMU": qemu},
            stdout_only=True,
        )
        report.results += read_tap("qtest", done.output)
        return [report.close(done.status)]

    def avocado(self) -> list[Report]:
        report = Report("avocado")
        made: dict[str, str] = {}
        for script, variable in (("qemu-build", "UFFDMM_QEMU"), ("guest-image", "UFFDMM_GUEST")):
            path, problem = self.make(script)
            if problem:
                report.fail(f"({script})", problem)
                return [report]
            made[variable] = path
        results = self.logs / "avocado.json"
        results.unlink(missing_ok=True)
        data = self.top / "build/avocado"
        data.mkdir(parents=True, exist_ok=True)
        config = data / "avocado.conf"
        config.write_text(
            f"[datadir.paths]\nbase_dir = {data}\ndata_dir = {data}/data\n"
            f"test_dir = {data}/tests\ncache_dirs = ['{data}/cache']\nlogs_dir = {data}/results\n"
        )
        tests = sorted((self.top / "tests/avocado").glob("test_*.py"))
        named = [test.relative_to(self.top) for test in tests]
        done = run(
            "avocado",
            [
                "avocado",
                "--config",
                config,
                "run",
                "--max-parallel-tasks",
                "1",
                "--disable-sysinfo",
                "--json",
                results,
                *named,
            ],
            log=self.logs / "avocado.log",
            cwd=self.top,
            timeout=AVOCADO_TIMEOUT,
            env=self.environment()
            | made
            | {
                "PYTHONPATH": str(self.top / "tests/harness"),
                # avocado imports pkg_resources, which says so each time
                "PYTHONWARNINGS": "ignore:pkg_resources is deprecated",
            },
            show=lambda line: line.strip() if AVOCADO_LINE.match(line) else None,
        )
        report.results += self.read(results, read_avocado, done.output)
        return [report.close(done.status)]

    # ---- common ----------------------------------------------------------

    def read(self, path: Path, reader: Callable[[str], list[Result]], output: str) -> list[Result]:
        """The results in a report file; without a readable one nothing, or a failure."""
        try:
            return reader(path.read_text())
        except FileNotFoundError:
            detail = f"wrote no {path.name}\n{tail(output)}"
        except ReportError as error:
            detail = f"{path}: {error}\n{tail(output)}"
        report = Report("")
        report.fail("(runner)", detail)
        return report.results
