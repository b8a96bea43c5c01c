# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that write to guest memory past write protection: what was read must be there."""

import os
import struct
from pathlib import Path
from unittest import mock

from uffdmm_test import MIB, UffdmmTest, places

from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager

_PAGE = 4096
_DISK = 16 * MIB
_RAM = 192 * MIB
_LIMIT = 64 * MIB
_WORKING_SET = 90 * MIB
# A page is in flight for a moment only; one round of 8 s sees several.
_ROUNDS = 12
_WORDS = _PAGE // 8
# As in tests/guest/disk.c.
_PAGE_FACTOR = 0x9E3779B97F4A7C15
_WORD_FACTOR = 0xD1342543DE82EF95


class Disks(UffdmmTest):
    """
    :avocado: tags=machine:q35
    """

    timeout = 240

    def disk(self) -> Path:
        path = self.folder / "disk"
        # Differences to the first word of a page are the same in all of them.
        steps = [word * _WORD_FACTOR for word in range(_WORDS)]
        with path.open("wb") as file:
            for page in range(_DISK // _PAGE):
                base = page * _PAGE_FACTOR + 1
                words = ((base + step) & 0xFFFFFFFFFFFFFFFF for step in steps)
                file.write(struct.pack(f"<{_WORDS}Q", *words))
        return path

    def pressed(self, manager: Manager, aio: str) -> Guest:
        """A guest with the disk, and with more in its memory than may stay there."""
        drive = f"file={self.disk()},format=raw,if=none,id=disk,cache=none,aio={aio}"
        guest = self.booted(
            manager, ram=_RAM, arguments=["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
        )
        guest.port.fill(_WORKING_SET, seed=21)
        return guest

    def read(self, guest: Guest) -> tuple[int, int]:
        """How often the guest read, and how many pages were not as on the disk."""
        *_, result = guest.port.ask("disk path=/dev/vda ms=8000", {"disk-read"}, 120)
        self.log.info("%s", result)
        return int(result["reads"]), int(result["wrong_pages"])

    def check(self, aio: str) -> None:
        """What a guest under pressure reads past all caches is what is on the disk."""
        manager = self.manager(limit=f"{_LIMIT // MIB}M")
        guest = self.pressed(manager, aio)
        before = self.statistics(manager)
        reads, wrong = self.read(guest)
        stats = self.statistics(manager)
        self.log.info("pinned %d", stats.pinned)
        self.assertEqual(wrong, 0)
        self.assertGreater(reads, 50)
        self.assertGreater(stats.evicted, before.evicted + _RAM // _PAGE // 16)
        self.assertTrue(guest.port.verify().verified)
        self.assertEqual((stats.lost_pages, stats.checksum_errors, stats.store_errors), (0, 0, 0))

    def test_threads(self) -> None:
        self.check("threads")

    def test_io_uring(self) -> None:
        self.check("io_uring")

    def test_reads_are_lost_when_pins_are_ignored(self) -> None:
        """The control: an evictor that does not look whether a transfer is in flight."""
        with mock.patch.dict(os.environ, {"UFFDMM_TEST_NO_PINS": "1"}):
            manager = self.manager(limit=f"{_LIMIT // MIB}M", program=places.manager_hooks())
        guest = self.pressed(manager, "io_uring")
        if not any(self.read(guest)[1] for _ in range(_ROUNDS)):
            self.fail(f"no page was lost in {_ROUNDS} rounds: the tests above prove nothing")
