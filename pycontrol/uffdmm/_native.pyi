# SPDX-License-Identifier: GPL-2.0-or-later
# What this package uses of the generated module; a test compares it with the real one.
from typing import Any

from typing_extensions import Buffer

# A C structure, array or pointer.  Fields follow the C headers, hence Any.
class CData:
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, index: int) -> Any: ...
    def __len__(self) -> int: ...
    def __int__(self) -> int: ...

class CField:
    type: CType
    offset: int

class CType:
    fields: list[tuple[str, CField]]
    cname: str

class FFI:
    NULL: CData
    def new(self, cdecl: str, init: object = None) -> CData: ...
    def sizeof(self, cdecl: str) -> int: ...
    def offsetof(self, cdecl: str, field: str) -> int: ...
    def typeof(self, cdecl: str) -> CType: ...
    def string(self, cdata: CData, maxlen: int = -1) -> bytes: ...
    def unpack(self, cdata: CData, length: int) -> Any: ...
    def buffer(self, cdata: CData, size: int = -1) -> Buffer: ...
    def from_buffer(self, cdecl: str, python_buffer: Buffer) -> CData: ...
    def memmove(self, dest: CData, src: Buffer, n: int) -> None: ...
    def cast(self, cdecl: str, source: object) -> CData: ...
    def release(self, cdata: CData) -> None: ...

class Lib:
    UFFDMM_MAGIC: int
    UFFDMM_VERSION: int
    UFFDMM_MIN_VERSION: int
    UFFDMM_NAME_MAX: int
    UFFDMM_TEXT_MAX: int
    UFFDMM_PAYLOAD_MAX: int
    UFFDMM_FDS_MAX: int
    UFFDMM_MSG_HELLO: int
    UFFDMM_MSG_REGION_CREATE: int
    UFFDMM_MSG_REGION_ATTACH: int
    UFFDMM_MSG_QUERY: int
    UFFDMM_MSG_SET_POLICY: int
    UFFDMM_MSG_LIST: int
    UFFDMM_MSG_REGIONS: int
    UFFDMM_MSG_EVICT: int
    UFFDMM_MSG_PREFETCH: int
    UFFDMM_MSG_MIG_ARM: int
    UFFDMM_MSG_MIG_END: int
    UFFDMM_MSG_MIG_STATUS: int
    UFFDMM_MSG_MIG_EXPORT: int
    UFFDMM_MSG_MIG_ACK: int
    UFFDMM_MSG_MIG_RELEASE: int
    UFFDMM_MSG_MIG_PREPARE: int
    UFFDMM_MSG_MIG_IMPORT: int
    UFFDMM_MSG_MIG_TAKE: int
    UFFDMM_MSG_MIG_DEPOSIT: int
    UFFDMM_MSG_MIG_COLLECT: int
    UFFDMM_FEATURE_DEPOSITS: int
    UFFDMM_MSG_REPLY: int
    UFFDMM_ROLE_QEMU: int
    UFFDMM_ROLE_CONTROL: int
    UFFDMM_POLICY_LIMIT: int
    UFFDMM_POLICY_READAHEAD: int
    UFFDMM_POLICY_TIERS: int
    UFFDMM_POLICY_DEMOTE: int
    UFFDMM_POLICY_MIN: int
    UFFDMM_POLICY_MAX: int
    UFFDMM_POLICY_SHARES: int
    UFFDMM_POLICY_PRIORITY: int
    UFFDMM_POLICY_TRACK: int
    UFFDMM_POLICY_OPT_OUT: int
    UFFDMM_TIERS_MAX: int
    UFFDMM_TIER_ZERO: int
    UFFDMM_TIER_POOL: int
    UFFDMM_TIER_FILE: int
    UFFDMM_TIER_NBD: int
    UFFDMM_TIER_OK: int
    UFFDMM_TIER_FULL: int
    UFFDMM_TIER_SLOW: int
    UFFDMM_TIER_ERROR: int
    UFFDMM_TIER_AWAY: int
    UFFDMM_REGIONS_MAX: int
    UFFDMM_TABLE_MAGIC: int
    UFFDMM_TABLE_VERSION: int
    UFFDMM_ENTRY_STATE_MASK: int
    UFFDMM_ENTRY_TIER_SHIFT: int
    UFFDMM_ENTRY_TIER_MASK: int
    UFFDMM_PAGE_EMPTY: int
    UFFDMM_PAGE_RESIDENT: int
    UFFDMM_PAGE_CLEAN: int
    UFFDMM_PAGE_STORED: int
    UFFDMM_MIG_FAILED: int
    UFFDMM_MIG_IDLE: int
    UFFDMM_MIG_ARMED: int
    UFFDMM_MIG_RUNNING: int
    UFFDMM_MIG_ALL_SENT: int
    UFFDMM_MIG_RELEASED: int
    UFFDMM_MIG_PREPARED: int
    UFFDMM_MIG_INSTALLED: int
    UFFDMM_MIG_TAKEN: int
    UFFDMM_SET_MAGIC: int
    UFFDMM_SET_VERSION: int
    UFFDMM_STATS_MAGIC: int
    UFFDMM_STATS_VERSION: int
    UFFDMM_HIST_SUB_BITS: int
    UFFDMM_HIST_MIN_LOG2: int
    UFFDMM_HIST_BUCKETS: int
    UFFDMM_WORKER_STARTING: int
    UFFDMM_WORKER_RUNNING: int
    UFFDMM_WORKER_STORE_FULL: int
    UFFDMM_WORKER_STORE_ERROR: int
    UFFDMM_UFFD_PAGEFAULT_FLAG_WP: int
    UFFDMM_UFFD_MISSING_SHMEM: int
    UFFDMM_UFFD_THREAD_ID: int
    UFFDMM_UFFD_WP_HUGETLBFS_SHMEM: int
    UFFDMM_UFFD_WP_UNPOPULATED: int
    UFFDMM_UFFD_POISON: int
    UFFDMM_UFFD_WP_ASYNC: int
    UFFDMM_UFFD_MOVE: int
    UFFDMM_PROBE_SKIPPED: int
    def uffdmm_probe_host(self, facts: CData) -> None: ...
    def uffdmm_probe_store(self, directory: bytes, facts: CData) -> None: ...
    def uffdmm_selftest_race(
        self, seconds: int, protect: int, out: CData, err: CData, err_len: int
    ) -> int: ...

ffi: FFI
lib: Lib
