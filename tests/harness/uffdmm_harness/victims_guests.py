# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests whose accesses ``scripts/bench victims --record`` records.

The guest image has a kernel, busybox and the test program.  A second initramfs behind it, made
here, brings programs of this host with the libraries that they need, and an ``/init`` that prepares
one job, says that it is ready and repeats the job until the guest is ended.
"""

import gzip
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import HarnessError, places
from .machine import MIB, MachineConfig

RAM = 160 * MIB
BUSYBOX = Path("/bin/busybox")
_APPLETS = (
    *("sh", "mount", "sync", "reboot", "stty", "sort", "tar", "gzip", "seq", "cat", "echo"),
    *("mkdir", "read", "awk", "md5sum", "dd", "cp", "rm", "sleep", "head", "wc", "true"),
)
_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=90% tmpfs /tmp
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>/dev/console
cd /tmp
{prepare}
echo '{{"event":"ready"}}'
{job}
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a guest does while it is recorded.

    :param fill: for the test program: bytes to fill first, 0 for none
    :param run: for the test program: its pattern
    :param prepare: else: shell commands before, and
    :param job: those that are recorded; what reads a line waits for the mark
    :param programs: of this host, for the job
    :param window: seconds of guest time a look covers
    :param windows: how many
    :param mark: after so many windows the guest gets a line and the next one this name
    :param boot: recorded from the first instruction on
    """

    name: str
    about: str
    fill: int = 0
    run: str = ""
    prepare: str = ""
    job: str = ""
    programs: tuple[Path, ...] = ()
    window: float = 0.02
    windows: int = 100
    mark: tuple[int, str] | None = None
    boot: bool = False

    def config(self, accel: str, folder: Path) -> MachineConfig:
        """The machine; ``folder`` gets its initramfs."""
        config = MachineConfig(accel=accel, ram=RAM, name=self.name)
        if self.job:
            initrd = folder / "initrd"
            initrd.write_bytes(
                places.guest_image().initrd.read_bytes() + gzip.compress(_newc(self._files()), 1)
            )
            # The later of two equal options counts.
            config.arguments = ["-initrd", str(initrd)]
        return config

    def _files(self) -> Iterator[tuple[str, int, bytes]]:
        init = _INIT.format(prepare=self.prepare, job=self.job)
        yield "init", 0o100755, init.encode()
        yield "tmp", 0o040755, b""
        for applet in _APPLETS:
            yield f"bin/{applet}", 0o120777, b"busybox"
        seen: set[str] = set()
        for program in self.programs:
            for path in (program, *_libraries(program)):
                target = f"bin/{path.name}" if path == program else str(path).lstrip("/")
                for parent in reversed(Path(target).parents[:-1]):
                    if str(parent) not in seen:
                        seen.add(str(parent))
                        yield str(parent), 0o040755, b""
                if target not in seen:
                    seen.add(target)
                    yield target, 0o100755, path.read_bytes()


def _libraries(program: Path) -> list[Path]:
    """What the program is linked with, as its loader tells."""
    if not program.exists():
        raise HarnessError(f"'{program}' is needed in the guest: install it on this host")
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return [Path(word) for word in dict.fromkeys(words) if word.startswith("/")]


