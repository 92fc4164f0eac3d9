"""Hides secrets in what is shown of args and headers."""

import json
from collections.abc import Collection
from typing import Any, Final

HIDDEN: Final = "[hidden]"
SECRETS: Final = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "cookie",
    "api_key",
    "apikey",
    "private_key",
    "credential",
    "card_number",
    "cvv",
    "iban",
    "ssn",
)
"""A key that contains one of these words, in any case, is one of a secret."""
_DEEPEST: Final = 200


class Redaction:
    """Which keys hide their values, at any depth."""

    def __init__(self, words: Collection[str]) -> None:
        if isinstance(words, str):
            raise TypeError(f"redact={words!r} is a str; write a list of words")
        self._words = tuple(_plain(word) for word in words)

    def hides(self, key: str) -> bool:
        """Whether what stands under a key is a secret."""
        plain = _plain(key)
        return any(word in plain for word in self._words)

    def shown(self, value: Any, depth: int = 0) -> Any:
        """A JSON value without its secrets."""
        if depth > _DEEPEST:
            return HIDDEN
        match value:
            case dict():
                return {
                    key: HIDDEN if self.hides(str(key)) else self.shown(one, depth + 1)
                    for key, one in value.items()
                }
            case list():
                return [self.shown(one, depth + 1) for one in value]
            case _:
                return value

    def restored(self, edited: Any, original: Any) -> Any:
        """An edited value with the secrets of the original back where they were hidden.

        An element of a list has nothing but its place to tell whose secret it had. So all but one
        must be as they were, and that one like none of the others: then none was moved.

        Raises:
            ValueError: It is not known whose secret a hidden one is: a list with hidden values may
                be in another order, or the original had none there.
        """
        match edited, original:
            case dict(), dict():
                return {
                    key: original[key]
                    if one == HIDDEN and key in original and self.hides(str(key))
                    else self.restored(one, original.get(key))
                    for key, one in edited.items()
                }
            case list(), list() if len(edited) == len(original):
                restored = [
                    self.restored(one, before) for one, before in zip(edited, original, strict=True)
                ]
                if not _may_have_moved(edited, restored, original):
                    return restored
            case _:
                if not _has_hidden(edited):
                    return edited
        raise ValueError(
            f"whose value is the {HIDDEN} here? Write the value itself; a list with hidden values "
            f"keeps its length and its order, and one of its elements is edited at a time"
        )


def _may_have_moved(edited: list[Any], restored: list[Any], original: list[Any]) -> bool:
    """Whether an element with a hidden value may be one that stood elsewhere in the list."""
    places = zip(edited, restored, original, strict=True)
    changed = [one for one, now, before in places if now != before]
    if len(changed) > 1:
        return _has_hidden(edited)
    return any(_has_hidden(one) and edited.count(one) > 1 for one in changed)


def _has_hidden(value: Any) -> bool:
    match value:
        case dict():
            return any(map(_has_hidden, value.values()))
        case list():
            return any(map(_has_hidden, value))
        case _:
            return bool(value == HIDDEN)


def _plain(key: str) -> str:
    """Without what tells ``card_number``, ``card-number`` and ``cardNumber`` apart."""
    return "".join(character for character in key.lower() if character.isalnum())


def loaded(arg: bytes) -> Any:
    """The JSON value of a row's arg.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(arg)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def pretty(value: Any) -> str:
    """A JSON value for people; numbers keep all their digits.

    Half of a surrogate pair, which no page can hold, is written as the escape that it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()
