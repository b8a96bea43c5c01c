# SPDX-License-Identifier: GPL-2.0-or-later
"""A merged document as TOML again, each value with the file it came from."""

import json
import re
from collections.abc import Iterator
from typing import Any

from .load import Document, KeyPath

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Document) -> str:
    """The document; reading it gives the same data.  Origins are comments."""
    return "\n".join(_table(document, document.data, (), "")).strip("\n") + "\n"


def _quoted(text: str) -> str:
    # JSON's strings are TOML's, but for DEL, which only TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _quoted(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    # Numbers and the dates that no key takes; nan and inf are spelled alike.
    return str(value)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _table(document: Document, table: dict[str, Any], path: KeyPath, heading: str) -> Iterator[str]:
    """Plain values first: behind the heading of an inner table they would belong to that one."""
    plain = {k: v for k, v in table.items() if not isinstance(v, dict) and not _is_tables(v)}
    if heading and (plain or not table or heading.startswith("[[")):
        yield ""
        yield heading
    for key, value in plain.items():
        file = document.origin((*path, key))
        yield f"{_key(key)} = {_value(value)}" + (f"  # {file}" if file else "")
    prefix = heading.strip("[]")
    for key, value in table.items():
        name = f"{prefix}.{_key(key)}" if prefix else _key(key)
        if isinstance(value, dict):
            yield from _table(document, value, (*path, key), f"[{name}]")
        elif _is_tables(value):
            for index, item in enumerate(value):
                yield from _table(document, item, (*path, key, index), f"[[{name}]]")