def _newc(files: Iterator[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the format that the kernel unpacks."""
    parts: list[bytes] = []
    entries = [*files, ("TRAILER!!!", 0, b"")]
    for number, (name, mode, data) in enumerate(entries, 1):
        plain = name.encode() + b"\0"
        links = 2 if mode & 0o040000 else 1
        numbers = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(plain), 0)
        head = b"070701" + b"".join(b"%08x" % value for value in numbers) + plain
        parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def _compiler() -> Path:
    done = subprocess.run(
        ["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


# Rows that a program keeps in a hash table, about 25 MiB, and mostly updates a fifth of.
_TABLE = """
my $n = 60000;
my %h = map { ("key$_" => "x" x 200) } 1 .. $n;
print STDOUT "{\\"event\\":\\"ready\\"}\\n" if $ARGV[0];
$| = 1;
while (1) {
    my $k = int(rand(rand() < 0.95 ? $n / 5 : $n));
    $h{"key$k"} = "y" x (190 + $k % 20);
}
"""
_QUERIES = """
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    k=$((i * 317 % 20000))
    echo "select count(*), sum(v) from t where k between $k and $((k + 40));"
    echo "update t set v = v + 1 where k = $((i * i * 91 % 20000));"
    echo "select sum(v) from t where name = 'n$((i * 773 % 5000))';"
done
"""
# A program of some size for the compiler, made by the shell.
_SOURCE = """
awk 'BEGIN {
    for (i = 0; i < 400; i++) {
        printf "struct s%d { int a[%d]; struct s%d *next; };\\n", i, i + 1, i
        printf "int f%d(struct s%d *p, int n) { int r = 0; for (int i = 0; i < n; i++) {\\n", i, i
        printf " switch (p->a[i %% %d] & 7) { case 0: r += i * %d; break;\\n", i + 1, i
        printf " case 1: r ^= p->a[0]; break; case 2: r -= n; break; default: r++; }\\n"
        printf " p = p->next; } return r; }\\n"
    }
}' >big.c
"""


def workloads() -> list[Workload]:
    """All of them."""
    program: dict[str, int] = {"fill": 64 * MIB}
    return [
        Workload(
            "boot",
            "firmware, kernel, unpacking of the initramfs",
            boot=True,
            window=0.05,
            windows=60,
        ),
        Workload(
            "random",
            "the test program, any of 64 MiB",
            **program,  # type: ignore[arg-type]
            run="random",
            window=0.01,
            windows=60,
        ),
        Workload(
            "sequential",
            "the test program, 64 MiB in order",
            **program,  # type: ignore[arg-type]
            run="sequential",
            window=0.01,
        ),
        Workload(
            "hot",
            "the test program, 95 % of steps in 30 % of 64 MiB",
            **program,  # type: ignore[arg-type]
            run="hot",
            window=0.01,
        ),
        Workload(
            "sort",
            "busybox sort of 200 000 numbers",
            prepare="seq 200000 | awk '{print $1 * 7919 % 1000003}' >numbers",
            job="while :; do sort -n numbers >sorted; done",
            window=0.2,
        ),
        Workload(
            "pack",
            "busybox tar and gzip of 24 MiB of programs",
            prepare="mkdir tree; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do\n"
            "cp /bin/busybox tree/$i; done",
            job="while :; do tar cf - tree | gzip >tree.tar.gz; done",
            window=0.2,
        ),
        Workload(
            "compile",
            "gcc's compiler proper on a file of 400 functions",
            prepare=_SOURCE,
            job="while :; do cc1 -quiet -O2 big.c -o big.s; done",
            programs=(_compiler(),),
            window=0.15,
            windows=120,
        ),
        Workload(
            "database",
            "sqlite: queries and updates of 20 000 indexed rows",
            prepare=(
                "{ echo 'create table t(k integer primary key, name text, v int, pad text);'\n"
                "echo 'begin;'\n"
                "awk 'BEGIN { for (i = 0; i < 20000; i++) printf "
                '"insert into t values(%d, \\047n%d\\047, %d, hex(randomblob(300)));\\n", '
                "i, i * 7 % 5000, i }'\n"
                "echo 'create index i on t(name); commit;'; } | sqlite3 base\n"
                f"{{ {_QUERIES.strip()} \n}} >queries"
            ),
            job="while :; do sqlite3 base <queries >answers; done",
            programs=(Path("/usr/bin/sqlite3"),),
            window=0.1,
        ),
        Workload(
            "table-scan",
            "a hash table, a fifth of it in use; at the mark scans of a file of 40 MiB begin",
            prepare=(
                f"cat >table.pl <<'END'\n{_TABLE}\nEND\n"
                "dd if=/dev/zero of=file bs=1M count=40 2>/dev/null"
            ),
            job=("perl table.pl 1 &\nread line\nwhile :; do md5sum file >sum; done\n"),
            programs=(Path("/usr/bin/perl"),),
            window=0.15,
            windows=120,
            mark=(60, "scan"),
        ),
    ]
