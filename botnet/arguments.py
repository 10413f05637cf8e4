"""Allowed numbers and words of arguments, for constructors and for the command line alike.

A signature says what it allows, ``canvas: Side``, and :func:`checked` refuses other values. The command reads
the same limits (:func:`limits_of`), to refuse an option before anything is made.
"""

import functools
import inspect
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from botnet.errors import ConfigError, nearest

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Range:
    """The integers or numbers from ``low`` to ``high``; never NaN or infinity.

    Called, it is a type for argparse.

    Args:
        kind: ``int``, or ``float``, which includes integers.
        low: the smallest.
        high: the largest.
        above: ``low`` itself is not allowed.
        below: ``high`` itself is not allowed.
        rising: of a sequence, no number may be smaller than the one before.
    """

    kind: type[int] | type[float]
    low: float
    high: float = 2**31 - 1  # what no count needs, and every library can hold
    above: bool = False
    below: bool = False
    rising: bool = False

    def __repr__(self) -> str:  # as help and messages show it
        if self.low == self.high:
            return str(self.low)
        low = f"above {self.low} and up to" if self.above else f"from {self.low} to"
        return f"{'an integer' if self.kind is int else 'a number'} {low} {'below ' * self.below}{self.high}"

    def __contains__(self, value: float) -> bool:
        if self.kind is int and not isinstance(value, Integral):
            return False
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __call__(self, text: str) -> float:
        """The number that a text of the command line gives."""
        try:
            value = self.kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not allowed; give {self}") from None
        if value not in self:
            raise ArgumentTypeError(_refusal(value, self))
        return value


@dataclass(frozen=True, repr=False)
class Choice:
    """One of some words, or a text of a certain form.

    Called, it is a type for argparse.

    Args:
        names: the words.
        form: what else is allowed, in words.
        pattern: what else is allowed, as a regular expression.
    """

    names: tuple[str, ...]
    form: str = ""
    pattern: str = ""

    def __repr__(self) -> str:
        words = [*self.names, self.form] if self.form else [*self.names]
        return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)

    def __contains__(self, value: str) -> bool:
        return value in self.names or bool(self.pattern and re.fullmatch(self.pattern, value))

    def near(self, value: str) -> str:
        """A hint at the words that are nearest to one that is not allowed; empty if none is near."""
        return nearest(value, self.names)

    def __call__(self, text: str) -> str:
        """A word of the command line, if it is allowed."""
        if text not in self:
            raise ArgumentTypeError(_refusal(text, self))
        return text


Limit = Range | Choice

# What the arguments of this project are. The upper bounds of sizes and factors only catch mistakes.
COUNT = Range(int, 1)
FROM_ZERO = Range(int, 0)
PART = Range(float, 0, 1)
POSITIVE_PART = Range(float, 0, 1, above=True)
CROP = Range(float, 0.1, 1)  # part of the short side; less would enlarge images until memory ends
POSITIVE = Range(float, 0, 1000, above=True)
SIDE = Range(int, 1, 2**16)
DIGITS_SIDE = Range(int, 64, 2**16)  # of make-digits: less does not show a digit
RELATIONS_CANVAS = Range(int, 96, 2**16)  # of make-relations: less has no room for its distances
WORKERS = Range(int, 0, 1024)
SEED = Range(int, 0, 2**32 - 1)  # what numpy takes

RELATION = Choice(("cue", "direction", "match", "local"))  # tasks of make-relations
READER = Choice(("folder", "tar", "wds"), "hfds/NAME", "hfds/.+")
Resampling = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]  # Pillow's
INTERPOLATION = Choice(get_args(Resampling))

Count = Annotated[int, COUNT]
BatchSize = Annotated[int | Literal["auto"], COUNT, Choice(("auto",))]
CountOrZero = Annotated[int, FROM_ZERO]
Duration = Annotated[float, Range(float, 0)]  # in minutes or epochs
Side = Annotated[int, SIDE]  # of an image, in pixels
Width = Annotated[int, Range(int, 1, 2**16)]  # of a layer, in channels
Layers = Annotated[int, Range(int, 0, 1000)]
Part = Annotated[float, PART]
PositivePart = Annotated[float, POSITIVE_PART]
Crop = Annotated[float, CROP]
PartBelowOne = Annotated[float, Range(float, 0, 1, below=True)]
Factor = Annotated[float, Range(float, 0, 1000)]
PositiveFactor = Annotated[float, POSITIVE]
Degrees = Annotated[float, Range(float, 0, 180)]
Workers = Annotated[int, WORKERS]  # processes
Seed = Annotated[int, SEED]
Reader = Annotated[str, READER]
Interpolation = Annotated[str, INTERPOLATION]
Span = Annotated[tuple[float, float], Range(float, 0, 1000, above=True, rising=True)]  # smallest, largest


