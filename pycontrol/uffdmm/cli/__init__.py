# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``uffdmm``: one module a group of commands, nothing else imports from here."""
