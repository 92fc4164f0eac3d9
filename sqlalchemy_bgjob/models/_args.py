"""What is checked when a job's arg or headers are assigned, live or dead."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import ColumnElement, event
from sqlalchemy.orm import validates

from .._drafts import validation
from .._drafts.codec import Codec, Encoded

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped

FindCodec = Callable[[Any, Any], Codec | None]
"""The codec of the handler of a type and queue; None if none is registered."""

_json_codec: Codec = Codec(Any)


class _Checked(dict[str, Any]):
    """Checked headers that carry the new arg's content type already."""


class _Json(bytes):
    """An arg as its row has it; where it is assigned once more, it is JSON and no bytes."""

    __slots__ = ()


class ArgAndHeaders:
    """Encodes an arg and checks headers on assignment. A mixin.

    Bytes are stored as bytes, with a content type in the headers; anything else is stored as JSON.
    What a row has may be assigned to another one, as ``session.merge`` does.
    """

    if TYPE_CHECKING:
        __find_codec__: ClassVar[FindCodec | None]
        headers: Mapped[dict[str, Any] | None]
        queue: Mapped[str]
        type: Mapped[str]

    @validates("arg")
    def _encode_arg(self, key: str, value: object) -> object:
        if is_sql(value):
            return value
        if isinstance(value, bytes) and value == self.__dict__.get("arg"):
            return value  # of whichever content type it is
        encoded = self._encoded(value)
        stored = validation.stored_headers(self.headers)
        own = {k: v for k, v in stored.items() if k != validation.CONTENT_TYPE}
        headers = validation.headers(own or None, encoded.content_type)
        if headers != self.headers:
            self.headers = _Checked(headers or {})
        if encoded.data is None or encoded.content_type is not None:
            return encoded.data
        return _Json(encoded.data)

    @validates("headers")
    def _check_headers(self, key: str, value: object) -> object:
        if is_sql(value):
            return value
        if isinstance(value, _Checked):
            return dict(value) or None
        if not isinstance(value, Mapping | None):
            raise TypeError(f"headers must be a mapping, not {type(value).__name__}")
        content_type = validation.stored_headers(self.headers).get(validation.CONTENT_TYPE)
        if value and validation.CONTENT_TYPE in value:
            content_type = value[validation.CONTENT_TYPE]
        return validation.headers(value, content_type)

    def _encoded(self, value: object) -> Encoded:
        if isinstance(value, Encoded):
            return value
        if isinstance(value, _Json):
            self._codec().decode(value)
            return Encoded(value, None)
        return self._codec().encode(value)

    def _codec(self) -> Codec:
        find: FindCodec | None = getattr(type(self), "__find_codec__", None)
        found = None if find is None else find(self.type, self.queue)
        return _json_codec if found is None else found


def _know_json(job: Any, context: object, attributes: Iterable[str] | None = None) -> None:
    """Let the arg of a row that was read be assigned as what it is."""
    row = job.__dict__
    if row.get("arg") is not None and "headers" in row:
        headers = validation.stored_headers(row["headers"])
        if not headers.get(validation.CONTENT_TYPE):
            row["arg"] = _Json(row["arg"])


event.listen(ArgAndHeaders, "load", _know_json, propagate=True)
event.listen(ArgAndHeaders, "refresh", _know_json, propagate=True)


def check_args_by(model: type[Any], find: FindCodec) -> None:
    """Check what is assigned to ``model.arg`` against the handler of the row's type."""
    model.__find_codec__ = staticmethod(find)


def is_sql(value: object) -> bool:
    """Whether a value is computed by the database."""
    return hasattr(value, "__clause_element__") or isinstance(value, ColumnElement)
