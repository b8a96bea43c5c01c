# SPDX-License-Identifier: GPL-2.0-or-later
"""The generated module holds what its typed stub promises."""

import ast
from pathlib import Path

import pytest

import uffdmm
from uffdmm._native import ffi, lib

STUB = Path(uffdmm.__file__).with_name("_native.pyi")


def members_of(class_name: str) -> list[str]:
    tree = ast.parse(STUB.read_text())
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    names = []
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
    return names


def test_library_has_every_member_of_the_stub() -> None:
    promised = members_of("Lib")
    assert len(promised) > 30
    assert [name for name in promised if name not in dir(lib)] == []


def test_interface_has_every_member_of_the_stub() -> None:
    assert [name for name in members_of("FFI") if not hasattr(ffi, name)] == []


@pytest.mark.parametrize(
    ("cdecl", "size"),
    [
        ("struct uffdmm_msg_header", 32),
        ("struct uffdmm_hello", 160),
        ("struct uffdmm_list_entry", 72),
        ("struct uffdmm_policy", 128),
        ("struct uffdmm_table_header", 856),
        ("struct uffdmm_move", 16),
        ("struct uffdmm_regions", 8),
        ("struct uffdmm_regions_reply", 96),
    ],
)
def test_structures_on_the_wire_have_the_sizes_of_version_3(cdecl: str, size: int) -> None:
    """These sizes are the protocol: another one is another version."""
    assert ffi.sizeof(cdecl) == size


def test_statistics_keep_their_histogram_in_place() -> None:
    fields = dict(ffi.typeof("struct uffdmm_stats").fields)
    assert fields["heartbeat_ns"].offset == 80
    assert ffi.sizeof("struct uffdmm_stats") == fields["fault_hist"].offset + 208 * 8


def test_the_package_draws_its_whole_error_tree() -> None:
    assert uffdmm.__doc__ is not None
    for name in uffdmm.__all__:
        thing = getattr(uffdmm, name)
        if isinstance(thing, type) and issubclass(thing, uffdmm.UffdmmError):
            assert name in uffdmm.__doc__
            assert name.endswith("Error")
