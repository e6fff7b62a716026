"""
A reader and evaluator of the part of PromQL that deploy/ uses: instant vectors, arithmetic, comparison, set operators.

What it does not know it refuses, so that an expression is never half read. `rate` and `increase` are evaluated between
two scrapes, without extrapolation to the whole range.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import add, ge, gt, le, lt, mul, sub
from typing import Any

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_TOKEN = re.compile(
    r'\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<text>"[^"]*")'
    r"|(?P<range>\[[0-9]+[smhd]\])|(?P<op>=~|!~|!=|==|<=|>=|[-+*/<>=(){},]))"
)
_AGGREGATES: Mapping[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
_SCRAPE_SECONDS = 60.0  # between the two scrapes of a range
_RANGES = frozenset({"rate", "increase"})
_FUNCTIONS = _RANGES | {"time", "absent", "histogram_quantile"}


def _divide(left: float, right: float) -> float:
    """Divide as IEEE 754 does: no rate by no rate is no number, which no comparison keeps."""
    return left / right if right else math.copysign(math.inf, left) if left else math.nan


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {"+": add, "-": sub, "*": mul, "/": _divide}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {">": gt, "<": lt, ">=": ge, "<=": le}
_LEVELS = (("or",), ("and", "unless"), tuple(_COMPARE), ("+", "-"), ("*", "/"))


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Node:
    """A part of an expression: a number, a selector, a call, an aggregate or a binary operator."""

    kind: str
    value: Any = None
    parts: tuple["Node", ...] = ()
    matchers: tuple[tuple[str, str, str], ...] = ()
    by: tuple[str, ...] = ()

    def uses(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield every metric with the labels that are asked of it, by matchers and by the aggregates round it."""
        if self.kind == "selector":
            yield self.value, frozenset(label for label, _, _ in self.matchers)
        for part in self.parts:
            for name, labels in part.uses():
                yield name, labels | set(self.by)


@dataclass
class _Reader:
    text: str
    tokens: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = 0
        while at < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise ValueError(f"cannot be read from here: {self.text[at : at + 40]!r}")
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            at = match.end()

    def peek(self) -> str:
        return self.tokens[0][1] if self.tokens else ""

    def take(self, wanted: str = "") -> tuple[str, str]:
        if not self.tokens or (wanted and self.peek() != wanted):
            raise ValueError(f"{wanted or 'more'} is missing before {self.peek()!r} in {self.text!r}")
        return self.tokens.pop(0)

    def binary(self, level: int = 0) -> Node:
        if level == len(_LEVELS):
            return self.primary()
        left = self.binary(level + 1)
        while self.peek() in _LEVELS[level]:
            op = self.take()[1]
            left = Node("binary", op, (left, self.binary(level + 1)))
        return left

    def primary(self) -> Node:
        kind, text = self.take()
        if text == "(":
            inner = self.binary()
            self.take(")")
            return inner
        if kind == "number":
            return Node("number", float(text))
        if kind != "name":
            raise ValueError(f"{text!r} begins nothing in {self.text!r}")
        if text in _AGGREGATES:
            by = self.names() if self.peek() == "by" else ()
            return Node("aggregate", text, self.arguments(), by=by)
        if self.peek() == "(":
            if text not in _FUNCTIONS:
                raise ValueError(f"{text} is no function that is known here")
            return Node("call", text, self.arguments())
        return self.selector(text)

    def names(self) -> tuple[str, ...]:
        self.take("by")
        self.take("(")
        found = [self.take()[1]]
        while self.peek() == ",":
            self.take()
            found.append(self.take()[1])
        self.take(")")
        return tuple(found)

    def arguments(self) -> tuple[Node, ...]:
        self.take("(")
        found: list[Node] = []
        while self.peek() != ")":
            found.append(self.binary())
            if self.peek() == ",":
                self.take()
        self.take(")")
        return tuple(found)

    def selector(self, name: str) -> Node:
        matchers = []
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                label, op, (kind, text) = self.take()[1], self.take()[1], self.take()
                if kind != "text" or op not in ("=", "!=", "=~", "!~"):
                    raise ValueError(f"{label}{op}{text} is no matcher")
                matchers.append((label, op, text[1:-1]))
                if self.peek() == ",":
                    self.take()
            self.take("}")
        if self.tokens and self.tokens[0][0] == "range":
            self.take()
        return Node("selector", name, matchers=tuple(matchers))


