# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that write to guest memory past write protection: what was read must be there."""

import struct
from pathlib import Path

from uffdmm_test import MIB, UffdmmTest

_PAGE = 4096
_DISK = 16 * MIB
_RAM = 192 * MIB
_LIMIT = 64 * MIB
_WORKING_SET = 90 * MIB
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

    def check(self, aio: str) -> None:
        """What a guest under pressure reads past all caches is what is on the disk."""
        manager = self.manager(limit=f"{_LIMIT // MIB}M")
        drive = f"file={self.disk()},format=raw,if=none,id=disk,cache=none,aio={aio}"
        guest = self.booted(
            manager, ram=_RAM, arguments=["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
        )
        guest.port.fill(_WORKING_SET, seed=21)
        before = self.statistics(manager)
        *_, result = guest.port.ask("disk path=/dev/vda ms=8000", {"disk-read"}, 120)
        stats = self.statistics(manager)
        self.log.info("%s, pinned %d", result, stats.pinned)
        self.assertEqual(result["wrong_pages"], 0, str(result))
        self.assertGreater(result["reads"], 50)
        self.assertGreater(stats.evicted, before.evicted + _RAM // _PAGE // 16)
        self.assertTrue(guest.port.verify().verified)
        self.assertEqual((stats.lost_pages, stats.checksum_errors, stats.store_errors), (0, 0, 0))

    def test_threads(self) -> None:
        self.check("threads")

    def test_io_uring(self) -> None:
        self.check("io_uring")
