# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m uffdmm_runner"""

import sys

from .main import main

sys.exit(main())
