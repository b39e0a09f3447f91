"""Files are written atomically, and a path that cannot be written is refused before the work."""

import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from weir.errors import ConfigError
from weir.files import check_place, is_private, make_folder, written_whole


def test_the_file_is_written_when_the_block_ends_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_block_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_halfway() -> None:
        with written_whole(path) as draft:
            draft.write_text("ne")
            raise RuntimeError("half of it")

    with pytest.raises(RuntimeError, match="half"):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for write in (lambda draft: draft.write_bytes(bytes(1000)), lambda draft: np.zeros(1000).tofile(draft)):
            with (
                pytest.raises(ConfigError, match=r"a\.npy: cannot be written: (?!None)."),
                written_whole(path) as draft,
            ):
                write(draft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder"),
        ("/", "is a folder"),
        ("missing/a.txt", "no folder"),
        ("/dev/null", "not a regular file"),
        ("a" * 250, "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for attempt in (check_place, lambda path: written_whole(path).__enter__()):
        with pytest.raises(ConfigError, match=message) as refused:
            attempt(Path(name))
        assert refused.value.message.startswith(str(Path(name)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_created_and_stays_empty(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["taken", "taken/a", "/proc", "/proc/a"])
def test_a_folder_that_cannot_be_written_in_is_refused_by_name(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(ConfigError, match=f"^{name}: cannot write in this folder"):
        make_folder(Path(name))


def test_a_private_folder_is_closed_to_other_users_also_if_it_was_there_before(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    for it in (folder, tmp_path / "new"):
        make_folder(it, private=True)
        assert it.stat().st_mode & 0o777 == 0o700


def test_a_file_is_private_by_its_own_rights_or_by_those_of_a_folder_above() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder, file = Path(name) / "a", Path(name) / "a" / "secret"
        folder.mkdir()
        file.touch()
        rights = [(0o755, 0o755, 0o644), (0o755, 0o755, 0o640), (0o755, 0o755, 0o600), (0o700, 0o777, 0o666)]
        found = []
        for above, own, of_file in rights:
            for path, mode in ((Path(name), above), (folder, own), (file, of_file)):
                path.chmod(mode)
            found.append(is_private(file))
        assert found == [False, False, True, True]
