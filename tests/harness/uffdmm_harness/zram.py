# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap on compressed memory, as Linux has it, on a device of its own that is removed again."""

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import HarnessError

_CONTROL = Path("/sys/class/zram-control")
_NODE_SECONDS = 5.0


class ZramMissingError(HarnessError):
    """The host has no zram, or not with this codec."""


@dataclass(frozen=True, slots=True)
class ZramMemory:
    """What a device holds (mm_stat)."""

    stored_bytes: int  # before compression
    compressed_bytes: int
    memory_bytes: int  # taken for that, with what the allocator wastes
    raw_pages: int  # that did not compress


class ZramSwap:
    """A zram device that the host uses as swap before any other.

    Its memory is the kernel's: no memory cgroup is charged for it.

    :param size: bytes that may be swapped to it
    :param codec: compression algorithm
    """

    def __init__(self, size: int, codec: str = "lz4") -> None:
        self._size = size
        self._codec = codec
        self._number: int | None = None
        self._on = False
        self._loaded = False

    @property
    def _sys(self) -> Path:
        return Path(f"/sys/block/zram{self._number}")

    @property
    def _device(self) -> Path:
        return Path(f"/dev/zram{self._number}")

    def __enter__(self) -> Self:
        try:
            self._load()
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _load(self) -> None:
        if _CONTROL.exists():
            return
        done = _run(["modprobe", "zram", "num_devices=0"])
        if not _CONTROL.exists():
            raise ZramMissingError(
                f"the host has no zram ({done.stderr.strip() or 'no such module'})"
            )
        self._loaded = True

    def _make(self) -> None:
        try:
            self._number = int((_CONTROL / "hot_add").read_text())
        except OSError as error:
            raise ZramMissingError(
                f"cannot add a zram device: {error.strerror}; root is needed"
            ) from None
        known = (self._sys / "comp_algorithm").read_text().replace("[", "").replace("]", "")
        if self._codec not in known.split():
            raise ZramMissingError(f"zram has no {self._codec}, but {known.strip()}")
        (self._sys / "comp_algorithm").write_text(self._codec)
        (self._sys / "disksize").write_text(str(self._size))
        deadline = time.monotonic() + _NODE_SECONDS
        while not self._device.exists():
            if time.monotonic() > deadline:
                raise HarnessError(f"'{self._device}' has not appeared: is devtmpfs mounted?")
            time.sleep(0.01)
        for command in (
            ["mkswap", str(self._device)],
            ["swapon", "-p", "32767", str(self._device)],
        ):
            done = _run(command)
            if done.returncode:
                raise HarnessError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")
            # Before swapon, too: an interrupt may come while it works.
            self._on = True

    def memory(self) -> ZramMemory:
        """What it holds now."""
        words = [int(word) for word in (self._sys / "mm_stat").read_text().split()]
        return ZramMemory(
            stored_bytes=words[0],
            compressed_bytes=words[1],
            memory_bytes=words[2],
            raw_pages=words[7],
        )

    def _remove(self) -> None:
        if self._number is not None:
            if self._on:
                done = _run(["swapoff", str(self._device)])
                if done.returncode and _in_use(self._device):
                    raise HarnessError(
                        f"'{self._device}' is still in use as swap: {done.stderr.strip()}; "
                        f"run 'swapoff {self._device}'"
                    )
            # A probe of the device by others may hold it open for a moment.
            deadline = time.monotonic() + _NODE_SECONDS
            while True:
                try:
                    (self._sys / "reset").write_text("1")
                    (_CONTROL / "hot_remove").write_text(str(self._number))
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                else:
                    break
            self._number = None
        if self._loaded:
            _run(["modprobe", "-r", "zram"])
            self._loaded = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()


def _in_use(device: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
        return any(line.split()[0] == str(device) for line in lines)
    return False


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # In a session of its own: an interrupt from the terminal would end swapoff half way.
    return subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True
    )
