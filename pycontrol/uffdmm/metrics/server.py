# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP for scrapes, in a thread of its own."""

from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

from ..errors import UffdmmError
from .collector import UffdmmCollector

DEFAULT_LISTEN = "127.0.0.1:9184"


class MetricsServer:
    """Answers scrapes of ``http://ADDRESS:PORT/metrics`` until it is closed.  A context manager.

    :param collector: what is served; closed with the server
    :param address: to listen on; 0.0.0.0 and :: let everybody look
    :param port: 0 takes a free one, see :attr:`port`
    :raise UffdmmError: it cannot listen there
    """

    def __init__(self, collector: UffdmmCollector, address: str, port: int) -> None:
        self._collector = collector
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            collector.close()
            reason = (error.strerror or str(error)).lower()
            raise UffdmmError(
                f"cannot listen on {address}:{port}: {reason}", "choose another one with --listen"
            ) from None
        self.address = address
        self.port: int = self._server.server_port

    def close(self) -> None:
        """End the server and give back what it held."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._collector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
