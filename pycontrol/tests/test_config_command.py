# SPDX-License-Identifier: GPL-2.0-or-later
"""From TOML to the manager's command line, and back through the manager's own parser in C."""

import errno
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdmm.config import Config, Document, examine, manager_arguments, to_toml
from uffdmm.config.values import ERRNO_NAMES

TOP = Path(__file__).parents[2]
SOURCES = ("option_pairs.c", "tier_options.c", "vm_options.c", "options.c", "log.c", "uffd.c")
NAME = "ABCdef012_-"
CODECS = ("lz4", "zstd")
SHAPES = ("fixed", "uniform", "exponential")


def declarations() -> str:
    """What the parsers take and fill in, from the headers themselves."""
    sys.path.insert(0, str(TOP / "pycontrol"))
    try:
        from build_native import declarations as of_header  # noqa: PLC0415 - no package
    finally:
        sys.path.pop(0)
    native = TOP / "native"
    headers = [
        native / "include/uffdmm/protocol.h",
        *(native / "src" / name for name in ("tier_config.h", "tier_options.h", "vm_options.h")),
    ]
    compiler = ["cc", f"-I{native / 'src'}"]
    return "".join(of_header(compiler, native / "include", header) for header in headers)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The manager's parsers in this process."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("parser") / "options.so"
    native = TOP / "native"
    command = [
        *("cc", "-shared", "-fPIC", "-std=gnu11", "-D_GNU_SOURCE", "-Wl,-z,lazy"),
        *('-DUFFDMM_PROGRAM_VERSION="test"', f"-I{native / 'include'}", f"-I{native / 'src'}"),
        *(str(native / "src" / name) for name in SOURCES),
        *("-o", str(library)),
    ]
    subprocess.run(command, check=True)
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    return SimpleNamespace(ffi=ffi, lib=ffi.dlopen(str(library), os.RTLD_LAZY))


def words_of(arguments: list[str], option: str) -> Iterator[str]:
    for index, word in enumerate(arguments):
        if word == option:
            yield arguments[index + 1]


def size_text() -> st.SearchStrategy[Any]:
    return (
        st.integers(4096, 1 << 50)
        | st.integers(4, 1 << 20).map(lambda n: f"{n}K")
        | st.integers(1, 1 << 12).map(lambda n: f"{n / 2 + 1} GiB")
    )


def duration_text(unit: str = "us") -> st.SearchStrategy[str]:
    return st.integers(0, 1 << 30).map(lambda n: f"{n}{unit}") | st.sampled_from(
        ["0", "1.5s", "2h"]
    )


def path_text(longest: int = 100) -> st.SearchStrategy[str]:
    letters = st.characters(codec="utf-8", exclude_characters="\0")
    return st.text(letters, max_size=longest // 4).map(lambda text: "/" + text)


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={k.replace("_", "-"): v for k, v in keys.items()})


def faults() -> st.SearchStrategy[dict[str, Any]]:
    error = st.tuples(
        st.fixed_dictionaries({"rate": st.floats(0, 1) | st.sampled_from([0, 1])}),
        optional(
            errno=st.sampled_from(ERRNO_NAMES),
            ops=st.sampled_from(["read", "write", "both"]),
            trigger=path_text(),
        ),
    ).map(lambda both: both[0] | both[1])
    delay = optional(
        read=duration_text(),
        write=duration_text(),
        shape=st.sampled_from(SHAPES),
        trigger=path_text(),
    ).filter(lambda table: "read" in table or "write" in table)
    return optional(error=error, delay=delay, capacity=size_text())


def tier_tables() -> st.SearchStrategy[dict[str, Any]]:
    pool = st.one_of(
        st.just({"type": "pool"}),
        optional(codec=st.just("lz4"), inside_limit=st.booleans()),
        st.fixed_dictionaries({"codec": st.just("zstd"), "level": st.integers(1, 19)}),
    ).map(lambda table: {"type": "pool"} | table)
    paths = path_text() | st.lists(path_text(), min_size=1, max_size=8, unique=True)
    file = st.tuples(st.fixed_dictionaries({"path": paths}), optional(shared=st.booleans())).map(
        lambda both: {"type": "file"} | both[0] | both[1]
    )
    ascii_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
    uri = st.tuples(st.sampled_from(["nbd", "nbds", "nbd+unix", "nbds+unix"]), ascii_text).map(
        lambda both: f"{both[0]}://host/{both[1]}"
    )
    nbd = st.tuples(
        st.fixed_dictionaries({"uri": uri}), optional(connections=st.integers(1, 16))
    ).map(lambda both: {"type": "nbd"} | both[0] | both[1])
    return st.tuples(pool | file | nbd, faults()).map(lambda both: both[0] | both[1])