def parse(text: str) -> Node:
    """Return an expression as a tree; raises ValueError for what is not understood to its end."""
    reader = _Reader(text)
    node = reader.binary()
    if reader.tokens:
        raise ValueError(f"{reader.peek()!r} is too much in {text!r}")
    return node


def evaluate(node: Node, samples: Iterable[Sample], now: float, earlier: Iterable[Sample] = ()) -> float | Vector:
    """
    Return what an expression gives at a moment: a number, or a value for each set of labels (empty: no alert).

    `earlier`: the scrape of a minute before, for `rate` and `increase`.
    """
    return _Evaluation(list(samples), now, list(earlier)).of(node)


@dataclass
class _Evaluation:
    samples: list[Sample]
    now: float
    earlier: list[Sample]

    def of(self, node: Node) -> float | Vector:
        match node.kind:
            case "number":
                return float(node.value)
            case "selector":
                return self.select(node)
            case "aggregate":
                return self.aggregate(node)
            case "call":
                return self.call(node)
        left, right = (self.of(part) for part in node.parts)
        return _binary(node.value, left, right)

    def select(self, node: Node, samples: Iterable[Sample] | None = None) -> Vector:
        found: Vector = {}
        for sample in self.samples if samples is None else samples:
            if sample.name == node.value and all(_matches(sample.labels.get(m[0], ""), *m[1:]) for m in node.matchers):
                found[frozenset(sample.labels.items())] = sample.value
        return found

    def aggregate(self, node: Node) -> Vector:
        groups: dict[Labels, list[float]] = {}
        inner = self.of(node.parts[0])
        assert isinstance(inner, dict), "a number cannot be aggregated"
        for labels, value in inner.items():
            groups.setdefault(frozenset(pair for pair in labels if pair[0] in node.by), []).append(value)
        return {labels: _AGGREGATES[node.value](values) for labels, values in groups.items()}

    def call(self, node: Node) -> float | Vector:
        if node.value == "time":
            return self.now
        if node.value in _RANGES and self.earlier:
            (counter,) = node.parts
            before = self.select(counter, self.earlier)
            seconds = 1.0 if node.value == "increase" else _SCRAPE_SECONDS
            return {labels: (v - before.get(labels, 0.0)) / seconds for labels, v in self.select(counter).items()}
        if node.value != "absent":
            raise ValueError(f"{node.value} needs more than one scrape")
        (inner,) = node.parts
        return {} if self.of(inner) else {frozenset((m[0], m[2]) for m in inner.matchers if m[1] == "="): 1.0}


def _matches(value: str, op: str, wanted: str) -> bool:
    is_match = value == wanted if op in ("=", "!=") else re.fullmatch(wanted, value) is not None
    return is_match is not op.startswith("!")


def _binary(op: str, left: float | Vector, right: float | Vector) -> float | Vector:
    if op in ("and", "or", "unless"):
        assert isinstance(left, dict), f"{op} is for vectors"
        assert isinstance(right, dict), f"{op} is for vectors"
        if op == "or":
            return {**right, **left}
        return {labels: value for labels, value in left.items() if (labels in right) is (op == "and")}
    if not isinstance(left, dict) and not isinstance(right, dict):
        return _ARITHMETIC[op](left, right)
    pairs = _paired(left, right)
    if op in _ARITHMETIC:
        return {labels: _ARITHMETIC[op](one, other) for labels, (one, other) in pairs.items()}
    keeps_right = not isinstance(left, dict)  # of a number and a vector, the vector's value stays
    return {labels: other if keeps_right else one for labels, (one, other) in pairs.items() if _COMPARE[op](one, other)}


def _paired(left: float | Vector, right: float | Vector) -> dict[Labels, tuple[float, float]]:
    if not isinstance(left, dict):
        assert isinstance(right, dict)
        return {labels: (left, value) for labels, value in right.items()}
    if not isinstance(right, dict):
        return {labels: (value, right) for labels, value in left.items()}
    return {labels: (value, right[labels]) for labels, value in left.items() if labels in right}
