"""Every error Regard raises: one class per kind of user error, and one for Regard's own bugs.

A message says what was wrong, where (file, line, caret, if the place is known) and what to write
instead. All user errors derive from :class:`RegardError`.
"""

from __future__ import annotations

from .location import Location


class RegardError(Exception):
    """Base class of all errors caused by the user's input.

    ``message`` says what is wrong, ``hint`` what to write instead, ``location`` where it is.
    """

    def __init__(self, message: str, *, location: Location | None = None, hint: str = "") -> None:
        self.message, self.location, self.hint = message, location, hint
        parts = [message]
        if location is not None:
            parts.append("  at " + location.render().replace("\n", "\n  "))
        if hint:
            parts.append(f"  hint: {hint}")
        # Not by `super().__init__`, which torch.compile cannot follow: it would hide the message.
        self.args = ("\n".join(parts),)


class TraceError(RegardError):
    """The Python function of a mask or score does something a symbolic value cannot do."""


class TypeMismatchError(RegardError):
    """An expression combines or yields types that do not fit (a mask that is not boolean, say)."""


class ParameterError(RegardError):
    """A parameter is unknown, unbound, bound twice, or bound to a value of the wrong kind."""


class ArgumentError(RegardError, ValueError):
    """A tensor or option passed at the call has the wrong dtype, device, shape, rank or value."""


class IndexRangeError(RegardError, IndexError):
    """A captured tensor would be read outside its bounds by a pair that the mask allows."""


class TextError(RegardError, SyntaxError):
    """The text language was not understood."""

    def __str__(self) -> str:  # SyntaxError would print only its own fields
        return str(self.args[0])


class UnsupportedError(RegardError, NotImplementedError):
    """The request is meaningful but this build has no way to run it; the message says what has."""


class InternalError(Exception):
    """A bug in Regard. Please report it with the printed variant."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}\n  This is a bug in Regard; please report it together with str(attn).")