def vm_tables(tiers: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def override(tier: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        codec = {"codec": st.sampled_from(CODECS)} if tier["type"] == "pool" else {}
        return optional(capacity=size_text(), **codec)

    overrides = optional(**{tier["name"]: override(tier) for tier in tiers})
    limit = size_text() | st.integers(1, 100).map(lambda n: f"{n}%") | st.just("none")
    demote = duration_text("ms") | st.just("never")
    return optional(
        limit=limit,
        readahead=st.integers(1, 64),
        demote_after=demote,
        on_lost=st.just("wait"),
        tier=overrides,
    )


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Valid documents with anything in them that concerns tiers and VMs."""
    names = st.text(NAME, min_size=1, max_size=63).filter(lambda name: name != "zero")
    tiers = [
        {"name": name.replace("_", "-")} | draw(tier_tables())
        for name in draw(
            st.lists(names, min_size=1, max_size=7, unique_by=lambda x: x.replace("_", "-"))
        )
    ]
    vm_name = st.text(NAME + ".+:@", min_size=1, max_size=63).filter(lambda n: n[0] != ".")
    vms = draw(st.dictionaries(vm_name, vm_tables(tiers), max_size=3))
    return {"tier": tiers, "vm": vms}


def config_of(data: dict[str, Any]) -> Config | None:
    """The configuration; None where two random tiers share a place."""
    found = examine(Document(Path("/x"), [Path("/x")], data))
    if all("used twice" in problem.message for problem in found.errors) and found.errors:
        return None
    return found.require()


def check_tier(parser: SimpleNamespace, tier: Any, text: str) -> Any:
    """What the manager reads from --tier is what the model holds."""
    c = parser.ffi.new("struct tier_config *")
    assert parser.lib.tier_options_parse(c, text.encode()), text

    def string(field: Any) -> str:
        return bytes(parser.ffi.string(field)).decode()

    assert string(c.name) == tier.name
    kind = {"pool": 1, "file": 2, "nbd": 3}[tier.type]
    assert c.type == kind
    assert c.capacity == (tier.capacity or 0)
    if tier.type == "pool":
        assert c.codec == CODECS.index(tier.codec or "lz4")
        assert c.level == (tier.level or 0)
        assert c.inside_limit == bool(tier.inside_limit)
    elif tier.type == "file":
        assert [string(c.paths[index]) for index in range(c.nr_paths)] == tier.path
        assert c.shared == bool(tier.shared)
    else:
        assert string(c.uri) == tier.uri
        assert c.connections == (tier.connections or 4)
    error, delay = tier.error, tier.delay
    assert c.faults.error_rate == (error.rate if error else 0)
    code = getattr(errno, error.errno) if error and error.errno else errno.EIO
    assert c.faults.error_errno == code
    ops = (error and error.ops) or "both"
    assert c.faults.error_reads == (ops in {"read", "both"})
    assert c.faults.error_writes == (ops in {"write", "both"})
    assert string(c.faults.error_trigger) == ((error and error.trigger) or "")
    assert c.faults.delay_read_ns == ((delay and delay.read) or 0)
    assert c.faults.delay_write_ns == ((delay and delay.write) or 0)
    assert c.faults.delay_shape == SHAPES.index((delay and delay.shape) or "fixed")
    assert string(c.faults.delay_trigger) == ((delay and delay.trigger) or "")
    return c


def check_vm(parser: SimpleNamespace, name: str, vm: Any, text: str) -> Any:
    """What the manager reads from --vm is what the model holds."""
    c = parser.ffi.new("struct vm_options *")
    assert parser.lib.vm_options_parse(c, text.encode()), text
    assert bytes(parser.ffi.string(c.name)).decode() == name
    assert c.has_limit == (vm.limit is not None)
    percent = int(vm.limit[:-1]) if vm.limit and vm.limit.endswith("%") else 0
    assert c.limit_percent == percent
    if vm.limit not in {None, "none"} and not percent:
        assert c.limit_bytes > 0
    assert c.readahead_pages == (vm.readahead or 0)
    assert c.has_demote_after == (vm.demote_after is not None)
    assert c.demote_after_ns == (vm.demote_after or 0)
    assert c.has_on_lost == (vm.on_lost is not None)
    assert c.poison_lost == (vm.on_lost == "poison")
    got = {
        bytes(parser.ffi.string(c.tiers[index].tier)).decode(): (
            c.tiers[index].capacity,
            CODECS[c.tiers[index].codec] if c.tiers[index].has_codec else None,
        )
        for index in range(c.nr_tiers)
    }
    wanted = {
        tier: (override.capacity or 0, override.codec)
        for tier, override in vm.tier.items()
        if override.capacity or override.codec
    }
    assert got == wanted
    return c


@settings(max_examples=300)
@given(documents())
def test_the_manager_reads_what_the_file_says(
    parser: SimpleNamespace, data: dict[str, Any]
) -> None:
    config = config_of(data)
    if config is None:
        return
    arguments = manager_arguments(config)
    texts = list(words_of(arguments, "--tier"))
    assert len(texts) == len(config.tier)
    tiers = [check_tier(parser, *pair) for pair in zip(config.tier, texts, strict=True)]
    array = parser.ffi.new("struct tier_config[]", [tier[0] for tier in tiers])
    assert parser.lib.tier_options_check(array, len(tiers))
    said = {text.split(",")[0]: text for text in words_of(arguments, "--vm")}
    vms = []
    for name, vm in config.vm.items():
        if name in said:
            vms.append(check_vm(parser, name, vm, said[name]))
        else:
            # Nothing is different for it.
            assert vm.model_dump(exclude_none=True, exclude={"tier"}) == {}
            assert all(not o.model_dump(exclude_none=True) for o in vm.tier.values())
    array_of_vms = parser.ffi.new("struct vm_options[]", [vm[0] for vm in vms])
    assert parser.lib.vm_options_check(array_of_vms, len(vms), array, len(tiers))


def test_errors_of_a_store_are_the_same_on_both_sides(parser: SimpleNamespace) -> None:
    c = parser.ffi.new("struct tier_config *")
    known = {
        name
        for name in errno.errorcode.values()
        if parser.lib.tier_options_parse(c, f"a=pool,error-rate=1,error-errno={name}".encode())
    }
    assert known == set(ERRNO_NAMES)


@pytest.mark.parametrize("text", ["a=pool,codec=lzo", "a=file", "zero=pool", "a=pool,x=1"])
def test_the_parser_can_refuse(parser: SimpleNamespace, text: str) -> None:
    """Else the comparison above would prove little."""
    assert not parser.lib.tier_options_parse(parser.ffi.new("struct tier_config *"), text.encode())


def test_the_whole_line() -> None:
    config = config_of(
        {
            "manager": {
                "socket": "/run/x.sock",
                "limit": "50%",
                "readahead": 8,
                "demote-after": "1.5s",
                "on-lost-after": "60s",
                "allow-uids": [107, 108],
                "log-level": "debug",
                "spin-max": "0",
                "tracking": False,
            },
            "tier": [
                {"name": "ram", "type": "pool", "capacity": "1.5G"},
                {"name": "ssd", "type": "file", "path": "/a,b"},
            ],
            "vm": {"db": {"limit": "none", "on-lost": "poison"}, "idle": {}},
        }
    )
    assert config is not None
    assert manager_arguments(config) == [
        *("--socket-path", "/run/x.sock"),
        *("--tier", "ram=pool,capacity=1536M"),
        *("--tier", "ssd=file,path=/a,,b"),
        *("--limit", "50%"),
        *("--readahead", "8"),
        *("--demote-after", "1500ms"),
        *("--on-lost-after", "1m"),
        *("--vm", "db,limit=none,on-lost=poison"),
        *("--spin-max-us", "0"),
        *("--allow-uid", "107", "--allow-uid", "108"),
        "--no-tracking",
        *("--log-level", "debug"),
    ]
    assert manager_arguments(config, listen=False)[0] == "--tier"


def test_what_is_left_out_is_left_to_the_manager() -> None:
    config = config_of({"tier": [{"name": "a", "type": "pool"}], "manager": {"limit": "none"}})
    assert config is not None
    assert manager_arguments(config) == [
        *("--socket-path", "/run/uffdmm/manager.sock", "--tier", "a=pool")
    ]


@pytest.mark.manager
def test_the_real_manager_takes_the_line(tmp_path: Path) -> None:
    """It gets as far as the socket, whose folder is missing: all options were understood."""
    program = Path(os.environ.get("UFFDMM_MANAGER", TOP / "build/native/native/uffdmm-manager"))
    if not os.access(program, os.X_OK):
        pytest.skip(f"no manager at {program}: build it, or set UFFDMM_MANAGER")
    config = config_of(
        {
            "manager": {"socket": str(tmp_path / "absent/x.sock"), "limit": "50%"},
            "tier": [
                {"name": "ram", "type": "pool", "codec": "zstd", "level": 1},
                {"name": "ssd", "type": "file", "path": str(tmp_path), "capacity": "1G"},
            ],
            "vm": {"db": {"readahead": 4, "tier": {"ram": {"codec": "lz4"}}}},
        }
    )
    assert config is not None
    command = [str(program), *manager_arguments(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr
    assert "x.sock" in done.stderr


def test_shown_toml_makes_the_same_line() -> None:
    data = {
        "tier": [{"name": "a", "type": "file", "path": ["/x", '/"\x7f'], "capacity": "2G"}],
        "vm": {"a.b": {"limit": "1G", "tier": {"a": {"capacity": 8192}}}},
    }
    first = config_of(data)
    again = config_of(tomllib.loads(to_toml(Document(Path("/x"), [Path("/x")], data))))
    assert first is not None
    assert again is not None
    assert manager_arguments(first) == manager_arguments(again)
