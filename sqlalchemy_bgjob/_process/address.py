"""Where a worker answers probes, and which of several processes listens on which port."""

from typing import NamedTuple


class Address(NamedTuple):
    """Where to listen: a host's name or IP address without brackets, and a port; 0 for any."""

    host: str
    port: int

    def of_process(self, name: str | None) -> "Address":
        """That of a supervised process: its number is added to the port, from 0 for the first."""
        return (
            self if name is None or not self.port else self._replace(port=self.port + int(name) - 1)
        )
