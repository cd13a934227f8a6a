"""File systems that cannot flush or lock, are full or fail: right, or an error with the place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from namedmask.cli.guard import explain
from namedmask.errors import InputError
from namedmask.run.ledger import open_run
from namedmask.storage import place as storage
from namedmask.storage.files import write_file, write_json
from namedmask.storage.locks import locked
from namedmask.storage.place import ensure_writable, named, replaced

UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)

SHARE = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
static int failing(const char *name, int fd, int folder) {
    struct stat found;
    const char *answer = getenv(name);
    if (!answer || fstat(fd, &found) || S_ISDIR(found.st_mode) != folder) return 0;
    errno = atoi(answer);
    return -1;
}
int fsync(int fd) {
    return failing("FSYNC_FOLDER", fd, 1) || failing("FSYNC_FILE", fd, 0) ? -1 : 0;
}
int flock(int fd, int how) { return failing("FLOCK", fd, 0); }
"""
"""A library whose calls answer as a share does."""


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    (folder / "share.c").write_text(SHARE)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "share.so"), str(folder / "share.c")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    return folder / "share.so"


def on_share(
    share: Path, code: str, folder: Path, **answers: int
) -> subprocess.CompletedProcess[str]:
    environment = {name: str(number) for name, number in answers.items()}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"LD_PRELOAD": str(share)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


COMMIT = """
import sys
from pathlib import Path
from namedmask.cli.guard import explain
from namedmask.errors import NamedMaskError
from namedmask.run.ledger import open_run
from namedmask.storage.files import write_json
folder = Path(sys.argv[1])
try:
    with open_run(folder) as ledger:
        write_json(folder / "some" / "file.json", {"a": 1})
except (NamedMaskError, OSError) as error:
    sys.exit(explain(error))
"""


@pytest.mark.parametrize("answer", UNABLE, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["FSYNC_FOLDER", "FSYNC_FILE"])
def test_share_without_flushes_is_written(
    share: Path, tmp_path: Path, call: str, answer: int
) -> None:
    done = on_share(share, COMMIT, tmp_path, **{call: answer})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "some" / "file.json").is_file()


@pytest.mark.parametrize("call", ["FSYNC_FOLDER", "FSYNC_FILE"])
@pytest.mark.parametrize("answer", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_flush_that_fails_names_the_file(
    share: Path, tmp_path: Path, call: str, answer: int
) -> None:
    done = on_share(share, COMMIT, tmp_path, **{call: answer})
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
    assert f"{tmp_path}/" in done.stderr and os.strerror(answer) in done.stderr


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_share_without_locks_is_refused_with_the_way_out(
    share: Path, tmp_path: Path, answer: int
) -> None:
    done = on_share(share, COMMIT, tmp_path, FLOCK=answer)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "cannot be locked" in done.stderr and "Set run.out" in done.stderr
    assert str(tmp_path) in done.stderr


def test_folder_of_the_system_that_cannot_be_flushed_is_no_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(os.open("/proc", os.O_RDONLY))
    storage._flush_folder(Path("/proc"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_names_the_file_and_leaves_no_part(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_file(small_disk / "big.bin", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "big.bin")
    assert list(small_disk.iterdir()) == []
    assert explain(caught.value) == 2
    assert f"{small_disk}/big.bin: No space left on device. Free some" in capsys.readouterr().err


def test_read_only_disk_is_refused_with_the_way_out(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"disk/run cannot be written: Read-only.*run\.out"):
        ensure_writable(small_disk / "run", "run.out")
    with pytest.raises(OSError, match="Read-only") as caught, locked(small_disk / "lock"):
        pass
    assert caught.value.filename


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_run_folder_that_is_a_file_is_refused_with_the_way_out(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file.* cannot be written: .*run\.out"):
        ensure_writable(tmp_path / "file" / inside, "run.out")
    assert (tmp_path / "file").read_text() == "mine"


def test_run_folder_behind_broken_or_circling_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("broken", "circle"):
        with pytest.raises(InputError, match=f"{name} cannot be written"):
            ensure_writable(tmp_path / name, "run.out")


def test_run_folder_given_with_dots_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "a/../b", "./c"):
        with open_run(Path(name)):
            write_json(Path(name) / "file.json", {})
    assert (tmp_path / "file.json").is_file() and (tmp_path / "c" / "file.json").is_file()


def test_named_adds_a_place_where_there_is_none(tmp_path: Path) -> None:
    for number in (errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EACCES):
        with pytest.raises(OSError, match=os.strerror(number)) as caught, named(tmp_path):
            raise OSError(number, os.strerror(number))
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path))
    with pytest.raises(FileNotFoundError) as missing, named(tmp_path):
        (tmp_path / "nothing").read_bytes()
    assert str(missing.value.filename) == str(tmp_path / "nothing")
    with pytest.raises(ConnectionResetError) as network, named(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert network.value.filename is None


def test_error_that_names_no_file_names_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="Bad file") as caught:
        storage._flush_folder(Path("/proc")) or os.read(10**6, 1)
    assert explain(caught.value) == 1
    assert capsys.readouterr().err.startswith("error: the command: Bad file descriptor")


def test_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full") as caught, replaced(path) as part:
        part.write_text("new")
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
