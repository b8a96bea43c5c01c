# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m uffdmm`` is the command ``uffdmm``."""

import sys

from .cli.app import main

if __name__ == "__main__":
    sys.exit(main())
