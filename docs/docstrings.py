"""Turns the reStructuredText in the package's docstrings into what the site's Markdown shows.

An extension of Griffe, which reads the docstrings for mkdocstrings (``mkdocs.yml``). Roles become
links where the site documents what they name, ``.. math::`` becomes MathML, which a browser draws
without a script.
"""

from __future__ import annotations

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert as mathml

_MATH = re.compile(r"^\.\. math::\n((?:[ \t]+\S.*\n?|\n)+)", re.MULTILINE)
_CODE_OR_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`|(`+[^`]*`+)|<")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _add_constructors(pkg)
        _rewrite(pkg)


def _add_constructors(scope: griffe.Object) -> None:
    """Give layers the arguments of their cells, which Python finds out when it runs."""
    for member in list(scope.members.values()):
        if member.is_alias:
            continue
        if member.is_class and (cell := member.members.get("cell_type")) and cell.value:
            arguments = scope[str(cell.value)]["__init__"].parameters
            member.set_member("__init__", griffe.Function("__init__", parameters=arguments))
        _add_constructors(member)


def _rewrite(scope: griffe.Object) -> None:
    if scope.docstring is not None:
        scope.docstring.value = to_markdown(scope.docstring.value, scope)
    for member in scope.members.values():
        if not member.is_alias:
            _rewrite(member)


def to_markdown(text: str, scope: griffe.Object) -> str:
    """A docstring of ``scope`` as Markdown."""

    def inline(match: re.Match[str]) -> str:
        name, code = match.groups()
        if name is not None:
            return _link(name, scope)
        return code or "&lt;"

    # Every second part is mathematics.
    parts = _MATH.split(text)
    for index, part in enumerate(parts):
        parts[index] = _equations(part) if index % 2 else _CODE_OR_ROLE.sub(inline, part)
    return "".join(parts)


def _equations(latex: str) -> str:
    # The empty group keeps a bracket in front from being read as align's own option.
    block = mathml(rf"\begin{{align*}}{{}}{latex}\end{{align*}}", display="block")
    return f"<div>{block}</div>\n\n"


def _link(name: str, scope: griffe.Object) -> str:
    # Markdown would read the underscores of __call__ as strong.
    code = f"<code>{html.escape(name).replace('_', '&#95;')}</code>"
    path = _path(name, scope)
    # Optional: what the site does not document stays code.
    return code if path is None else f'<autoref optional identifier="{path}">{code}</autoref>'


def _path(name: str, scope: griffe.Object | None) -> str | None:
    """Where what ``name`` means inside ``scope`` is defined."""
    package = scope.package
    name = name.removeprefix(f"{package.path}.")
    while scope is not None:
        try:
            return scope[name].canonical_path
        except KeyError:
            scope = scope.parent
    return None
