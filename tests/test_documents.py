"""Backups of some files, of a tree that stands for a computer."""

from pathlib import Path

import pytest

from bootenv import backup, destinations, documents, files
from bootenv.backup import Selection, list_backup, restore_backup
from bootenv.documents import back_up, destination, entries, everyones, mine, select
from bootenv.errors import DamagedBackup, DestinationRefused, NothingToBackUp
from bootenv.events import Difference, Progress


@pytest.fixture
def computer(tmp_path, monkeypatch) -> Path:
    for name in ("home/ann/letter", "home/ann/.cache/x", "home/bob/photo [1].jpg", "home/bob/other", "etc/hosts",
                 "root/notes"):
        path = tmp_path / "computer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr(documents, "ROOT", tmp_path / "computer")
    monkeypatch.setattr(destinations, "inside", lambda place: place)
    monkeypatch.setattr(documents, "volume_of", lambda folder: {"source": "/dev/vdb", "fstype": "ext4"}
                        if "to" in folder.parts else {"source": "/dev/vda", "fstype": "ext4"})
    (tmp_path / "to").mkdir()
    return tmp_path / "computer"


def outcome(events):
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def backed_up(tmp_path, *paths):
    path, _ = destination(str(tmp_path / "to"))
    selection = outcome(select(paths))
    assert outcome(back_up(paths, path, selection)) == ()
    for _ in restore_backup(path, tmp_path / "to", anywhere=True):
        pass
    found = {str(file.relative_to(tmp_path / "to")) for file in (tmp_path / "to").rglob("*") if file.is_file()}
    found.remove(path.name)
    assert selection.files == len(found)
    return found


def test_all_homes_are_backed_up_and_nothing_else(computer, tmp_path):
    assert everyones() == ("/home", "/root")
    assert backed_up(tmp_path, *everyones()) == {
        "home/ann/letter", "home/ann/.cache/x", "home/bob/photo [1].jpg", "home/bob/other", "root/notes"}


def test_single_files_and_names_that_look_like_patterns_are_taken_as_they_are(computer, tmp_path):
    assert backed_up(tmp_path, "/home/bob/photo [1].jpg", "/etc") == {"home/bob/photo [1].jpg", "etc/hosts"}


def test_my_home_is_that_of_whoever_called_sudo(computer, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "root")
    assert mine() == ("/root",)
    monkeypatch.setenv("SUDO_USER", "ann")                 # whom this system does not know
    (computer / "etc/passwd").write_text("ann:x:1000:1000::/home/ann:/bin/sh\n")
    assert mine() == ("/home/ann",)
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setenv("HOME", "/home/bob")
    assert mine() == ("/home/bob",)


def test_a_home_that_is_a_link_is_backed_up_where_it_is(computer, tmp_path, monkeypatch):
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    (computer / "srv").mkdir()
    (computer / "home").rename(computer / "srv/homes")
    (computer / "home").symlink_to("/srv/homes")           # of the computer's own root, wherever that is seen
    assert mine() == ("/srv/homes/ann",)
    assert everyones() == ("/root", "/srv/homes")
    assert backed_up(tmp_path, *mine()) == {"srv/homes/ann/letter", "srv/homes/ann/.cache/x"}


def test_a_path_below_a_link_is_backed_up_where_it_is(computer, tmp_path):
    (computer / "srv").symlink_to("home")
    assert backed_up(tmp_path, "/srv/ann/letter") == {"home/ann/letter"}


def test_a_home_elsewhere_with_a_link_in_home_is_one_of_everyones(computer):
    (computer / "data").mkdir()
    (computer / "home/bob").rename(computer / "data/bob")
    (computer / "home/bob").symlink_to("../data/bob")
    (computer / "home/all").symlink_to("/")
    (computer / "etc/passwd").write_text("ann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\n"
                                         "odd:x:1002:1002::/home/all:/bin/sh\nroot:x:0:0::/root:/bin/sh\n")
    assert everyones() == ("/data/bob", "/home", "/root")


