# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces: what one must be, the file and its damages, those that are made up."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uffdmm.trace import KINDS, Settings, Trace, TraceError, load_trace, parse_synthetic, save_trace
from uffdmm.trace.model import COUNTERS, PAGE, pack, stride_for, units_of
from uffdmm.trace.synthetic import make_synthetic

MIB = 1 << 20


def trace(units: int = 20, samples: int = 5, seed: int = 1, **values: Any) -> Trace:
    random = np.random.default_rng(seed)

    def row() -> np.ndarray[Any, np.dtype[np.uint8]]:
        return pack(random.random(units) < 0.3)

    plain: dict[str, Any] = {
        "name": "vm",
        "ram_bytes": units * PAGE,
        "stride": 1,
        "times": np.cumsum(0.1 + random.random(samples)),
        "looked": random.random(samples) < 0.5,
        "used": np.array([row() for _ in range(samples)]),
        "resident": row(),
        "stored": row(),
        "counters": {name: random.integers(0, 1 << 60, samples) for name in COUNTERS},
    }
    return Trace(**plain | values)


def same(one: Trace, other: Trace) -> bool:
    arrays = ("times", "looked", "used", "resident", "stored")
    plain = ("name", "ram_bytes", "stride", "settings", "marks", "source")
    return (
        all(np.array_equal(getattr(one, key), getattr(other, key)) for key in arrays)
        and all(getattr(one, key) == getattr(other, key) for key in plain)
        and all(np.array_equal(one.counters[key], other.counters[key]) for key in COUNTERS)
    )


