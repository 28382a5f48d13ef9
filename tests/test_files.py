"""Single files from a backup: where they are put, and where not."""

from pathlib import Path

import pytest

import bootenv.run
from bootenv import files, media
from bootenv.backup import INDEX, Source, write_backup
from bootenv.errors import DestinationRefused
from tests.test_sif import SET


@pytest.fixture
def backup(tmp_path) -> str:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/letter").write_text("Dear Ann")
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(tmp_path / "tree")]):
        pass
    return str(tmp_path / "b.tar.zst")


@pytest.fixture
def volume(monkeypatch) -> dict[str, str]:
    """What every folder lies on."""
    volume = {"target": "/", "fstype": "ext4", "source": "/dev/vda1"}
    monkeypatch.setattr(files, "volume_of", lambda folder: volume)
    return volume


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, ...]]:
    ran = []
    for module in (files, bootenv.run):
        monkeypatch.setattr(module, "run", lambda argv, **_: ran.append(argv) or "")
    return ran


def extracted(backup, folder) -> None:
    for _ in files.extract(backup, [b"letter"], str(folder)):
        pass


def test_from_the_medium_files_go_to_the_computer_and_not_to_the_mediums_memory(backup, volume, monkeypatch, tmp_path):
    monkeypatch.setattr(bootenv.run, "ROOT", tmp_path / "host")
    monkeypatch.setenv("ASR_CWD", "/home/ann")
    extracted(backup, "/srv/put/here")
    extracted(backup, "below")
    assert (tmp_path / "host/srv/put/here/letter").read_text() == "Dear Ann"
    assert (tmp_path / "host/home/ann/below/letter").is_file()


@pytest.mark.parametrize("named", ["sdb1/My Passport", "sdb1/../sdb1/My Passport"])
def test_a_volume_is_written_where_this_process_has_mounted_it_and_read_only_after(
        named, backup, volume, ran, monkeypatch, tmp_path):
    monkeypatch.setattr(bootenv.run, "ROOT", tmp_path / "host")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    volume |= {"target": str(tmp_path / "sdb1"), "source": "/dev/sdb1"}
    extracted(backup, f"{tmp_path}/{named}")
    assert (tmp_path / "sdb1/My Passport/letter").is_file()
    assert ran == [("umount", volume["target"]), ("mount", "/dev/sdb1", volume["target"]),
                   ("sync", "--file-system", volume["target"]), ("mount", "-o", "remount,bind,ro", volume["target"])]


def test_a_mount_point_may_have_a_blank(backup, monkeypatch, tmp_path):
    def findmnt(argv, **_):
        assert argv[:3] == ("findmnt", "--json", "--target")
        return ('{"filesystems": [{"target": "/media/ann/My Passport", "source": "/dev/sdb1", "fstype": "ext4", '
                '"uuid": "u", "label": "My Passport", "options": "rw"}]}')

    monkeypatch.setattr("bootenv.destinations.run", findmnt)
    extracted(backup, tmp_path / "My Passport")
    assert (tmp_path / "My Passport/letter").is_file()


@pytest.mark.parametrize(("place", "why"), [
    ("tree/letter", "tree/letter is not a folder"), ("tree/letter/x/y", "letter, above .*/x/y, is not a folder"),
    ("n" * 300, "File name too long"),
])
def test_a_folder_that_cannot_be_one_is_refused(place, why, backup, volume, ran, tmp_path):
    with pytest.raises(DestinationRefused, match=why):
        extracted(backup, tmp_path / place)
    assert not ran


def test_a_volume_that_cannot_be_written_says_so(backup, volume, monkeypatch, tmp_path):
    def refuse(self, **_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DestinationRefused, match="cannot be made: Read-only file system"):
        extracted(backup, tmp_path / "x")


@pytest.mark.parametrize(("kind", "why"), [("tmpfs", "in this computer's memory"), ("nfs4", "on the network")])
def test_what_lies_in_memory_or_on_a_server_looked_into_is_refused(kind, why, backup, volume, ran, tmp_path):
    volume |= {"target": str(files.FOLDER / "x"), "fstype": kind}
    with pytest.raises(DestinationRefused, match=why):
        extracted(backup, tmp_path / "x")
    assert not ran


def test_a_lost_index_is_damage_but_no_file(backup, monkeypatch, tmp_path):
    monkeypatch.setattr(media, "ROOT", tmp_path)
    whole = Path(backup).read_bytes()
    Path(backup).write_bytes(whole[:whole.index(b"ASRINDEX") - 8])         # the first of two
    medium = media.Medium(media.FoundBackup(backup, backup, SET), len(whole))
    verifying = media.verify(medium)
    while True:
        try:
            next(verifying)
        except StopIteration as end:
            damaged = end.value
            break
    assert [difference.what for difference in damaged] == [INDEX]
    assert files.damaged_files(damaged) == 0
    assert media._last_verified(SET.id)[1] == -1
