# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for QEMU: offers a region to a real manager, fills it, verifies it.

Run as a process of its own, because whoever touches the region may be blocked for as long as the
manager likes: ``standin_vmm.py SOCKET VM_NAME BYTES``.  Prints ``attached``, then ``verified``, and
ends when its standard input does.
"""

import array
import fcntl
import mmap
import os
import socket
import struct
import sys
from pathlib import Path

from uffdmm._native import ffi, lib

PAGE = 4096
USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
MODE_MISSING_AND_WP = 3
UFFD_API_VERSION = 0xAA


class Link:
    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.request_id = 0

    def call(self, kind: int, payload: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        """Send a request; return payload and descriptors of its reply, or exit with its error."""
        self.request_id += 1
        header = ffi.new(
            "struct uffdmm_msg_header *",
            {
                "magic": lib.UFFDMM_MAGIC,
                "version": lib.UFFDMM_VERSION,
                "min_version": lib.UFFDMM_MIN_VERSION,
                "type": kind,
                "length": len(payload),
                "request_id": self.request_id,
                "nr_fds": len(fds),
            },
        )
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([bytes(ffi.buffer(header)) + payload], rights)
        size = ffi.sizeof("struct uffdmm_msg_header")
        raw, received, _, _ = socket.recv_fds(self.sock, size, lib.UFFDMM_FDS_MAX)
        answer = ffi.from_buffer("struct uffdmm_msg_header *", raw)
        body = b""
        while len(body) < answer.length:
            body += self.sock.recv(answer.length - len(body))
        if answer.status:
            sys.exit(ffi.string(ffi.from_buffer("struct uffdmm_error *", body).text).decode())
        return body, list(received)


def open_userfaultfd(base: int, size: int) -> int:
    with Path("/dev/userfaultfd").open("r+b", buffering=0) as device:
        uffd = fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    features = (
        lib.UFFDMM_UFFD_PAGEFAULT_FLAG_WP
        | lib.UFFDMM_UFFD_MISSING_SHMEM
        | lib.UFFDMM_UFFD_WP_HUGETLBFS_SHMEM
        | lib.UFFDMM_UFFD_THREAD_ID
    )
    fcntl.ioctl(uffd, UFFDIO_API, struct.pack("=QQQ", UFFD_API_VERSION, features, 0))
    fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("=QQQQ", base, size, MODE_MISSING_AND_WP, 0))
    return uffd


def page_content(number: int) -> bytes:
    """Different for each page, and not to be had by repeating one word."""
    return b"".join(struct.pack("=II", number, word) for word in range(PAGE // 8))


def main() -> None:
    path, vm_name, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    link = Link(path)
    hello = ffi.new(
        "struct uffdmm_hello *",
        {"role": lib.UFFDMM_ROLE_QEMU, "vm_name": vm_name.encode(), "agent": b"stand-in"},
    )
    link.call(lib.UFFDMM_MSG_HELLO, bytes(ffi.buffer(hello)), [])
    create = ffi.new(
        "struct uffdmm_region_create *",
        {"size": size, "page_size": PAGE, "nr_shards": 1, "name": b"mem0"},
    )
    body, fds = link.call(lib.UFFDMM_MSG_REGION_CREATE, bytes(ffi.buffer(create)), [])
    region_id = ffi.from_buffer("struct uffdmm_region_create_reply *", body).region_id
    memory = mmap.mmap(fds[0], size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    base = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", memory)))
    uffd = open_userfaultfd(base, size)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    attach = ffi.new(
        "struct uffdmm_region_attach *",
        {"region_id": region_id, "nr_shards": 1, "base": base, "size": size},
    )
    link.call(lib.UFFDMM_MSG_REGION_ATTACH, bytes(ffi.buffer(attach)), [pagemap, uffd])
    print("attached", flush=True)
    for number in range(size // PAGE):
        memory[number * PAGE : (number + 1) * PAGE] = page_content(number)
    for number in range(size // PAGE):
        if memory[number * PAGE : (number + 1) * PAGE] != page_content(number):
            sys.exit(f"page {number} holds wrong bytes")
    print("verified", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
