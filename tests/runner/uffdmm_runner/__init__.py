# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/test runs: every test runner of the project, one sum at the end.

results   one test's outcome, a suite's report, and the rules of the sum
readers   what meson, cmocka, pytest, avocado and TAP producers say, as results
command   one child process with a log, a time limit and a sign of life
tree      which files the project has, and checks of their text
lint      every static check as one counted test
suites    the runners themselves
main      the command line
"""
