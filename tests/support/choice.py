"""Which PostgreSQL the tests run against. Pure: the world comes in as arguments.

There is always an answer and never a skip. A server that was asked for and cannot be had is an
error, never a reason to take another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

URL_VARIABLE = "BGJOB_TEST_DATABASE_URL"
VERSION_VARIABLE = "BGJOB_TEST_PG"


@dataclass(frozen=True)
class GivenServer:
    """A server that somebody else runs."""

    url: str


@dataclass(frozen=True)
class ContainerServer:
    """A container of the official image, made by testcontainers."""

    image: str = "postgres:18"


@dataclass(frozen=True)
class LocalServer:
    """A server of our own: the embedded one, or from the programs in *bin_dir*."""

    bin_dir: Path | None = None


Choice = GivenServer | ContainerServer | LocalServer


def choose_server(
    environment: Mapping[str, str],
    *,
    docker_answers: Callable[[], bool],
    is_folder: Callable[[Path], bool] = Path.is_dir,
) -> Choice:
    """Choose by the environment first, then by what the machine has.

    ``BGJOB_TEST_DATABASE_URL`` is a server to use; ``BGJOB_TEST_PG`` is the version of Debian's
    server package (``15``) or the folder of a server's programs. Else it is a container when a
    Docker daemon answers, else the embedded server.

    Raises:
        ValueError: Both variables are set, or there are no programs where one of them points.
    """
    url = environment.get(URL_VARIABLE, "")
    version = environment.get(VERSION_VARIABLE, "")
    if url and version:
        raise ValueError(f"set {URL_VARIABLE} or {VERSION_VARIABLE}, not both")
    if url:
        return GivenServer(url)
    if version:
        bin_dir = programs_of(version)
        if not is_folder(bin_dir):
            raise ValueError(
                f"{VERSION_VARIABLE}={version!r}, but there is no folder {str(bin_dir)!r}; "
                f"run: apt-get install postgresql-{version}"
            )
        return LocalServer(bin_dir)
    if docker_answers():
        return ContainerServer()
    return LocalServer()


def programs_of(version: str) -> Path:
    """Return the folder of a version's programs; a path stays as it is."""
    return Path(f"/usr/lib/postgresql/{version}/bin") if version.isdecimal() else Path(version)
