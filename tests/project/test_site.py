"""The documentation site: every page and public name is in it, and it builds without a warning."""

from __future__ import annotations

import html
import importlib
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from processes import ROOT

import mlx_tlstm
from mlx_tlstm import visualize

DOCS = ROOT / "docs"
#: Documented names, each with its page.
NAMES = {
    name: page.name
    for page in sorted(DOCS.glob("reference/*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}


def test_every_page_is_in_it():
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")
    )


def test_every_public_name_is_in_it():
    assert {f"mlx_tlstm.{name}" for name in mlx_tlstm.__all__} <= NAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name):
    parent, _, last = name.rpartition(".")
    assert hasattr(importlib.import_module(parent), last)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, of a copy: the build writes beside its sources."""
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("docs", "mlx_tlstm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = (Path(sysconfig.get_path("scripts")) / "zensical", "build", "--strict")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    # Griffe warns of arguments that a signature does not have, which fails no build.
    assert "griffe:" not in output, output
    return folder / "site"


def text(page: Path) -> str:
    """What a reader sees, code apart."""
    body = re.sub(r"(?s)<(script|style|pre|code)\b.*?</\1>", "", page.read_text())
    return html.unescape(re.sub(r"<[^>]+>", "", body))


def test_docstrings_are_rendered(site):
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    for page in pages:
        seen = text(page)
        assert not re.search(r":(class|func|meth|attr|data|mod):|\.\. math|``|\*\*", seen), page
        assert not re.search(r"<code>[^<]*<(strong|em)>", page.read_text()), page
        # Nothing from another machine: scripts, styles, fonts, pictures.
        assert not re.search(r"(?:src=|<link [^>]*href=)\"?(?:https?:)?//", page.read_text()), page
    layers = (site / "reference" / "layers" / "index.html").read_text()
    assert "<math" in layers
    assert re.search(r'<a class="autorefs[^>]* href="\S*#mlx_tlstm\.', layers)  # a role
    assert "&lt;K&gt;" in layers  # no tag
    for name in visualize.__all__:
        assert (
            f'id="mlx_tlstm.visualize.{name}"'
            in (site / "reference" / "visualize" / "index.html").read_text()
        )
