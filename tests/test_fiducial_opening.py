"""What stands in the place of a file: it is told at once what it is, and nothing is written through a link."""

import os

import pytest
from odd_files import KINDS, make_sparse, no_waiting, put

from fiducial import (
    NotAFile,
    file_sha256,
    no_file,
    open_new,
    open_regular,
    open_to_write,
    read_bytes,
    read_text,
    require_file,
    require_place,
)


@pytest.fixture(autouse=True)
def _guard():
    with no_waiting():
        yield


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_neither_read_nor_waited_for(kind, by_link, tmp_path):
    put(kind, path := tmp_path / "there")
    if by_link:
        (path := tmp_path / "link").symlink_to("there")
    for read in (open_regular, read_bytes, read_text, file_sha256, require_file):
        with pytest.raises(NotAFile, match=f"it is a {kind}, not a file") as told:
            read(path)
        assert told.value.filename == str(path)
    assert no_file(path) == f"it is a {kind}, not a file"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_written_to(kind, tmp_path):
    put(kind, path := tmp_path / "there")
    said = "link" if kind == "device" else kind
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
        with pytest.raises(NotAFile, match=f"it is a {said}, not a file"):
            open_to_write(path, flags)
    with pytest.raises(NotAFile, match=f"it is a {said}, not a file"):
        require_place(path)


def test_files_and_links_to_them_are_read(tmp_path):
    (path := tmp_path / "there").write_bytes("höchst\r\nlesbar".encode())
    (link := tmp_path / "link").symlink_to(path)
    for one in (path, link):
        assert read_bytes(one) == read_bytes(one, 15) == path.read_bytes()
        assert read_text(one) == path.read_text(encoding="utf-8")
        assert no_file(one) == ""
        require_file(one, 15)
        with open_regular(one) as file:
            assert file.name == str(one)
    with pytest.raises(UnicodeDecodeError):
        read_text(path, encoding="ascii")
    assert no_file(tmp_path / "absent") == "no such file"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


def test_a_file_that_is_larger_than_such_a_file_can_be_is_not_read(tmp_path):
    path = make_sparse(tmp_path / "sparse")
    for read in (read_bytes, read_text, open_regular, require_file):
        with pytest.raises(NotAFile, match=r"it has 1,099,511,627,776 bytes, more than the 1,000 that"):
            read(path, 1000)


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="only Linux has files that are longer than they say")
def test_a_file_that_says_less_than_it_has_is_read_no_further():
    with pytest.raises(NotAFile, match="more than the 3 that"):
        read_bytes("/proc/self/cmdline", 3)


def test_nothing_is_written_through_a_link(tmp_path):
    (victim := tmp_path / "victim").write_bytes(b"precious")
    for name, target in (("link", victim), ("dangling", tmp_path / "absent")):
        (link := tmp_path / name).symlink_to(target)
        for flags in (os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
            with pytest.raises(NotAFile, match="it is a link, not a file, and nothing is written through links"):
                open_to_write(link, flags)
        with pytest.raises(NotAFile, match="it is a link"):
            require_place(link)
        with open_new(link) as file:
            file.write(b"new")
        assert link.read_bytes() == b"new"
        assert not link.is_symlink()
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("kind", ["named pipe", "socket", "device", "file"])
def test_a_new_file_takes_the_place_of_what_was_there(kind, tmp_path):
    path = tmp_path / "there"
    path.write_bytes(b"longer than new") if kind == "file" else put(kind, path)
    with open_new(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_new_file_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="there"):
        open_new(tmp_path / "there")
    require_place(tmp_path / "absent")
    require_place(tmp_path / "absent" / "below")


def test_files_are_made_with_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        os.close(open_to_write(tmp_path / "a", os.O_WRONLY | os.O_CREAT))
        open_new(tmp_path / "b").close()
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]
