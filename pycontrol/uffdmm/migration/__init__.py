# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream that carries the locations of swapped pages from host to host.

``locations`` knows what a location is and finds what has changed, ``codec`` packs locations into
few bytes, ``frames`` puts them and the rest of the conversation on a stream.
"""