@given(
    units=st.integers(1, 70),
    samples=st.integers(2, 12),
    seed=st.integers(0, 1 << 30),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=9),
    shares=st.integers(1, 10000),
    marked=st.dictionaries(st.text(max_size=5), st.just(1), max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(
    tmp_path: Path,
    units: int,
    samples: int,
    seed: int,
    name: str,
    shares: int,
    marked: dict[str, int],
) -> None:
    made = trace(
        *(units, samples, seed),
        name=name,
        settings=Settings(shares=shares),
        marks=marked,
        source="x",
    )
    save_trace(made, tmp_path / "t.npz")
    assert same(load_trace(tmp_path / "t.npz"), made)
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("trace") / "t.npz"
    save_trace(trace(units=200, samples=8), path)
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_or_a_trace(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    path = tmp_path / "t.npz"
    path.write_bytes(damaged[:cut])
    try:
        found = load_trace(path)
    except TraceError:
        return
    # What is let through holds what is promised of one.
    assert found.nr_units <= 200 + 7
    assert (np.diff(found.times) > 0).all()


def members(good: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def array_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def refused(tmp_path: Path, parts: dict[str, bytes]) -> str:
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert str(path) in caught.value.message
    return caught.value.message


def meta_of(parts: dict[str, bytes], **changes: Any) -> bytes:
    text = np.load(io.BytesIO(parts["meta.npy"])).tobytes()
    document = json.loads(text) | changes
    return array_bytes(np.frombuffer(json.dumps(document).encode(), np.uint8))


def test_no_pickle_is_opened(good: bytes, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    parts = members(good)
    for name in parts:
        assert "is of type" in refused(
            tmp_path, parts | {name: array_bytes(np.array([Trap()], object))}
        )
    assert not (tmp_path / "sprung").exists()


def test_arrays_of_another_shape_are_refused(good: bytes, tmp_path: Path) -> None:
    parts = members(good)
    for name in set(parts) - {"meta.npy"}:
        array = np.load(io.BytesIO(parts[name]))
        for other in (array[:-1], array[None], array.astype(">f4")):
            assert refused(tmp_path, parts | {name: array_bytes(other)})


def test_a_bomb_is_not_unpacked(good: bytes, tmp_path: Path) -> None:
    parts = members(good)
    huge = array_bytes(np.zeros(1 << 26, np.uint8))
    for name in ("used.npy", "meta.npy"):
        assert "would unpack to" in refused(tmp_path, parts | {name: huge})
    shapes = (
        {"ram_bytes": 1 << 50},
        {"ram_bytes": 1 << 32, "samples": 1 << 17},
        {"samples": 1 << 40},
        {"stride": 0},
        {"samples": 1},
        {"ram_bytes": 4097},
    )
    for shape in shapes:
        refused(tmp_path, parts | {"meta.npy": meta_of(parts, **shape)})


def test_meta_is_checked(good: bytes, tmp_path: Path) -> None:
    parts = members(good)
    wrong: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "a\nb"},
        {"name": 7},
        {"more": 1},
        {"marks": {"x": 8}},
        {"marks": {"x": -1}},
        {"settings": {"min_bytes": 0}},
        {"ram_bytes": True},
    ]
    for change in wrong:
        refused(tmp_path, parts | {"meta.npy": meta_of(parts, **change)})
    message = refused(tmp_path, parts | {"meta.npy": meta_of(parts, version=2)})
    assert "version 2, this program reads 1" in message
    assert "more members" not in message
    del parts["used.npy"]
    assert "'used' is missing" in refused(tmp_path, parts)


def test_too_many_members_are_refused(good: bytes, tmp_path: Path) -> None:
    assert "members" in refused(tmp_path, members(good) | {"more.npy": b"x"})


def test_no_file_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no trace") as caught:
        load_trace(tmp_path / "none.npz")
    assert caught.value.remedy is not None
    (tmp_path / "folder").mkdir()
    with pytest.raises(TraceError, match="is a directory"):
        load_trace(tmp_path / "folder")


def test_what_was_there_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.npz"
    save_trace(trace(), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        save_trace(trace(seed=2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.npz"]


@pytest.mark.parametrize(
    "values",
    [
        {"times": np.array([0.0, 1.0, 1.0, 2.0, 3.0])},
        {"times": np.array([0.0, 1.0, np.nan, 2.0, 3.0])},
        {"looked": np.zeros(4, np.bool_)},
        {"resident": np.zeros(4, np.uint8)},
        {"counters": {}},
        {"marks": {"x": 5}},
        {"settings": Settings(min_bytes=1 << 40)},
        {"settings": Settings(shares=0)},
    ],
)
def test_parts_that_do_not_fit_are_no_trace(values: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="trace 'vm'"):
        trace(**values)


def test_a_stride_keeps_large_machines_small() -> None:
    assert stride_for(1 << 30, 1 << 18) == 1
    assert stride_for((1 << 30) + PAGE, 1 << 18) == 2
    assert units_of(5 * PAGE, 2) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_traces_come_from_their_seed(kind: str) -> None:
    words = f"synthetic:{kind},ram=64M,seconds=20"
    assert same(parse_synthetic(f"{words},seed=4"), parse_synthetic(f"{words},seed=4"))
    made = parse_synthetic(f"{words},touched=50%")
    ever = np.logical_or.reduce([made.row(row) for row in range(len(made.times))])
    # All of what is to be touched is, and nothing else.
    assert ever.sum() == made.nr_units // 2


def test_a_made_up_guest_does_what_its_kind_says() -> None:
    def shares(kind: str) -> list[float]:
        made = make_synthetic(kind, ram_bytes=64 * MIB, seconds=120)
        return [float(made.row(row).mean()) for row in range(5, 121)]

    assert 0.17 < np.mean(shares("hot-cold")) < 0.2
    assert max(shares("scan")) > 0.2 > min(shares("scan"))
    idle = shares("idle-busy")
    assert max(idle[:24]) < 0.03
    assert min(idle[26:50]) > 0.5
    assert np.mean(shares("sequential")) == pytest.approx(1 / 20, rel=0.01)
    often = make_synthetic("zipf", ram_bytes=64 * MIB, seconds=60)
    counts = np.sum([often.row(row) for row in range(5, 61)], axis=0)
    assert (counts > 50).mean() < 0.1 < (counts < 10).mean()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("nonsense", "there is no made-up trace 'nonsense'"),
        ("scan,ram=lots", "'ram=lots'"),
        ("scan,speed=1", "'speed' is none of its keys"),
        ("scan,seed", "a key and a value"),
        ("scan,touched=0", "cannot be"),
        ("scan,touched=nan", "cannot be"),
        ("scan,seconds=0", "cannot be"),
        ("scan,ram=1k", "cannot be"),
        ("scan,shares=0", "cannot be"),
        ("scan,min=2G", "exceeds its maximum"),
    ],
)
def test_made_up_traces_that_cannot_be(words: str, sentence: str) -> None:
    with pytest.raises(TraceError, match=sentence):
        parse_synthetic(f"synthetic:{words}")
