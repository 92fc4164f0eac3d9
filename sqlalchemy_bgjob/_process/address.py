"""``--http HOST:PORT``, and which of several processes listens on which port."""

from typing import Any, NamedTuple

import click

from .param_type import ParamType


class Address(NamedTuple):
    """Where to listen: a host's name or IP address without brackets, and a port; 0 for any."""

    host: str
    port: int

    def of_process(self, name: str | None) -> "Address":
        """That of a supervised process: its number is added to the port, from 0 for the first."""
        return (
            self if name is None or not self.port else self._replace(port=self.port + int(name) - 1)
        )


class HostAndPort(ParamType[Address]):
    """``127.0.0.1:9464`` or ``[::1]:9464``: an :class:`Address`."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Parse it. The host must be there: all interfaces are a choice, 0.0.0.0 or [::]."""
        if isinstance(value, Address):
            return value
        host, _, port = str(value).rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        is_whole = bare and (":" not in bare or host == f"[{bare}]")
        if not is_whole or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
            self.fail(
                f"{value!r} is not HOST:PORT, such as 127.0.0.1:9464, or 0.0.0.0:9464 for all "
                f"interfaces",
                param,
                ctx,
            )
        return Address(bare, int(port))
