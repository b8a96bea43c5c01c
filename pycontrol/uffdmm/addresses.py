# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses to listen on."""

import ipaddress
import re

from .errors import AddressError


def parse_address(text: str, example: str = "127.0.0.1:9184") -> tuple[str, int]:
    """Address and port of ``ADDR:PORT``; an IPv6 address stands in brackets.

    :raise AddressError: it is none; a name is refused, since it may stand for several addresses
    """
    host, colon, port = text.rpartition(":")
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version: int = ipaddress.ip_address(address).version
    except ValueError:
        version = 0
    bracketed = address != host
    # isdigit() alone would also take digits of other scripts.
    number = int(port) if port.isascii() and port.isdigit() else -1
    if not colon or version != (6 if bracketed else 4) or not 0 <= number <= 65535:
        raise AddressError(
            f"'{text}' is not an address and a port",
            f"write {example} or [::1]:{example.rpartition(':')[2]}",
        )
    return address, number


def parse_target(text: str, port: int) -> tuple[str, int]:
    """Host and port of ``HOST[:PORT]``; the host is a name or an address, IPv6 in brackets.

    :param port: the one that is meant when none is given
    :raise AddressError: it is none
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?", text)
    number = int(match[2]) if match and match[2] else port
    if match is None or not 1 <= number <= 65535:
        raise AddressError(f"'{text}' is not a host and a port", f"write host.example:{port}")
    return match[1].strip("[]"), number
