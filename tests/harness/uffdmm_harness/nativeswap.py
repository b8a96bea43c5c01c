# SPDX-License-Identifier: GPL-2.0-or-later
"""The way without uffdmm: a memory cgroup and a swap file.  Both need root, and are removed.

Swap on compressed memory is in zram.py.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from . import HarnessError

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_REMOVE_SECONDS = 10.0


class MemoryCgroup:
    """A memory cgroup (v1 or v2, whichever the host has) of which this process is not a member.

    :param name: of the cgroup, made below that of this process
    :param limit: bytes
    """

    def __init__(self, name: str, limit: int) -> None:
        self._limit = limit
        self._v1 = (_CGROUP_ROOT / "memory/memory.limit_in_bytes").exists()
        self._path = (_CGROUP_ROOT / "memory" if self._v1 else _unified_parent()) / name

    def enter_command(self) -> list[str]:
        """Words in front of a command that make it start inside."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._path / "cgroup.procs")]

    @property
    def _limit_file(self) -> Path:
        return self._path / ("memory.limit_in_bytes" if self._v1 else "memory.max")

    def set_limit(self, limit: int) -> None:
        """Change the limit; returns when what is above a lower one has been reclaimed.

        :raise HarnessError: the kernel could not reclaim that much
        """
        try:
            self._limit_file.write_text(str(limit))
        except OSError as error:
            raise HarnessError(
                f"cannot set the limit of the memory cgroup to {limit} bytes: {error.strerror}"
            ) from None

    def usage(self) -> int:
        """Bytes that are charged."""
        name = "memory.usage_in_bytes" if self._v1 else "memory.current"
        return int((self._path / name).read_text())

    def squeeze(self, limit: int, step: int = 64 << 20) -> None:
        """Lower the limit in steps: of much at once the kernel gives up half-way.

        :raise HarnessError: the kernel could not reclaim that much
        """
        while (usage := self.usage()) - step > limit:
            self.set_limit(usage - step)
        self.set_limit(limit)

    def unmapped_anonymous(self) -> int:
        """Bytes of anonymous memory that are charged but mapped nowhere: swap read ahead.

        They are in memory as much as mapped ones, but no process's resident set has them.
        """
        stat = dict(line.split() for line in (self._path / "memory.stat").read_text().splitlines())
        mapped = int(stat["rss" if self._v1 else "anon"])
        # Shared memory is on the same lists; v1 counts it into "cache" and names it as well.
        listed = int(stat["active_anon"]) + int(stat["inactive_anon"]) - int(stat["shmem"])
        return max(0, listed - mapped)

    def __enter__(self) -> Self:
        try:
            self._path.mkdir()
            self._limit_file.write_text(str(self._limit))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path.rmdir()
            raise HarnessError(
                f"cannot make the memory cgroup '{self._path}': {error.strerror}; "
                "root and a writable memory controller are needed"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Its last process may still be on its way out.
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                self._path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


def _unified_parent() -> Path:
    """The v2 root, with its memory controller handed down to children."""
    controllers = _CGROUP_ROOT / "cgroup.controllers"
    if not controllers.exists() or "memory" not in controllers.read_text().split():
        raise HarnessError(f"'{_CGROUP_ROOT}' offers no memory controller, neither v1 nor v2")
    control = _CGROUP_ROOT / "cgroup.subtree_control"
    if "memory" not in control.read_text().split():
        control.write_text("+memory")
    return _CGROUP_ROOT


class SwapFile:
    """A swap file that the host uses before any other.

    :param folder: on the file system whose disk shall be measured
    :param size: bytes
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / f"uffdmm-swap-{os.getpid()}"
        self._size = size
        self._on = False

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Written, not only allocated: a file system may refuse unwritten extents for swap, and
            # the first write to one costs more than the later ones.
            block = bytes(1 << 20)
            for _ in range(self._size >> 20):
                os.write(descriptor, block)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for command in (["mkswap", str(self._path)], ["swapon", "-p", "32767", str(self._path)]):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise HarnessError(
                    f"'{' '.join(command)}' failed: {result.stderr.strip()}; "
                    "root and a file system that can hold a swap file are needed"
                )
        self._on = True

    def _remove(self) -> None:
        if self._on:
            subprocess.run(["swapoff", str(self._path)], check=True)
            self._on = False
        self._path.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()
