# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS between control planes: both sides show a certificate of the same authority.

A folder holds them under the names that QEMU and libvirt use, so that one set serves all:
``ca-cert.pem``; ``server-cert.pem`` and ``server-key.pem`` where others connect to;
``client-cert.pem`` and ``client-key.pem`` where ``uffdmm migrate`` runs.
"""

import ssl
from pathlib import Path

from ..errors import UffdmmError

CA = "ca-cert.pem"


class CertificateError(UffdmmError):
    """Certificates that cannot be used, or a peer whose certificate is not accepted."""


def server_context(folder: Path) -> ssl.SSLContext:
    """For the side that listens; a peer without a certificate is not heard.

    :raise CertificateError: a file is missing or unusable
    """
    return _context(folder, ssl.PROTOCOL_TLS_SERVER, "server")


def client_context(folder: Path) -> ssl.SSLContext:
    """For the side that connects; checks the name of the host as well.

    :raise CertificateError: a file is missing or unusable
    """
    return _context(folder, ssl.PROTOCOL_TLS_CLIENT, "client")


def _context(folder: Path, protocol: int, side: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    ca, cert, key = folder / CA, folder / f"{side}-cert.pem", folder / f"{side}-key.pem"
    for file in (ca, cert, key):
        if not file.is_file():
            raise CertificateError(
                f"there is no certificate file '{file}'",
                "docs/operations.md tells how to make certificates, and [migration] certificates"
                " names their folder",
            )
    if key.stat().st_mode & 0o077:
        raise CertificateError(f"the private key '{key}' can be read by others", f"chmod 600 {key}")
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as error:
        raise CertificateError(
            f"certificate '{cert}' with key '{key}' cannot be used: {error}",
            "make the three files anew with one authority",
        ) from None
    return context


def peer_names(certificate: dict[str, object] | None) -> list[str]:
    """Names that a verified certificate carries: host names, addresses, the common name."""
    names: list[str] = []
    if certificate:
        for _kind, name in certificate.get("subjectAltName", ()):  # type: ignore[attr-defined]
            names.append(str(name))
        for part in certificate.get("subject", ()):  # type: ignore[attr-defined]
            names += [str(value) for key, value in part if key == "commonName"]
    return names
