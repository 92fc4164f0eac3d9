"""``ParamType``, to be subclassed with any click: it is generic since click 8.2 only."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click import ParamType
else:

    class ParamType(click.ParamType):
        """The base of types of options; in brackets is what a value is converted to."""

        def __class_getitem__(cls, converted: object) -> type["ParamType"]:
            return cls


__all__ = ["ParamType"]
