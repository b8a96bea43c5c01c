# SPDX-License-Identifier: GPL-2.0-or-later
"""uffdmm.toml: what is accepted, how drop-ins are merged, and what each mistake is told as."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm import ConfigError
from uffdmm.config import Document, Examined, Severity, examine, read_document, to_toml
from uffdmm.config.model import Config, FileTier, NbdTier, PoolTier

TOP = Path(__file__).parents[2]
SSD = '[[tier]]\nname = "ssd"\ntype = "file"\npath = "/x"\n'
RAM = '[[tier]]\nname = "ram"\ntype = "pool"\n'


def examined(folder: Path, text: str, **drop_ins: str) -> Examined:
    """The examined file; drop-ins by name."""
    main = folder / "uffdmm.toml"
    main.write_text(text)
    if drop_ins:
        (folder / "uffdmm.toml.d").mkdir()
    for name, content in drop_ins.items():
        (folder / "uffdmm.toml.d" / f"{name}.toml").write_text(content)
    return examine(read_document(main))


def test_every_key(tmp_path: Path) -> None:
    found = examined(
        tmp_path,
        """
[manager]
socket = "/run/x.sock"
limit = "50%"
readahead = 32
demote-after = "1.5s"
on-lost = "poison"
on-lost-after = "60s"
allow-uids = [107, 0]
log-level = "warn"
spin-max = "80us"
tracking = false
[[tier]]
name = "ram"
type = "pool"
capacity = "1.5G"
codec = "zstd"
level = 3
inside-limit = true
[[tier]]
name = "ssd"
type = "file"
path = ["/a", "/dev/sdb"]
shared = true
error = { rate = 0.5, errno = "ENOSPC", ops = "write", trigger = "/tmp/e" }
[[tier]]
name = "far"
type = "nbd"
uri = "nbds://server/{vm}"
connections = 2
delay = { read = "1ms", write = "2ms", shape = "uniform", trigger = "/tmp/d" }
[vm.db]
limit = 4294967296
readahead = 1
demote-after = "never"
on-lost = "wait"
min = "1G"
max = "8G"
shares = 200
priority = 60
opt-out = true
qmp = "/run/db.qmp"
[serve]
budget = "24G"
policy = "stall"
interval = "500ms"
rate = "64M"
stall-budget = 0.01
deadline = "200ms"
[migration]
listen = "[::]:7661"
certificates = "/etc/pki/x"
allow = ["b.example"]
qmp = "/run/{vm}"
prefetch = false
[vm.db.tier.ram]
capacity = "2G"
codec = "lz4"
""",
    )
    assert found.errors == []
    config = found.require()
    manager = config.manager
    assert (manager.socket, manager.limit, manager.readahead) == ("/run/x.sock", "50%", 32)
    assert (manager.demote_after, manager.spin_max) == (1_500_000_000, 80_000)
    assert (manager.allow_uids, manager.log_level, manager.tracking) == ([107, 0], "warn", False)
    ram, ssd, far = config.tier
    assert isinstance(ram, PoolTier)
    assert (ram.capacity, ram.codec, ram.level, ram.inside_limit) == (3 << 29, "zstd", 3, True)
    assert isinstance(ssd, FileTier)
    assert (ssd.path, ssd.shared) == (["/a", "/dev/sdb"], True)
    assert ssd.error is not None
    assert ssd.error.model_dump() == {
        "rate": 0.5,
        "errno": "ENOSPC",
        "ops": "write",
        "trigger": "/tmp/e",
    }
    assert isinstance(far, NbdTier)
    assert (far.uri, far.connections) == ("nbds://server/{vm}", 2)
    assert far.delay is not None
    assert (far.delay.read, far.delay.write, far.delay.shape) == (1_000_000, 2_000_000, "uniform")
    db, plane = config.vm["db"], config.serve
    assert (db.min, db.max, db.shares, db.priority, db.opt_out) == (1 << 30, 8 << 30, 200, 60, True)
    assert (plane.budget, plane.policy, plane.interval) == (24 << 30, "stall", 500_000_000)
    assert (plane.rate, plane.stall_budget, plane.deadline) == (64 << 20, 0.01, 200_000_000)
    assert db.qmp == "/run/db.qmp"
    move = config.migration
    assert (move.listen, move.certificates) == ("[::]:7661", "/etc/pki/x")
    assert (move.allow, move.qmp) == (["b.example"], "/run/{vm}")
    assert move.prefetch is False
    assert config.vm["db"].limit == "4G"
    assert (config.vm["db"].readahead, config.vm["db"].demote_after) == (1, 0)
    assert config.vm["db"].tier["ram"].capacity == 2 << 30
    # Every key of every table was used above: a new one belongs here, too.
    used = set(re.findall(r"[a-z-]+(?= =)", found.document.main.read_text()))
    assert used | {"manager", "serve", "migration", "tier", "vm", "error", "delay"} >= _all_keys(
        Config.model_json_schema()
    )


def _all_keys(schema: Any) -> set[str]:
    tables = [schema, *schema["$defs"].values()]
    return {key for table in tables for key in table.get("properties", {})}


def test_a_path_may_stand_alone(tmp_path: Path) -> None:
    tier = examined(tmp_path, SSD).require().tier[0]
    assert isinstance(tier, FileTier)
    assert tier.path == ["/x"]


# Text, key path, words of the message, words of the remedy.
MISTAKES = [
    ('[manger]\nlimit = "1G"', "manger", "unknown key", "did you mean 'manager'?"),
    ('[manager]\nlimti = "1G"', "manager.limti", "unknown key", "did you mean 'limit'?"),
    ("[manager]\nread_ahead = 3", "manager.read_ahead", "unknown key", "'readahead'"),
    ('[manager]\ndemote_after = "1s"', "manager.demote_after", "unknown key", "'demote-after'"),
    ("[manager]\nxyzzy = 3", "manager.xyzzy", "unknown key", "there are socket, limit"),
    ('[manager]\nlimit = "101%"', "manager.limit", "percentage", "50%"),
    ('[manager]\nlimit = "1.5%"', "manager.limit", "percentage", "50%"),
    ('[manager]\nlimit = "5MB"', "manager.limit", "ambiguous", "write 5M or 5MiB"),
    ("[manager]\nlimit = 0", "manager.limit", "less than one page", "none"),
    ("[manager]\nlimit = true", "manager.limit", "a size is text or a number", "512M"),
    ("[manager]\nlimit = 1.5", "manager.limit", "a size is text or a number", "512M"),
    ("[manager]\nreadahead = 65", "manager.readahead", "must be less than or equal to 64", ""),
    ("[manager]\nreadahead = 0", "manager.readahead", "must be greater than or equal to 1", ""),
    ('[manager]\nreadahead = "8"', "manager.readahead", "must be a valid integer", ""),
    ("[manager]\ndemote-after = 30", "manager.demote-after", "text with a unit", "30s"),
    ('[manager]\ndemote-after = "5us"', "manager.demote-after", "finer than a millisecond", ""),
    ('[manager]\nallow-uids = ["me"]', "manager.allow-uids", "must be a valid integer", ""),
    ("[manager]\nallow-uids = [-1]", "manager.allow-uids", "greater than or equal to 0", ""),
    (f"[manager]\nallow-uids = {[1] * 17}", "manager.allow-uids", "at most 16 items", ""),
    ('[manager]\nlog-level = "loud"', "manager.log-level", "must be 'error', 'warn'", ""),
    ('[manager]\nspin-max = "11ms"', "manager.spin-max", "at most 10 ms", "50us"),
    ('[manager]\nspin-max = "1ns"', "manager.spin-max", "whole microseconds", "50us"),
    ('[manager]\nsocket = "x.sock"', "manager.socket", "not an absolute path", "slash"),
    (f'[manager]\nsocket = "/{"x" * 107}"', "manager.socket", "longer than 107 bytes", ""),
    ('[manager]\ntracking = "no"', "manager.tracking", "must be a valid boolean", ""),
    ("manager = 3", "manager", "must be a table", ""),
    ('[tier]\nname = "x"', "tier", "an array of tables", "[[tier]]"),
    ('[[tier]]\ntype = "pool"', "tier[0].name", "is missing", "add it: name of the tier"),
    ('[[tier]]\nname = "x"', "tier.x.type", "is missing", "pool, file, nbd"),
    ('[[tier]]\nname = "x"\ntype = "pol"', "tier.x.type", "not a type", "mean 'pool'"),
    ('[[tier]]\nname = "x"\ntype = 3', "tier.x.type", "not a type", "pool, file, nbd"),
    ('[[tier]]\nname = "zero"\ntype = "pool"', "tier.zero.name", "always there", "another"),
    ('[[tier]]\nname = "a.b"\ntype = "pool"', "tier.a.b.name", "not a name of a tier", "A-Z"),
    (RAM + 'kodec = "lz4"', "tier.ram.kodec", "unknown key", "mean 'codec'"),
    (RAM + 'codec = "lzo"', "tier.ram.codec", "must be 'lz4' or 'zstd'", ""),
    (RAM + 'path = "/y"', "tier.ram.path", "a tier of type pool has no such key", "remove"),
    (RAM + "level = 3", "tier.ram.level", "lz4 has no level", "zstd"),
    (RAM + 'codec = "zstd"\nlevel = 20', "tier.ram.level", "less than or equal to 19", ""),
    (RAM + "capacity = 4095", "tier.ram.capacity", "less than one page", ""),
    (RAM + "capacity = 0", "tier.ram.capacity", "less than one page", "leave the key out"),
    (RAM + "error = {}", "tier.ram.error.rate", "is missing", "share of the requests"),
    (RAM + "error = { rate = 1.1 }", "tier.ram.error.rate", "not a number of 0 to 1", ""),
    (RAM + "error = { rate = nan }", "tier.ram.error.rate", "not a number of 0 to 1", ""),
    (RAM + "error = { rate = 1, errno = 'EPIPE' }", "tier.ram.error.errno", "not an err", "EIO"),
    (RAM + "error = { rate = 1, errno = 'EFOO' }", "tier.ram.error.errno", "no name", "EIO"),
    (RAM + "error = { rate = 1, opps = 'read' }", "tier.ram.error.opps", "unknown", "'ops'"),
    (RAM + "delay = { read = 5 }", "tier.ram.delay.read", "text with a unit", "100us"),
    (RAM + "delay = { shape = 'fixed' }", "tier.ram.delay", "delays nothing", "add read or"),
    (RAM + "delay = { trigger = 't' }", "tier.ram.delay.trigger", "absolute", "slash"),
    ('[[tier]]\nname = "x"\ntype = "file"', "tier.x.path", "is missing", "a directory"),
    ('[[tier]]\nname = "x"\ntype = "file"\npath = "y"', "tier.x.path", "absolute", "slash"),
    ('[[tier]]\nname = "x"\ntype = "file"\npath = []', "tier.x.path", "at least 1 item", ""),
    (SSD.replace('"/x"', '["/x", "/x"]'), "tier.ssd.path", "used twice, also by tier 'ssd'", ""),
    (
        SSD + SSD.replace("ssd", "hdd"),
        "tier.hdd.path",
        "'/x' is used twice, also by tier 'ssd'",
        "",
    ),
    (SSD + SSD, "tier.ssd", "two tiers of this name in this file", "another name"),
    (
        '[[tier]]\nname = "n"\ntype = "nbd"\nuri = "http://x"',
        *("tier.n.uri", "not an NBD URI", "nbds://server/{vm}"),
    ),
    (
        "".join(
            f'[[tier]]\nname = "n{i}"\ntype = "nbd"\nuri = "nbds://h/{{vm}}"\n' for i in (1, 2)
        ),
        *("tier.n2.uri", "is used twice, also by tier 'n1'", "a place of its own"),
    ),
    (
        "".join(RAM.replace("ram", f"r{i}") for i in range(8)),
        *("tier.r7", "more than 7 tiers", "remove some"),
    ),
    (SSD + "".join(f"[vm.v{i}]\n" for i in range(65)), "vm.v64", "more than 64 VMs", "remove"),
    (SSD + '[vm.db]\nlimt = "1G"', "vm.db.limt", "unknown key", "'limit'"),
    ('[manager]\non-lost = "bury"\n' + SSD, "manager.on-lost", "wait", ""),
    ('[manager]\non-lost = "poison"\n' + SSD, "manager.on-lost", "without a time", "60s"),
    (SSD + '[vm.db]\non-lost = "poison"', "vm.db.on-lost", "without a time", "60s"),
    (SSD + '[vm."a b"]', 'vm."a b"', "not a name of a VM", "A-Z"),
    (SSD + '[vm.".x"]', 'vm.".x"', "not a name of a VM", "not a dot"),
    (SSD + '[vm.db.tier.sdd]\ncapacity = "1G"', "vm.db.tier.sdd", "no such tier", "'ssd'"),
    (SSD + '[vm.db.tier.ssd]\ncodec = "lz4"', "vm.db.tier.ssd.codec", "is no pool", "remove"),
    (SSD + "[vm.db.tier]\nssd = 3", "vm.db.tier.ssd", "must be a table", ""),
    (SSD + '[vm.db.tier.ssd]\npath = "/y"', "vm.db.tier.ssd.path", "unknown key", "capacity"),
    ("", "", "there is no [[tier]]", "add one"),
    ("[manager\n", "", "this is not TOML", "correct that line"),
]


@pytest.mark.parametrize(("text", "key", "message", "remedy"), MISTAKES)
def test_mistakes(tmp_path: Path, text: str, key: str, message: str, remedy: str) -> None:
    # A mistake in another table is not to be hidden by a missing tier.
    whole = text if "tier]" in text or key == "" else f"{text}\n{SSD}"
    found = examined(tmp_path, whole)
    assert found.config is None
    problem = next(iter(found.errors))
    assert [other.key for other in found.errors] == [key]
    assert problem.file == str(tmp_path / "uffdmm.toml")
    assert message in problem.message
    assert remedy in (problem.remedy or "")
    assert problem.sentence.startswith(f"{problem.file}: {key}")
    with pytest.raises(ConfigError, match=re.escape(problem.sentence)):
        found.require()


def test_the_value_is_named(tmp_path: Path) -> None:
    (problem,) = examined(tmp_path, SSD + 'capacity = "5 GB"').errors
    assert problem.sentence == (
        f"{tmp_path}/uffdmm.toml: tier.ssd.capacity = \"5 GB\": size '5 GB': the unit is ambiguous"
        " (1000 or 1024)"
    )


def test_all_mistakes_are_reported(tmp_path: Path) -> None:
    found = examined(tmp_path, '[manager]\nlimit = "x"\nreadahead = 0\n' + SSD + "shared = 1\n")
    assert {problem.key for problem in found.errors} == {
        *("manager.limit", "manager.readahead", "tier.ssd.shared")
    }
    with pytest.raises(ConfigError, match="and 2 more") as caught:
        found.require()
    assert len(caught.value.problems) == 3


# Put behind the mistakes above, which it is one of.
MISTAKES.append(
    (
        '[[tier]]\nname = "n"\ntype = "nbd"\nuri = "nbd://a b"',
        *("tier.n.uri", "not an NBD URI", "nbds://server/{vm}"),
    )
)

WARNINGS = [
    (RAM, "tier.ram", "the last tier is a pool"),
    (SSD + RAM, "tier.ram", "reached only when tier 'ssd' is full"),
    (SSD + "error = { rate = 0.1 }", "tier.ssd.error", "fail on purpose"),
    (SSD + 'delay = { read = "1ms" }', "tier.ssd.delay", "slowed down on purpose"),
    ('[manager]\ndemote-after = "1s"\n' + SSD, "manager.demote-after", "no second tier"),
    (
        '[[tier]]\nname = "n"\ntype = "nbd"\nuri = "nbd://10.0.0.7/{vm}"',
        *("tier.n.uri", "travels to '10.0.0.7' unencrypted"),
    ),
    (
        '[[tier]]\nname = "n"\ntype = "nbd"\nuri = "nbds://h/all"',
        *("tier.n.uri", "all VMs name the same export"),
    ),
]


@pytest.mark.parametrize(("text", "key", "message"), WARNINGS)
def test_warnings(tmp_path: Path, text: str, key: str, message: str) -> None:
    found = examined(tmp_path, text)
    assert found.config is not None
    (problem,) = found.problems
    assert (problem.severity, problem.key) == (Severity.WARNING, key)
    assert message in problem.message
    assert problem.remedy


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('[vm.a]\nmin = "2G"\nmax = "1G"\n', "vm.a.min", "is above its maximum of 1G"),
        (
            '[serve]\nbudget = "3G"\n[vm.a]\nmin = "2G"\n[vm.b]\nmin = "2G"\n',
            "serve.budget",
            "the minima of all VMs add up to 4G",
        ),
        ('[serve]\ninterval = "1ms"\n', "serve.interval", "not within 50ms to 60s"),
    ],
)
def test_contradictions_of_the_control_plane(
    tmp_path: Path, text: str, key: str, message: str
) -> None:
    (problem,) = examined(tmp_path, SSD + text).errors
    assert problem.key == key
    assert message in problem.message


@pytest.mark.parametrize(
    "uri",
    [
        *("nbds://h/{vm}", "nbd+unix:///{vm}?socket=/run/s", "nbd://127.0.0.1/{vm}"),
        *("nbd://localhost/{vm}", "nbd://[::1]/{vm}"),
    ],
)
def test_no_warning_where_nothing_leaves_the_host_in_clear(tmp_path: Path, uri: str) -> None:
    found = examined(tmp_path, f'[[tier]]\nname = "n"\ntype = "nbd"\nuri = "{uri}"')
    assert found.problems == []


def test_drop_ins_are_merged_in_order(tmp_path: Path) -> None:
    found = examined(
        tmp_path,
        '[manager]\nlimit = "1G"\nreadahead = 8\n' + RAM + SSD + "[vm.a]\nreadahead = 2\n",
        **{
            "20-second": '[manager]\nlimit = "3G"\n[vm.b]\nlimit = "5G"\n',
            "10-first": '[manager]\nlimit = "2G"\nallow-uids = [5]\n[vm.a]\nlimit = "4G"\n'
            '[[tier]]\nname = "ssd"\ncapacity = "7G"\n'
            '[[tier]]\nname = "hdd"\ntype = "file"\npath = "/y"\n',
        },
    )
    config = found.require()
    assert (config.manager.limit, config.manager.readahead) == ("3G", 8)
    assert config.manager.allow_uids == [5]
    assert [tier.name for tier in config.tier] == ["ram", "ssd", "hdd"]
    assert config.tier[1].capacity == 7 << 30
    assert (config.vm["a"].limit, config.vm["a"].readahead) == ("4G", 2)
    assert config.vm["b"].limit == "5G"
    document = found.document
    folder = tmp_path / "uffdmm.toml.d"
    assert document.files == [
        *(tmp_path / "uffdmm.toml", folder / "10-first.toml", folder / "20-second.toml")
    ]
    assert document.origin(("manager", "limit")) == folder / "20-second.toml"
    assert document.origin(("manager", "readahead")) == tmp_path / "uffdmm.toml"
    assert document.origin(("tier", 1, "path")) == tmp_path / "uffdmm.toml"
    assert document.origin(("tier", 1, "capacity")) == folder / "10-first.toml"


def test_a_mistake_names_the_drop_in(tmp_path: Path) -> None:
    found = examined(tmp_path, SSD, bad='[[tier]]\nname = "ssd"\ncapacity = "x"\n')
    (problem,) = found.errors
    assert problem.file == str(tmp_path / "uffdmm.toml.d" / "bad.toml")
    assert problem.key == "tier.ssd.capacity"


def test_only_toml_files_are_drop_ins(tmp_path: Path) -> None:
    (tmp_path / "uffdmm.toml.d").mkdir()
    (tmp_path / "uffdmm.toml.d" / "x.toml.bak").write_text("nonsense")
    (tmp_path / "uffdmm.toml.d" / "ssd.toml").write_text(SSD)
    # There is no main file: the drop-ins are enough.
    assert examine(read_document(tmp_path / "uffdmm.toml")).require().tier[0].name == "ssd"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (problem,) = examine(read_document(tmp_path / "absent.toml")).problems
    assert problem.sentence == f"{tmp_path}/absent.toml: cannot be read: no such file or directory"
    assert "create it" in (problem.remedy or "")
    (problem,) = examine(read_document(tmp_path)).problems
    assert "is a directory" in problem.message
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe4"')
    (problem,) = examine(read_document(tmp_path / "latin.toml")).problems
    assert "not TOML" in problem.message


def test_a_broken_drop_in_is_no_missing_tier(tmp_path: Path) -> None:
    found = examined(tmp_path, "", broken="[[tier]\n")
    (problem,) = found.errors
    assert problem.file == str(tmp_path / "uffdmm.toml.d" / "broken.toml")


def plain_values() -> st.SearchStrategy[Any]:
    numbers = st.integers(-(1 << 60), 1 << 60) | st.booleans() | st.floats(allow_nan=False)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return numbers | text | st.lists(numbers | text, max_size=3)


def tables() -> st.SearchStrategy[dict[str, Any]]:
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    inner = st.recursive(
        plain_values(),
        lambda deeper: (
            st.dictionaries(keys, deeper, max_size=3)
            | st.lists(st.dictionaries(keys, deeper, max_size=2), min_size=1, max_size=2)
        ),
        max_leaves=6,
    )
    return st.dictionaries(keys, inner, max_size=4)


@given(tables())
def test_what_is_shown_is_what_was_read(data: dict[str, Any]) -> None:
    document = Document(Path("/etc/uffdmm/uffdmm.toml"), [Path("/etc/x.toml")], data)
    assert tomllib.loads(to_toml(document)) == data


def test_what_is_shown_names_the_files(tmp_path: Path) -> None:
    found = examined(tmp_path, SSD, more='[manager]\nlimit = "2G"\n')
    text = to_toml(found.document)
    assert f'limit = "2G"  # {tmp_path}/uffdmm.toml.d/more.toml' in text
    assert f'path = "/x"  # {tmp_path}/uffdmm.toml\n' in text


@given(st.text(max_size=60) | tables().map(lambda data: to_toml(Document(Path("x"), [], data))))
def test_no_text_is_too_strange(text: str) -> None:
    """Whatever stands in a file: a result or problems, and never another exception."""
    document = Document(Path("/x"))
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    document.data, document.files = data, [Path("/x")]
    found = examine(document)
    assert found.config is None or not found.errors
    for problem in found.problems:
        assert problem.sentence


def test_examples_of_the_documents_are_valid(tmp_path: Path) -> None:
    text = (TOP / "docs/configuration.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    for index, block in enumerate(blocks):
        folder = tmp_path / str(index)
        folder.mkdir()
        # An excerpt shows its own tables only.
        found = examined(folder, block if "[[tier]]" in block else f"{block}\n{RAM}{SSD}")
        assert [problem.sentence for problem in found.errors] == []
