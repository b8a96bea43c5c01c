# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file ``uffdmm.toml``.

=========== =============================================================================
module      concern
=========== =============================================================================
``model``   what may stand in it: every key with its type and its description
``values``  the types of single values: sizes, limits, times
``problem`` one thing that is wrong, and how it is told
``load``    file and drop-ins to one document, with the origin of each value
``check``   what is wrong with a document, or likely to disappoint
``command`` the command line of ``uffdmm-manager`` that follows from it
``render``  the merged result as TOML, with the origin of each value
=========== =============================================================================

What is loaded is either a valid :class:`Config` or a list of problems that names file, key, value
and remedy of each; nothing in between reaches the manager.
"""

from .check import Examined, examine
from .command import manager_arguments
from .load import DEFAULT_FILE, Document, read_document
from .model import Config
from .problem import Problem, Severity
from .render import to_toml

__all__ = [
    "DEFAULT_FILE",
    "Config",
    "Document",
    "Examined",
    "Problem",
    "Severity",
    "examine",
    "manager_arguments",
    "read_document",
    "to_toml",
]
