"""What a PromQL query asks for: every metric with the labels it is used by."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, MatrixSelector, VectorSelector

Asked = dict[str, set[str]]
"""name of a sample -> labels"""

OF_A_SCRAPE = {"job", "instance"}
"""Labels that Prometheus itself adds."""


def asked_of(query: str) -> Asked:
    """Labels in matchers, `by`, `on` and their kin, counted to each metric they are about."""
    asked: Asked = {}
    for name, labels in _of(promql_parser.parse(query)):
        asked.setdefault(name, set()).update(labels)
    return asked


def _of(node: Expr) -> Iterator[tuple[str, set[str]]]:
    if isinstance(node, VectorSelector):
        yield node.name, {matcher.name for matcher in node.matchers.matchers}
    elif isinstance(node, MatrixSelector):
        yield from _of(node.vector_selector)
    elif isinstance(node, AggregateExpr):
        grouped = set(node.modifier.labels) if node.modifier is not None else set()
        for name, labels in _of(node.expr):
            yield name, labels | grouped
    elif isinstance(node, BinaryExpr):
        matching = node.modifier.matching if node.modifier is not None else None
        matched = set(matching.labels) if matching is not None else set()
        for side in (node.lhs, node.rhs):
            for name, labels in _of(side):
                yield name, labels | matched
    elif isinstance(node, Call):
        for argument in node.args:
            yield from _of(argument)
    elif isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr):
        yield from _of(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), node