def limits_in(annotation: Any) -> tuple[Limit, ...]:
    """The limits in an annotation, ``Annotated[int, Range(...)]`` or that or None, of which one must hold."""
    for part in (annotation, *get_args(annotation)):
        data = (part, *getattr(part, "__metadata__", ()))
        if found := tuple(limit for limit in data if isinstance(limit, Limit)):
            return found
    return ()


def limits_of(function: Callable[..., Any]) -> dict[str, tuple[Limit, ...]]:
    """The limits in the signature of a function or a class, by argument."""
    parameters = inspect.signature(function).parameters
    found = {name: limits_in(parameter.annotation) for name, parameter in parameters.items()}
    return {name: limits for name, limits in found.items() if limits}


def check(name: str, given: Any, *limits: Limit) -> None:
    """Refuse a number or a word, or a sequence with one, that no limit allows.

    Args:
        name: of the argument or option, for the message.
        given: where no limit is about values of its type, the type has to be checked elsewhere.
        limits: of which one must allow it.

    Raises:
        ConfigError: none does.
    """
    several = isinstance(given, list | tuple)
    for value in given if several else (given,):
        kind = Choice if isinstance(value, str) else Range if isinstance(value, Real) else None
        applying = [limit for limit in limits if kind is not None and isinstance(limit, kind)]
        if applying and not any(value in limit for limit in applying):
            raise ConfigError(f"{name}: {_refusal(value, *limits)}")
    rising = several and any(isinstance(limit, Range) and limit.rising for limit in limits)
    if rising and list(given) != sorted(given):
        raise ConfigError(f"{name}: {list(given)} is not allowed; give the smaller number first")


def _refusal(value: Any, *limits: Limit) -> str:
    """The message about a value that no limit allows."""
    words = [limit for limit in limits if isinstance(limit, Choice)]
    hint = words[0].near(value) if words and isinstance(value, str) else ""
    return f"{repr(value).removesuffix('.0')} is not allowed; give {' or '.join(map(str, limits))}{hint}"


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of each call of a function against the limits in its signature.

    The calls raise :class:`~botnet.errors.ConfigError` for an argument that is not allowed. NumPy's numbers
    become Python's, which a checkpoint can hold.
    """
    signature, limits = inspect.signature(function), limits_of(function)

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        for name, allowed in limits.items():
            if name in given:
                _check_form(name, given[name], signature.parameters[name].annotation, allowed)
                check(name, given[name], *allowed)
                given[name] = _plain(given[name])
        return function(*bound.args, **bound.kwargs)

    return checking


def _plain(value: Any) -> Any:
    """A number of Python, or a list or tuple with such numbers; anything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if not isinstance(value, Real) or isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _check_form(name: str, given: Any, annotation: Any, limits: tuple[Limit, ...]) -> None:
    """Refuse what is neither a number nor a word, nor a sequence of them, where the signature has a number.

    No command gives such a value, but a program or the description in a checkpoint may.
    """
    if not any(isinstance(limit, Range) for limit in limits):
        return
    parts = list(_parts(annotation))
    types = {get_origin(part) or part for part in parts}
    kinds = (Real, str) if any(isinstance(limit, Choice) for limit in limits) else Real
    if given is None:
        fine = NoneType in types
    elif isinstance(given, list | tuple):
        sequence = not types.isdisjoint((tuple, list, Sequence))
        fine = sequence and all(isinstance(value, kinds) for value in given)
        lengths = [len(get_args(part)) for part in parts if get_origin(part) is tuple]
        if fine and lengths and ... not in types and len(given) not in lengths:
            raise ConfigError(f"{name}: {given!r} is not allowed; give {lengths[0]} numbers")
    else:
        fine = isinstance(given, kinds)
    if not fine:
        raise ConfigError(f"{name}: {_refusal(given, *limits)}")


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
