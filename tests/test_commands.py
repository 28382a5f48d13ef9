"""The commands for backups, as a person types them."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bootenv import asr_disk, collect, errors, network, prepare
from bootenv.asr_disk import SIF, check_belongs
from bootenv.backup import Source, is_lost, write_backup
from bootenv.events import Difference
from bootenv.exclude import TEMPORARY
from bootenv.layout import Layout
from bootenv.sif import AsrSet, new_id, write_sif
from console.__main__ import main

SET = AsrSet(id=new_id(), created=datetime(2026, 3, 14, 15, 9, tzinfo=UTC), host="sample", layout=Layout())


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ("etc/hosts", "etc/cron.d/one", "home/ann/letter", "home/ann/Videos/film", "home/ann/new\nline"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "tree" / "etc/hosts").chmod(0o604)
    return tmp_path / "tree"


@pytest.fixture
def backup(tree, tmp_path, capsys) -> Path:
    assert main(["pack", str(tree), str(tmp_path / "b.tar.zst")]) == 0
    assert capsys.readouterr().out.endswith("Packed.\n")
    return tmp_path / "b.tar.zst"


def files_below(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def test_what_was_packed_is_extracted(tree, backup, tmp_path, capsys):
    assert main(["extract", str(backup), "--all", "--to", str(tmp_path / "out")]) == 0
    assert files_below(tmp_path / "out") == files_below(tree)
    assert (tmp_path / "out" / "etc/hosts").stat().st_mode & 0o777 == 0o604
    assert capsys.readouterr().out.endswith("Extracted.\n")


def test_single_files_and_directories_are_extracted_by_their_paths(backup, tmp_path, capsys):
    assert main(["extract", str(backup), "/etc/hosts", "home/ann/Videos/", "--to", str(tmp_path / "out")]) == 0
    assert files_below(tmp_path / "out").keys() == {"etc/hosts", "home/ann/Videos/film"}


def test_a_path_that_is_not_there_is_said(backup, tmp_path, capsys):
    assert main(["extract", str(backup), "etc/host", "etc/hosts", "--to", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "etc/host: It is not in the backup." in said
    assert "Extracted with 1 difference." in said
    assert files_below(tmp_path / "out").keys() == {"etc/hosts"}


def test_all_or_paths_must_be_said(backup, tmp_path, capsys):
    for paths in ([], ["etc", "--all"]):
        with pytest.raises(SystemExit):
            main(["extract", str(backup), *paths, "--to", str(tmp_path / "out")])
    assert "--all" in capsys.readouterr().err


def test_the_list_has_a_line_for_each_path(backup, capsys):
    assert main(["list", str(backup)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(maxsplit=2)[2] for line in lines if line.startswith("f")} == {
        "etc/hosts", "etc/cron.d/one", "home/ann/letter", "home/ann/Videos/film", "home/ann/new\\nline"}


def test_patterns_are_taken_by_pack(tree, tmp_path, capsys):
    assert main(["pack", "--exclude", "home/*", "--include", "home/ann/letter", "--level", "3", "--volume-size", "4096",
                 str(tree), str(tmp_path / "c")]) == 0
    assert "home/*: It is left out, as asked. (2 names)" in capsys.readouterr().out
    assert main(["extract", str(tmp_path / "c"), "--all", "--to", str(tmp_path / "out")]) == 0
    assert files_below(tmp_path / "out").keys() == {"etc/hosts", "etc/cron.d/one", "home/ann/letter"}


def test_the_mediums_own_program_has_the_paths_of_the_computer(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bootenv.run.ROOT", tmp_path)
    monkeypatch.setenv("ASR_CWD", "/tree")
    assert main(["pack", "home", "/b.tar.zst"]) == 0
    assert main(["list", "../b.tar.zst"]) == 0
    assert "ann/letter" in capsys.readouterr().out
    assert main(["extract", "/b.tar.zst", "ann/letter", "--to", "/out"]) == 0
    assert files_below(tmp_path / "out") == {"ann/letter": "home/ann/letter"}


@pytest.mark.disks
def test_a_backup_goes_into_a_pipe(tree, tmp_path, capsys):
    done = subprocess.run((sys.executable, "-m", "console", "pack", tree, "-"), capture_output=True)
    assert done.stderr.endswith(b"Packed.\n")
    (tmp_path / "b.tar.zst").write_bytes(done.stdout)
    assert main(["verify", str(tmp_path / "b.tar.zst")]) == 0
    assert "The backup is whole." in capsys.readouterr().out


@pytest.mark.parametrize("word", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_as_it_is_and_the_words_are_not_in_it(word, tree, tmp_path, capfdbinary):
    assert main(["pack", str(tree), word]) == 0
    packed, said = capfdbinary.readouterr()
    assert said.endswith(b"Packed.\n")
    assert Path("/dev/stdout").is_symlink()
    (tmp_path / "b.tar.zst").write_bytes(packed)
    assert main(["verify", str(tmp_path / "b.tar.zst")]) == 0


def test_a_large_backup_goes_into_a_pipe(tmp_path, capsys):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/noise").write_bytes(random.Random(1).randbytes(40 * 2**20))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = threading.Thread(target=lambda: shutil.copyfileobj((tmp_path / "pipe").open("rb"),
                                                               (tmp_path / "b").open("wb")))
    reader.start()
    assert main(["pack", str(tmp_path / "tree"), str(tmp_path / "link")]) == 0
    reader.join()
    assert (tmp_path / "link").is_symlink()
    assert main(["verify", str(tmp_path / "b")]) == 0


def test_a_link_to_nothing_leads_to_the_backup_then(tree, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "newest").symlink_to("disk/b.tar.zst")
    assert main(["pack", str(tree), str(tmp_path / "newest")]) == 0
    assert os.readlink(tmp_path / "newest") == "disk/b.tar.zst"
    assert main(["verify", str(tmp_path / "newest")]) == 0


@pytest.mark.parametrize(("there", "name", "said"), [
    ("b", "b", "b is there already"), ("b", "link", "b is there already"), ("b.002", "b", "b.002 is there already"),
    ("b", "folder", "folder is there already"), ("b", "nowhere/c", "There is no folder"),
    ("b", "etc.2024", "etc.2024 ends as the volumes of a backup do"), ("b", "/dev/asr-none", "would lie in memory"),
])
def test_pack_overwrites_nothing_and_says_what_will_not_do(there, name, said, tree, tmp_path, capsys):
    (tmp_path / there).write_text("older")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["pack", str(tree), str(tmp_path / name)]) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / there).read_text() == "older"
    assert sorted(tmp_path.iterdir()) == before


def test_pack_takes_a_folder(tree, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "tree/etc/hosts", "pipe"):
        assert main(["pack", str(tmp_path / name), str(tmp_path / "b")]) == 1
        assert capsys.readouterr().err == (
            f"asr: {tmp_path / name}: There is no such folder: pack takes a folder, with all that is in it\n")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("why", "status"), [
    (collect.unread(PermissionError(13, "")), 1), (collect.unread(OSError(5, "")), 1), (collect.VANISHED, 0),
    (collect.CHANGED, 0), (collect.SOCKET, 0), (TEMPORARY, 0),
])
def test_the_status_says_whether_something_could_not_be_read(why, status, tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bootenv.backup.write_backup", lambda *_, **__: iter([Difference("a", why)]))
    assert main(["pack", str(tree), str(tmp_path / "b")]) == status
    assert "Packed with 1 difference." in capsys.readouterr().out


def test_a_bad_sector_is_lost(tmp_path):
    with open("/proc/self/mem", "rb") as file:             # nothing is at its beginning
        assert is_lost(Difference("a", collect.read_into(memoryview(bytearray(4096)), file.fileno(), 0)))


def test_a_report_is_saved_to_a_new_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    (tmp_path / prepare.report_of(SET)).parent.mkdir(parents=True)
    (tmp_path / prepare.report_of(SET)).write_text("all is well")
    prepare.save_report(SET, str(tmp_path / "report"))
    assert (tmp_path / "report").read_text() == "all is well"
    (tmp_path / "report").write_text("another")
    with pytest.raises(errors.DestinationRefused, match="report is there already"):
        prepare.save_report(SET, str(tmp_path / "report"))
    assert (tmp_path / "report").read_text() == "another"


@pytest.mark.parametrize("words", [
    ("verify", "nfs://nas/x/b.tar.zst"), ("list", "nfs://nas/x/b.tar.zst"),
    ("extract", "nfs://nas/x/b.tar.zst", "--all", "--to", "out"),
    ("make-disk", "--from", "nfs://nas/x/s", "--disk", "disk"),
])
def test_a_file_on_a_server_is_mounted_for_as_long_as_it_is_read(words, tree, tmp_path, monkeypatch, capsys):
    (tmp_path / "served").mkdir()
    assert main(["pack", str(tree), str(tmp_path / "served/b.tar.zst")]) == 0
    (tmp_path / "served/s").write_bytes(write_sif(SET))
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path)
    mounted = []

    @contextmanager
    def file_at(place):
        mounted.append(place.url)
        yield tmp_path / "served" / Path(place.path).name
        mounted.append("")

    monkeypatch.setattr(network, "file_at", file_at)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main([*words]) == 0
    assert mounted == [next(word for word in words if "://" in word), ""]


def test_no_backup_is_a_sentence(tmp_path, capsys):
    assert main(["list", str(tmp_path / "no")]) == 1
    assert "There is no backup at" in capsys.readouterr().err


def test_a_disk_and_a_backup_belong_together_or_not(tree, tmp_path, capsys):
    for _ in write_backup(tmp_path / "b", [Source(tree)], ("asr.sif", write_sif(SET))):
        pass
    (tmp_path / "disk").mkdir()
    with pytest.raises(errors.NoAsrDisk):
        check_belongs(str(tmp_path / "disk"), tmp_path / "b")
    (tmp_path / "disk" / SIF).write_bytes(write_sif(SET))
    assert main(["verify", str(tmp_path / "b"), "--disk", str(tmp_path / "disk")]) == 0
    assert "are of one set: sample, 2026-03-14 15:09 UTC" in capsys.readouterr().out
    (tmp_path / "disk" / SIF).write_bytes(write_sif(replace(SET, id=new_id())))
    assert main(["verify", str(tmp_path / "b"), "--disk", str(tmp_path / "disk")]) == 1
    assert "Take the ASR disk that was made with this backup." in capsys.readouterr().err


def test_a_backup_is_a_copy_of_its_asr_disk(tree, tmp_path, capsys):
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(tree)], ("asr.sif", write_sif(SET))):
        pass
    (tmp_path / "disk").mkdir()
    assert main(["make-disk", "--from", str(tmp_path / "b.tar.zst"), "--disk", str(tmp_path / "disk")]) == 0
    assert (tmp_path / "disk" / SIF).read_bytes() == write_sif(SET)
    assert "Automated System Recovery Disk for sample" in capsys.readouterr().out


def test_a_backup_in_volumes_is_a_copy_by_its_name_too(tree, tmp_path, capsys):
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(tree)], ("asr.sif", write_sif(SET)), volume_size=2000):
        pass
    (tmp_path / "disk").mkdir()
    assert main(["make-disk", "--from", str(tmp_path / "b.tar.zst"), "--disk", str(tmp_path / "disk")]) == 0
    assert (tmp_path / "disk" / SIF).read_bytes() == write_sif(SET)


@pytest.fixture
def no_fat(monkeypatch) -> None:
    """Nothing is a FAT, and blkid knows nothing of it."""
    def run(argv, **_):
        if argv[0] == "mdir":
            raise errors.CommandFailed("mdir failed: init :: non DOS media")
        assert argv[0] == "blkid"
        return ""

    monkeypatch.setattr(asr_disk, "run", run)


@pytest.mark.parametrize(("there", "said"), [
    ("letter", "letter is a file that holds something else than a disk. It is left alone."),
    ("pipe", "pipe is neither a disk, nor an image, nor a folder."), ("/dev/null", "/dev/null is neither a disk"),
])
@pytest.mark.parametrize("wish", [[], ["--format-disk"]])
def test_a_file_is_not_formatted_nor_a_pipe_waited_for(there, said, wish, no_fat, backup, tmp_path, capsys):
    (tmp_path / "letter").write_text("\0" * 3 * 2**20 + "dear Ann")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / SIF).write_bytes(write_sif(SET))
    before = (tmp_path / "letter").read_bytes()
    assert main(["make-disk", "--from", str(tmp_path / SIF), "--disk", str(tmp_path / there), *wish]) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "letter").read_bytes() == before
    assert main(["verify", str(backup), "--disk", str(tmp_path / there)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1440 * 1024])
def test_a_file_of_zeros_may_be_formatted(size, no_fat, tmp_path):
    (tmp_path / "blank").write_bytes(bytes(size))
    with pytest.raises(errors.AsrDiskUnformatted):
        asr_disk.check_disk(SET, str(tmp_path / "blank"))
    assert asr_disk.check_disk(SET, str(tmp_path / "blank"), format=True) == ""


def test_a_disk_that_is_not_there_has_a_sentence(backup, tmp_path, capsys):
    assert main(["verify", str(backup), "--disk", str(tmp_path / "none")]) == 1
    assert f"ASR-010: There is no disk, image or folder {tmp_path / 'none'}." in capsys.readouterr().err


def test_a_copy_is_a_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "disk").mkdir()
    for name in ("pipe", "disk"):
        assert main(["make-disk", "--from", str(tmp_path / name), "--disk", str(tmp_path / "disk")]) == 1
        assert f"ASR-010: {tmp_path / name} is no file." in capsys.readouterr().err


def test_a_folder_that_is_full_has_nothing_of_what_was_begun(tmp_path, monkeypatch, capsys):
    (tmp_path / "s").write_bytes(write_sif(SET))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / SIF).write_bytes(b"older")

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(asr_disk.os, "fsync", fsync)
    assert main(["make-disk", "--from", str(tmp_path / "s"), "--disk", str(tmp_path / "disk")]) == 1
    assert "ASR-014" in capsys.readouterr().err
    assert files_below(tmp_path / "disk") == {SIF: "older"}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_list_that_nobody_reads_to_its_end_ends_quietly(unbuffered, backup):
    theirs, ours = os.pipe()
    os.close(theirs)
    process = subprocess.Popen((sys.executable, "-m", "console", "list", backup), stdout=ours, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    os.close(ours)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_a_name_that_the_locale_has_no_letters_for_ends_nothing(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/Käse").touch()
    assert main(["pack", str(tmp_path / "tree"), str(tmp_path / "b")]) == 0
    process = subprocess.Popen((sys.executable, "-m", "console", "list", tmp_path / "b"), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert rb"K\xe4se" in out


@pytest.mark.parametrize(("words", "status"), [
    (["check", "--bogus"], 3), (["check", "--max-age", "x"], 3), (["check", "--drift", "--max-age", "-1"], 3),
    (["check", "--packages"], 3), (["check", "--remind"], 3), (["check", "--max-age", "3"], 3),
    (["check", "--drift", "--max-age", "99999999"], 3), (["list", "--bogus", "b"], 2), (["list", "b", "c"], 2),
    (["prepare", "--to", "/x", "--disk", "/y", "--keep", "-1"], 2),
    (["prepare", "--to", "/x", "--disk", "/y", "--keep-days", "36501"], 2),
    (["schedule", "add", "x", "--when", "daily", "--to", "/x", "--disk", "/y", "--keep", "-1"], 2),
    (["pack", "tree", "b", "--volume-size", "-5"], 2), (["pack", "tree", "b", "--volume-size", "650"], 2),
    (["extract", "b", "--to", "out", "x", "--bogus"], 2),
])
def test_a_command_line_that_is_none_has_its_own_status(words, status, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: pytest.fail("it was taken"))
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == status
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--to", "OUT", "etc/hosts", "home/ann/Videos"],
                                   ["etc/hosts", "--to", "OUT", "home/ann/Videos"]])
def test_paths_may_come_after_options(words, backup, tmp_path):
    assert main(["extract", str(backup), *(word.replace("OUT", str(tmp_path / "out")) for word in words)]) == 0
    assert files_below(tmp_path / "out").keys() == {"etc/hosts", "home/ann/Videos/film"}


def test_the_consoles_of_recovery_are_not_for_a_machine_that_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "cmdline").write_text("root=/dev/sda1 quiet\n")
    monkeypatch.setattr("console.__main__._CMDLINE", tmp_path / "cmdline")
    monkeypatch.setattr("console.__main__._MEDIUM", tmp_path / "medium")
    monkeypatch.setattr("console.recover.RecoverApp.run", lambda app, **_: None)
    with pytest.raises(SystemExit):
        main(["console"])
    assert "was not started from the recovery medium" in capsys.readouterr().err
    (tmp_path / "cmdline").write_text("asr.id=1 asr.stage=recover\n")
    assert main(["console"]) == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "recovery medium shows" not in capsys.readouterr().out
