# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates for tests of TLS: an authority, and hosts of it, under QEMU's file names."""

import shutil
import subprocess
from pathlib import Path


class Authority:
    """Signs certificates of hosts.

    :param folder: where its key is kept
    """

    def __init__(self, folder: Path, name: str = "tests") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca-cert.pem"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=keyCertSign"),
            *("-keyout", str(folder / "ca-key.pem"), "-out", str(self.certificate)),
        )

    def host(self, folder: Path, *names: str) -> Path:
        """The folder with all files that a host needs; it is called by all these names.

        :param names: host names, or addresses
        """
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.certificate, folder / "ca-cert.pem")
        kinds = [f"IP:{name}" if _is_address(name) else f"DNS:{name}" for name in names]
        for side in ("server", "client"):
            key = folder / f"{side}-key.pem"
            _openssl(
                *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-days", "2", "-subj", f"/CN={names[0]}"),
                *("-CA", str(self.certificate), "-CAkey", str(self._folder / "ca-key.pem")),
                *("-addext", f"subjectAltName={','.join(kinds)}"),
                *("-addext", "basicConstraints=critical,CA:FALSE"),
                *("-keyout", str(key), "-out", str(folder / f"{side}-cert.pem")),
            )
            key.chmod(0o600)
        return folder


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
