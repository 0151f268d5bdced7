"""Files that are whole or absent, remembered by what they are, and settings that are read as they are written."""

import json
import os

import pytest
import torch

from dp2osr import files
from dp2osr.digests import Memory
from dp2osr.errors import UserError, run
from dp2osr.files import keep_settings, read_json, read_yaml, replace_folder, save_tensors, whole
from dp2osr.outputs import check_output


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / ("n" * 250)
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]
    with whole(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_weights_have_the_permissions_of_the_users_other_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_tensors({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


def test_a_folder_is_replaced_whole_and_a_stop_between_the_renames_loses_nothing(tmp_path):
    folder = tmp_path / "group"
    replace_folder(folder, lambda part: (part / "a").write_text("1"))

    def fails(part):
        (part / "a").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, fails)
    assert (folder / "a").read_text() == "1" and os.listdir(tmp_path) == ["group"]
    folder.rename(files._aside(folder))  # as after a kill between the two renames
    files.put_back(folder)
    assert (folder / "a").read_text() == "1"


def test_what_was_learnt_of_a_file_is_remembered_until_it_changes(tmp_path):
    path, seen = tmp_path / "x", []
    path.write_text("one")
    os.utime(path, (1, 1))
    memory = Memory(tmp_path / "cache/files.sqlite")
    memory.SETTLED_AFTER = -1  # as if the file were old

    def learn(path):
        seen.append(path)
        return open(path).read()

    assert [memory.recall(path, "text", learn) for _ in range(2)] == ["one", "one"] and len(seen) == 1
    memory.flush()
    assert Memory(memory.file).recall(path, "text", learn) == "one" and len(seen) == 1  # another process
    path.write_text("two")  # as long, and with the time of before
    os.utime(path, (1, 1))
    assert Memory(memory.file).recall(path, "text", learn) == "two"
    assert memory.recall(path, "text", learn) == "two"


def test_a_file_that_was_just_written_is_not_remembered_for_others(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    memory = Memory(tmp_path / "files.sqlite")
    memory.recall(path, "text", lambda path: "one")
    memory.flush()
    assert Memory(memory.file).recall(path, "text", lambda path: "learnt anew") == "learnt anew"


@pytest.mark.parametrize("file", ["/proc/none/files.sqlite", None])
def test_a_cache_that_cannot_be_written_or_is_broken_is_done_without(tmp_path, file):
    broken = tmp_path / "files.sqlite"
    broken.write_bytes(b"not a database" * 100)
    memory = Memory(file or broken)
    memory.SETTLED_AFTER = -1
    (tmp_path / "x").write_text("one")
    assert memory.recall(tmp_path / "x", "text", lambda path: 1) == memory.recall(tmp_path / "x", "text", lambda path: 2) == 1
    memory.flush()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_of_editors_are_understood(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"ä": "Katze"}', encoding=encoding)
    (tmp_path / "a.yaml").write_text("ä: no\n", encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"ä": "Katze"} and read_yaml(tmp_path / "a.yaml") == {"ä": "no"}


def test_scalars_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: no\nb: 001\nc:\nd: ~\ne: ''\nf: [1e-4, off]\ng: 'null'\n")
    assert read_yaml(path, as_text=True) == {"a": "no", "b": "001", "c": None, "d": None, "e": "", "f": ["1e-4", "off"], "g": "null"}


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(("content", "words"), [("a: 1\nb: 2\na: 3\n", "line 3"), ("a: [1\n", "line"), ("a: 1\n b: 2\n", "line 2")])
def test_broken_yaml_and_keys_given_twice_name_the_line(tmp_path, content, words, as_text):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=f"a.yaml.*{words}"):
        read_yaml(tmp_path / "a.yaml", as_text=as_text)


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/below", "/proc/none/x", tmp_path / ("n" * 256)):
        with pytest.raises(UserError, match="give (another|a shorter)"):
            check_output(path)
    check_output(tmp_path / "new/folder")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path, "--output", is_file=True)


def test_settings_of_another_program_are_never_replaced(tmp_path):
    path = tmp_path / "settings.json"
    keep_settings(path, {"steps": 1, "seed": 0})
    with pytest.raises(UserError, match="steps is 1 there and 2 here.*--force"):
        keep_settings(path, {"steps": 2, "seed": 0}, way="--force goes on with these")
    with pytest.raises(UserError, match="not of this program"):
        keep_settings(path, {"rate": 1, "beta": 2, "batch": 3}, force=True)
    assert json.loads(path.read_text()) == {"steps": 1, "seed": 0}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), PermissionError(13, "Permission denied", "/x/y"), NotADirectoryError(20, "Not a directory", "/x"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        OSError(36, "File name too long", "n"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OSError(28, "No space left on device"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line_in_every_program(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    with pytest.raises(ZeroDivisionError):  # a fault of this code is shown whole
        run(lambda: 1 / 0)
