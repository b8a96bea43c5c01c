# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the C source of ``uffdmm._native`` from the project's own headers.

Run by meson: ``build_native.py OUTPUT INCLUDE_DIR HEADER... -- COMPILER...``.

The headers are the one source of every constant, structure and prototype: the C preprocessor
strips them (with ``UFFDMM_CFFI`` defined), cffi parses what is left, and the compiler that
builds the module checks the result against the same headers once more.
"""

import subprocess
import sys
from pathlib import Path

import cffi

MODULE = "uffdmm._native"


def declarations(compiler: list[str], include_dir: Path, header: Path) -> str:
    """Preprocess one header and keep the lines that come from it.

    A system header that it includes would bring in hundreds of declarations that cffi cannot
    parse; the line markers of the preprocessor tell them apart.
    """
    command = [*compiler, "-E", "-DUFFDMM_CFFI", f"-I{include_dir}", str(header)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("# "):
            inside = line.split('"')[1] == str(header)
        elif inside and line.strip():
            kept.append(line)
    if not kept:
        raise SystemExit(f"{header}: nothing is left after preprocessing")
    return "\n".join(kept) + "\n"


def main() -> None:
    """Parse the arguments that meson passes and write the file."""
    output, include_dir, *rest = sys.argv[1:]
    split = rest.index("--")
    headers, compiler = [Path(name) for name in rest[:split]], rest[split + 1 :]
    builder = cffi.FFI()
    for header in headers:
        builder.cdef(declarations(compiler, Path(include_dir), header))
    includes = "".join(f"#include <uffdmm/{header.name}>\n" for header in headers)
    builder.set_source(MODULE, includes)
    builder.emit_c_code(output)


if __name__ == "__main__":
    main()
