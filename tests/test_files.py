"""Paths, and JSON files that are torn or damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from disk_order import DiskOrder

from mlx_tlstm.files import (
    absence,
    cache_folder,
    naming,
    read_json,
    read_json_lines,
    replace_file,
    replace_text,
    to_path,
    without_home,
)

DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"", []),
        (b'{"a": 1}\n', [{"a": 1}]),
        (b'{"a": 1}', [{"a": 1}]),
        (b'{"a": 1}\n{"b": 2', [{"a": 1}]),
        (b'{"a": 1}\n{', [{"a": 1}]),
        (b'{"a": 1}\n{"b": "\xc3', [{"a": 1}]),
        (b'{"a": 1}\n\0\0\0', [{"a": 1}]),
        (b'{"a": "\\u2028\xe2\x80\xa8"}\n', [{"a": "\u2028\u2028"}]),
    ],
)
def test_a_last_line_that_breaks_off_is_left_out(tmp_path, content, records):
    (tmp_path / "log").write_bytes(content)
    assert read_json_lines(tmp_path / "log", "test") == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"b": 2\n{"a": 3}\n', r"log, line 2' must hold JSON but Expecting ',' delim"),
        (b'{"a": 1}\n{"b": 2\n', "log, line 2' must hold JSON but"),
        (b'{"a": 1}\n\n{"b": 2}', "log, line 2' must hold JSON but Expecting value"),
        (b"\0\0\n", "log, line 1' must hold JSON but"),
        (b"text", "log, line 1' must hold JSON but"),
        (b'{"a": 1}\n[1]\n', r"log, line 2' must be a JSON object but got \[1\]"),
        (b'{"a": 1}\n3', "log, line 2' must be a JSON object but got 3"),
        (DEEP + b"\n", "log, line 1' must hold JSON but maximum recursion"),
        (b'{"\xff": 1}\n', "log, line 1' must hold JSON but"),
    ],
)
def test_damage_elsewhere_names_the_line(tmp_path, content, message):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ValueError, match=rf"\[test\] '.*{message}"):
        read_json_lines(tmp_path / "log", "test")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", DEEP, b"1" * 5000])
def test_damaged_json(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"\[test\] '.*file' must hold JSON but"):
        read_json(tmp_path / "file", "test")


class TestToPath:
    def test_home(self, home):
        assert to_path("x", "y", "~") == to_path("x", "y", Path("~")) == home
        assert to_path("x", "y", "~/a b") == home / "a b"
        assert to_path("x", "y", "a/~/b") == Path("a/~/b")
        assert to_path("x", "y", "a~") == Path("a~")

    @pytest.mark.parametrize("text", ["./~", "./~/x", "./~nobody", ".//~x"])
    def test_a_folder_here_that_is_named_so(self, text, home):
        path = to_path("x", "y", text)
        assert path == Path.cwd() / text
        assert to_path("x", "y", path) == path

    @pytest.mark.parametrize("value", ["", None, 3, b"bytes", "a\0b", ["a"]])
    def test_no_path(self, value):
        with pytest.raises(ValueError, match=r"^\[x\] 'y' must be a path but got"):
            to_path("x", "y", value)

    @pytest.mark.parametrize(
        ("home", "text", "expected"),
        [
            ("/Users/ann", "no /Users/ann/a/mlx.metallib", "no ~/a/mlx.metallib"),
            ("/Users/ann/", "'/Users/ann'; /Users/ann.", "'~'; ~."),
            ("/Users/ann", "/Users/anna/a, /a", "/Users/anna/a, /a"),
            ("/Users/a+b (c)", "/Users/a+b (c)/d", "~/d"),
            ("/", "/a/b", "/a/b"),
            ("", "/a/b", "/a/b"),
        ],
    )
    def test_texts_without_it(self, monkeypatch, home, text, expected):
        monkeypatch.setenv("HOME", home)
        assert without_home(text) == expected

    def test_texts_with_the_folder_that_it_is_a_link_to(self, home, tmp_path, monkeypatch):
        (tmp_path / "link").symlink_to(home)
        monkeypatch.setenv("HOME", str(tmp_path / "link"))
        assert without_home(f"{home}/a {tmp_path}/link/b") == "~/a ~/b"

    def test_unknown_home(self, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        with pytest.raises(OSError, match="Not a directory"):
            (cache_folder() / "file").read_text()
        with pytest.raises(OSError, match="Not a directory"):
            cache_folder().mkdir(parents=True)
        with pytest.raises(ValueError, match="from a home folder that is known, or one that"):
            to_path("x", "y", "~nobody-of-this-name/x")


class TestAbsence:
    def test_near_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("runs/addition-2d", "runs/memory", "ran"):
            Path(name).mkdir(parents=True)
        Path("runs/adition-2d.txt").write_text("")
        assert absence(Path("runs/adition-2d")) == (
            "there is no folder 'runs/adition-2d' (did you mean 'runs/addition-2d'?)"
        )
        assert absence(Path("rums/memory")).endswith("(did you mean 'runs/memory'?)")
        assert absence(Path("run")).endswith("(did you mean 'runs' or 'ran'?)")
        assert absence(Path("/nowhere/at/all")) == "there is no folder '/nowhere/at/all'"
        assert absence(Path("runs/xyz")) == "there is no folder 'runs/xyz'"
        assert absence(Path("runs/adition-2d.txt/x")).startswith("there is no folder")

    def test_unreadable(self, tmp_path, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        assert absence(tmp_path / "x") == f"there is no folder {str(tmp_path / 'x')!r}"


class TestReplace:
    def test_a_pipe_stays_one(self, tmp_path):
        """So does any device, as /dev/null, which root could replace."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # a writer waits for no other
        try:
            for path in (pipe, Path(f"/dev/fd/{reader}")):
                replace_text(path, "text")
                assert os.read(reader, 100) == b"text"
        finally:
            os.close(reader)
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert list(tmp_path.iterdir()) == [pipe]

    def test_a_folder_stays_one(self, tmp_path):
        with pytest.raises(IsADirectoryError):
            replace_text(tmp_path, "text")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("present", [True, False])
    def test_a_link_stays_one(self, present, tmp_path):
        target, link, endings = tmp_path / "elsewhere" / "target", tmp_path / "link.png", []
        target.parent.mkdir()
        if present:
            target.write_text("old")
        link.symlink_to("elsewhere/target")
        replace_text(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        replace_file(link, lambda path: (endings.append(path.suffix), path.write_text("newer")))
        assert endings == [".png"]
        assert target.read_text() == "newer"
        assert len(list(tmp_path.rglob("*"))) == 3

    def test_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="Not a directory") as error:
            replace_text(tmp_path / "file" / "x.json", "")
        assert error.value.filename == str(tmp_path / "file" / "x.json")

    def test_two_names_in_an_error(self, tmp_path):
        """As where a link or copy to a temporary file fails."""
        for names in ((tmp_path / "a", tmp_path / ".writing-1" / "a"), (tmp_path / "a", None)):
            full = OSError(28, "No space left on device", str(names[0]), None, names[1])
            with pytest.raises(OSError, match="No space") as error, naming(tmp_path / "b"):
                raise full
            assert error.value.filename == str(tmp_path / ("b" if names[1] else "a"))
            assert error.value.filename2 is None

    def test_a_link_to_itself(self, tmp_path):
        link = tmp_path / "link"
        link.symlink_to("link")
        replace_text(link, "new")
        assert link.read_text() == "new"

    def test_content_is_synced_before_the_name_and_the_name_then(self, tmp_path, monkeypatch):
        order = DiskOrder(monkeypatch)
        replace_text(tmp_path / "file", "text")
        assert order.of(tmp_path) == ["sync file", "rename file", "sync ."]
