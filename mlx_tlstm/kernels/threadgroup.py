"""Rewrites the definitions of threadgroup variables, which other compilers spell differently.

``threadgroup T tile[N], flag;`` in a kernel body defines variables in threadgroup memory; clang
has no such storage, and CUDA writes ``__shared__``. Any other use of the word qualifies a pointer
or a reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: Comments, lines that name a file, string literals, attributes' brackets, identifiers, white
#: space, any other character.
TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|#line[^\n]*|"(?:\\.|[^"\\])*"|\[\[|\]\]|::|[A-Za-z_]\w*|\s+|.', re.DOTALL
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ASSIGNMENT = re.compile(r"(?<![=!<>])=(?!=)")
_DECLARATOR = re.compile(r"\s*([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*", re.DOTALL)
_FIRST_DECLARATOR = re.compile(r"(.*?[\w>])\s*([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*", re.DOTALL)

#: Spells the definition of one variable: (element type, name, dimensions as "[2][3]", number).
Spelling = Callable[[str, str, str, int], str]


def rewrite_definitions(body: str, spelling: Spelling) -> str:
    """The kernel body with each threadgroup variable defined as ``spelling`` says.

    Line numbers stay as they are.

    Raises:
        ValueError: for a definition with an initialiser, which Metal does not allow, or one that
            is not understood.
    """
    tokens = [match.group() for match in TOKEN.finditer(body)]
    output: list[str] = []
    count = 0
    position = 0
    at_statement_start = True
    while position < len(tokens):
        token = tokens[position]
        if token == "threadgroup" and at_statement_start:
            try:
                end = tokens.index(";", position)
            except ValueError:
                raise ValueError("a declaration with threadgroup is never ended by ';'") from None
            text = "".join(tokens[position + 1 : end])
            definitions = _parse_definitions(text)
            if definitions is not None:
                for element_type, name, dimensions in definitions:
                    output.append(spelling(element_type, name, dimensions, count))
                    count += 1
                output.append("\n" * text.count("\n"))
                position = end + 1
                continue
        output.append(token)
        if not token.isspace() and not token.startswith(("//", "/*", "#line")):
            at_statement_start = token in ("{", "}", ";")
        position += 1
    return "".join(output)


def _parse_definitions(text: str) -> list[tuple[str, str, str]] | None:
    """``vec<T, 4> a[8][2], b`` to [(vec<T, 4>, a, [8][2]), (vec<T, 4>, b, "")].

    None for the declaration of a pointer or reference into threadgroup memory.
    """
    text = _COMMENT.sub(" ", text).strip()
    declared, *initialiser = _ASSIGNMENT.split(text, maxsplit=1)
    if initialiser:
        if "*" in declared or "&" in declared:
            return None
        raise ValueError(f"threadgroup variable with an initialiser: {text}")
    first, *others = _split_at_commas(text)
    match = _FIRST_DECLARATOR.fullmatch(first.strip())
    if match is None or "*" in match.group(1).split("<")[0] or "&" in first:
        return None
    element_type = match.group(1)
    definitions = [(element_type, match.group(2), match.group(3).strip())]
    for declarator in others:
        match = _DECLARATOR.fullmatch(declarator)
        if match is None:
            raise ValueError(f"threadgroup declaration not understood: {text}")
        definitions.append((element_type, match.group(1), match.group(2).strip()))
    return definitions


def _split_at_commas(text: str) -> list[str]:
    """Splits at the commas that no bracket of any kind encloses."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "<([{") - (character in ">)]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