@pytest.mark.parametrize("home", ["/nonexistent", "/", "/home/circle"])
def test_without_a_home_there_is_nothing_that_could_look_like_a_backup_of_it(home, computer, monkeypatch):
    (computer / "home/circle").symlink_to("circle")
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.raises(NothingToBackUp, match=f"Your home folder {home} is not there"):
        mine()


def test_a_path_that_is_not_there_any_more_is_no_complete_backup(computer, tmp_path):
    with pytest.raises(NothingToBackUp, match="/home/eve is not there"):
        outcome(select(("/home/eve",)))
    with pytest.raises(NothingToBackUp):
        outcome(back_up(("/home/ann", "/home/eve"), tmp_path / "to/x.tar.zst", Selection(1, 1)))
    assert list((tmp_path / "to").iterdir()) == []


def test_what_is_mounted_beside_the_chosen_paths_is_no_difference(computer, tmp_path, monkeypatch):
    for name in ("run/asr", "home/ann/usb"):
        (computer / name).mkdir(parents=True)
    monkeypatch.setattr(backup, "mounts", lambda: iter(
        (bytes(computer / name), "ext4", 0) for name in ("run/asr", "home/ann/usb")))
    unlike = outcome(back_up(("/home/ann",), tmp_path / "to/x.tar.zst", outcome(select(("/home/ann",)))))
    assert [difference.what for difference in unlike] == ["home/ann/usb"]


def test_a_directory_is_listed_with_its_directories_first(computer):
    (computer / "etc/link").symlink_to("hosts")
    (computer / "etc/ssh").mkdir()
    assert [(entry.name, entry.kind) for entry in entries(b"etc")] == [(b"ssh", "d"), (b"hosts", "f"), (b"link", "l")]
    assert entries(b"etc")[1].size == len("etc/hosts")
    assert {entry.name for entry in entries(b"")} == {b"home", b"etc", b"root"}


def test_what_the_kernel_shows_of_itself_is_no_file_of_the_computer(computer, monkeypatch):
    for name in ("proc", "mnt"):
        (computer / name).mkdir()
    monkeypatch.setattr(backup, "mounts", lambda: iter((
        (bytes(computer / "proc"), "proc", 0), (bytes(computer / "mnt"), "ext4", 0),
        (bytes(computer / "home"), "autofs", 0))))
    assert [entry.name for entry in entries(b"")] == [b"etc", b"home", b"mnt", b"root"]


@pytest.mark.parametrize(("place", "why"), [
    ("nowhere", "There is no folder"), ("nowhere/x.tar.zst", "There is no folder"), ("to/there.tar.zst", "is there"),
])
def test_a_place_that_will_not_do_says_why(place, why, computer, tmp_path):
    (tmp_path / "to/there.tar.zst.001").touch()
    with pytest.raises(DestinationRefused, match=why):
        destination(str(tmp_path / place))


def test_a_backup_on_the_systems_own_volume_is_cautioned_of(computer, tmp_path):
    assert destination(str(tmp_path / "to"))[1] == ""
    assert "so is this backup" in destination(str(computer))[1]


def test_a_backup_that_reads_back_differently_is_removed(computer, tmp_path, monkeypatch):
    def damaged(path):
        yield Progress("Verifying")
        yield Difference("home/ann/letter", "Its data is damaged.")

    monkeypatch.setattr(files, "verify_backup", damaged)
    with pytest.raises(DamagedBackup):
        backed_up(tmp_path, "/home")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_backup_that_was_cancelled_while_it_was_read_back_is_removed(computer, tmp_path):
    events = back_up(("/home",), tmp_path / "to/x.tar.zst", outcome(select(("/home",))))
    while not (tmp_path / "to/x.tar.zst").exists():
        next(events)
    assert list(list_backup(tmp_path / "to/x.tar.zst"))
    events.close()
    assert list((tmp_path / "to").iterdir()) == []
