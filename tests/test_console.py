"""The text console: every page against its golden, and the stories as keys and count-downs tell them."""

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pyte
import pytest
from textual import events
from textual.app import App
from textual.widgets import Input

import bootenv.run
from bootenv import collect, errors, keymap, schedule, snapshot
from bootenv import network as bootenv_network
from bootenv.asr_disk import AsrDisk, Drive
from bootenv.backup import COPY, INDEX, Entry, Selection
from bootenv.check import LOSS, Finding
from bootenv.destinations import Destination, Place
from bootenv.drivers import Loaded
from bootenv.events import Difference, Progress
from bootenv.layout import Disk, Layout, LuksContainer, Mount
from bootenv.match import Choice, Match
from bootenv.media import Medium
from bootenv.offline import Block, Line, System
from bootenv.prepare import DataVolume, Survey, label_of, provider_reference
from bootenv.recover import Check, Lock
from bootenv.restore import FoundBackup, Outcome
from bootenv.schedule import BROKEN, Job
from bootenv.sif import AsrSet, BackupReference, CarriedFile, Command, ProviderReference, write_sif
from console import backup, files, network, offline, prepare, recover, restore, screens
from console.__main__ import main, stage
from console.app import SetupApp
from console.widgets import Gauge, Listing, drawable, half_blocks

SCREENS = Path(__file__).parent / "screens"
NEVER = 3600.0                         # a count-down's second that doesn't pass within a test

LAYOUT = Layout(
    disks=(Disk("d0", "/dev/vda", 3 << 30, label="gpt", transport="virtio"),),
    mounts=(Mount("root", "/"), Mount("home", "/home")),
)
SET = AsrSet(
    id="5f0c9a5e-6f0b-4a57-9a52-0d3c1c0e7a11", created=datetime(2026, 3, 14, 15, 9, tzinfo=UTC), host="sample",
    system="Debian GNU/Linux 13 (trixie)", layout=LAYOUT,
    backup=BackupReference("sample-20260314-1509.tar.zst", "/run/backup", label="BACKUP", files=6082, bytes=273579509),
)
WITH_MORE = replace(
    SET, files=(CarriedFile("drivers/raid.ko", 5, "0" * 64), CarriedFile("drivers/firmware/a.fw", 5, "0" * 64)),
    commands=(Command("Stopping", ("stop",), "before"), Command("Joining the domain", ("join",), "after"),
              Command("Registering", ("register",), "after", "system", critical=True)))
LONG = replace(
    SET, host="database-01.production.example-company.com", system="A GNU/Linux of " + "many words and " * 5 + "1.0",
    layout=replace(LAYOUT, disks=tuple(replace(LAYOUT.disks[0], id=f"d{n}", path=f"/dev/nvme{n}n1") for n in range(6)),
                   mounts=tuple(Mount(f"m{n}", f"/srv/volume-{n}") for n in range(9))))
DISK = AsrDisk("/dev/fd0", "floppy disk drive A:", SET)
OTHER = AsrDisk("/dev/sdc1", "/dev/sdc1 ASR 7,5G", replace(
    SET, id="aaaaaaaa-6f0b-4a57-9a52-0d3c1c0e7a11", host="web2", created=datetime(2025, 11, 2, 8, 30, tzinfo=UTC)),
    "web2")
STICK = Drive("/dev/sdc1", "STICK  16000 MB  DataTraveler")
BLANK = Choice(LAYOUT.disks[0], LAYOUT.disks[0], "same size", "blank", consent=False)
FOREIGN = Choice(
    LAYOUT.disks[0], Disk("d1", "/dev/sda", 20 << 30, model="Samsung SSD 870 EVO", transport="sata"),
    "large enough", "3 partitions: SYSTEM [ntfs], vfat, DATA [ntfs]", consent=True)
FOUND = FoundBackup("/run/asr/volumes/vdb/sample-20260314-1509.tar.zst",
                    "/sample-20260314-1509.tar.zst on BACKUP (/dev/vdb)", SET)
DIFFERENCES = tuple(Difference(f"home/user/film{n}.mkv", "Its data is damaged in the backup.") for n in range(7))
NAS = bootenv_network.parse("smb://ann@nas/backups/servers")
ON_NAS = replace(SET, backup=replace(SET.backup, network=NAS.url))
FOUND_ON_NAS = FoundBackup("/run/asr/volumes/nas-backups/servers/a.tar.zst", f"{NAS.url}/a.tar.zst", ON_NAS)
RECOVERED = Outcome("recovered", (), 85.0, 6083, 285766656, "/var/log/asr/report.txt")
SURVEY = Survey(
    draft=replace(SET, id="", backup=BackupReference()),
    left_out=(Difference("/srv/data", "/dev/vdc1 [ext4] is not on a disk that the system needs."),), used=1900 << 20,
    findings=(Finding("/dev/vda", "[gpt] 3072 MB"),
              Finding("/srv/data", "/dev/vdc1 [ext4]", LOSS, "It is not on a disk that the system needs.")),
    more=(DataVolume("/srv/data", 700 << 20, ("/dev/vdc",)),))
BY_RESTIC = replace(SURVEY, draft=replace(SURVEY.draft, provider=ProviderReference("restic")))
NOT_COMPARED = Difference("backup", "The provider restic does not say that it has read the backup back: whether that "
                          "is whole is not known.")
DESTINATION = Destination(Path("/mnt/backup/x.tar.zst"), SET.backup, 9000 << 20, speed=30 << 20)
PLACES = (
    Place("/dev/sdb1", "/dev/sdb1", "ext4", "BACKUP", 40 << 30, 38 << 30),
    Place("/mnt/server", "server:/export/backups", "nfs4", "", 90 << 30, 20 << 30),
    Place("/", "/dev/vda3", "ext4", "root", 3 << 30, refused="/dev/vda3 lies on /dev/vda, which holds a part of this "
          "system: recovery formats it, and the backup with it."),
)
MEDIA = (
    Medium(FOUND, 130 << 20, datetime(2026, 3, 20, tzinfo=UTC)),
    Medium(FoundBackup("/run/asr/volumes/vdc/web2.tar.zst.001", "/web2.tar.zst.001 on DATA (/dev/vdc)", OTHER.set),
           9000 << 20, datetime(2026, 3, 20, tzinfo=UTC), 3),
    Medium(replace(FOUND, set=replace(OTHER.set, host="laptop")), 77 << 20),
)
JOB = Job("nightly", "Sun 03:00", "/dev/disk/by-uuid/1234", "/mnt/stick", 4, 60)
REPORT = "ASR set 5f0c\n" + "\n".join(f"line {n}" for n in range(40))


def working(*events, outcome=None):
    """A story's long work that says these things; an exception among them is raised."""
    for event in events:
        if isinstance(event, Exception):
            raise event
        yield event
    return outcome


FORMATTING = Progress("Setup is formatting...", 3, 8, subject="/  Partition 3 [ext4]  2048 MB\n"
                                                              "on 3072 MB Disk 0 at vda on virtio [GPT]")
COPYING = Progress("Setup is copying files...", 77 << 20, 208 << 20, "root.squashfs")
RESTORING = Progress("Restoring files...", 106789012, 285766656, "usr/lib/x86_64-linux-gnu/libc.so.6", "", 2345, 6083)
BACKING_UP = replace(RESTORING, status="Backing up files...")


def boot_recovery(**changes):
    """bootenv.recover as it looks from the console, without a machine behind it."""
    return SimpleNamespace(**{
        "find_sets": lambda: (DISK,),
        "checks": lambda disk, **_: iter([Check("Firmware"), Check("Hard disks: 1 of 1 found")]),
        "match_disks": lambda disk: Match((BLANK,), LAYOUT),
        "locks": lambda _: (),
        "server_to_ask": lambda _: None,
        "recover": lambda disk, match, secrets: working(FORMATTING, COPYING),
        "under_way": lambda: None,
        "restart": Counted(),
    } | changes)


def os_restore(**changes):
    return SimpleNamespace(**{
        "pending_set": lambda: SET,
        "checks": lambda set: iter([
            Check("State of sample, created 2026-03-14 15:09 UTC"), Check("Hard disks as they were recorded"),
            Check("Backup of this set")]),
        "find_backup": lambda set: FOUND,
        "open_backup": lambda path, set: replace(FOUND, place=path),
        "locks": lambda _: (),
        "server_to_ask": lambda _: None,
        "restore": lambda set, backup, secrets: working(RESTORING, outcome=RECOVERED),
        "under_way": lambda: None,
        "restart": Counted(),
    } | changes)


def preparation(**changes):
    return SimpleNamespace(**{
        "find_places": lambda survey: PLACES,
        "destination": lambda survey, place, name: DESTINATION,
        "select": lambda survey: working(Progress("Counting files...", 1, files=1), outcome="selection"),
        "prepare": lambda survey, destination, selection: working(BACKING_UP, outcome=SET),
        "check_disk": lambda set, place, **_: None,
        "find_drives": lambda set: (Drive("/dev/fd0", "floppy disk drive A:"), STICK),
        "write_disk": lambda set, place, **_: working(Progress(f"Writing {place}", 1, 2)),
        "known_providers": lambda: ("restic", "tar"),
        "provider_reference": provider_reference,
        "label_of": label_of,
        "read_report": lambda set: REPORT,
        "report_of": lambda set: "var/lib/asr/reports/20260314-150900.txt",
    } | changes)


def counted(paths):
    """bootenv.documents.select."""
    return working(Progress("Counting files...", 1, files=1), outcome=Selection(12, SIZES.get(paths[0], 7)))


SIZES = {"/etc": 2_001_234, "/home": 48_123_904}


class Counted:
    """Counts how often it was called."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1


def raises(error):
    """A function that raises this, whatever it is called with."""
    def raise_it(*_, **__):
        raise error
    return raise_it


def recover_app(story, tmp_path, tick=NEVER):
    """Boot recovery on a machine whose hardware is known already."""
    (tmp_path / "ready").touch()
    return recover.RecoverApp(story, hardware_ready=tmp_path / "ready", tick=tick)


def restore_app(story, tick=NEVER):
    """OS restore on a machine whose hardware is known already."""
    ready = Path(tempfile.mkdtemp()) / "ready"
    ready.touch()
    return restore.RestoreApp(story, hardware_ready=ready, tick=tick)


async def welcome(pilot):
    """Goes to page 4, at once where count-downs stand still."""
    if pilot.app.tick == NEVER:
        await until(pilot, "Press F6")
        await pilot.press("enter")
        await until(pilot, "Press F2")
        await pilot.press("enter")
    await until(pilot, "F2=ASR")


async def insert_disk(pilot):
    await welcome(pilot)
    await pilot.press("f2")
    await until(pilot, "Press any key when ready")


class OnePage(SetupApp):
    """Shows a page, and whatever else a test wants to see on the canvas."""

    def __init__(self, page, story=None, tick=NEVER):
        super().__init__(story or SimpleNamespace(restart=Counted()), tick=tick)
        self.only = page

    async def pages(self):
        self.said = await self.ask(self.only)


@pytest.fixture(autouse=True)
def in_tmux(monkeypatch):
    """As on the medium: there is a shell to offer, and a log with something in it."""
    monkeypatch.setenv("TMUX", "/run/asr/tmux-0/default,123,0")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "screen")


def cells(app: App):
    """(character, style) of every cell that is seen, row by row."""
    for strip in app.screen._compositor.render_strips():
        yield [(character, segment.style) for segment in strip for character in segment.text]


def screen_text(app: App) -> str:
    return "".join("".join(character for character, _ in row).rstrip() + "\n" for row in cells(app))


async def until(pilot, text: str, seconds: float = 15.0):
    """Waits until the screen says something: what comes out of a thread takes its time."""
    for _ in range(int(seconds * 50)):
        await pilot.pause()
        if text in screen_text(pilot.app):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{text!r} was not seen on\n{screen_text(pilot.app)}")


def assert_canvas(app: App):
    """Everything that a text console can draw, and nothing that it can't."""
    rows = list(cells(app))
    assert [len(row) for row in rows] == [80] * 25
    for row in rows:
        for character, style in row:
            assert character == drawable(character), f"{character!r} is not in code page 437"
            assert style.bgcolor.number in range(16)
            assert (style.color is None and character == " ") or style.color.number in range(16)


def at_work(page, progress, *differences):
    """A page of work on which this has happened so far."""
    page.newest = progress
    page.differences += differences
    return page


def progress_page(heading, progress, *differences):
    return at_minute_four(screens.ProgressPage(heading, "", ""), progress, *differences)


def at_minute_four(page, progress, *differences, seconds=251):
    page.started -= seconds
    page.phase -= seconds
    page.copied = Progress(progress.status)
    return at_work(page, progress, *differences)


LOADED = [Loaded("megaraid_sas.ko"), Loaded("qla2xxx.ko", "It is for Linux 6.1.0-40-amd64; this is 6.12.1-amd64."),
          Loaded("rtl_nic/rtl8168h-2.fw")]
DISK_ERRORS = {
    "error-no-asr-disk": (errors.NoAsrDisk(
        "Setup could not find an ASR disk in any drive.",
        hint="Insert the disk labeled Automated System Recovery Disk and press ENTER."), "copy", "cancel"),
    "error-disk-not-formatted": (errors.AsrDiskUnformatted(
        "The disk in /dev/fd0 is not formatted, or not for any known system.",
        hint="Insert another disk, or have this one formatted: what is on it, if anything, is lost then."),
        "format", "browse"),
    "error-disk-not-blank": (errors.AsrDiskNotBlank(
        "/dev/fd0 is not blank. It is an ASR disk of web2, of 2025-11-02 08:30; that set stays. It holds letter.txt, "
        "photos/; they stay.", hint="Insert another disk, or use this one all the same."), "agree", "browse"),
    "error-other-set": (errors.OtherSet(
        "The backup belongs to another ASR set: expected sample, 2026-03-14 15:09; found web2, 2025-11-02 08:30.",
        hint="Choose the backup that was made together with the ASR disk.", untouched="No file was restored."),
        "browse"),
    "error-damaged-sif": (errors.DamagedSif(
        "The file ASR.SIF is damaged.", hint="Use another copy of the ASR disk."), "copy", "cancel"),
    "error-newer-schema": (errors.NewerSchema(
        "The ASR disk was written by a newer version.", hint="Use a newer recovery medium."),),
    "error-disk-too-small": (errors.DiskTooSmall(
        "Disk 1 needs at least 20480 MB; the largest free disk has 16384 MB.",
        hint="Connect a larger disk and press ENTER."),),
    "error-too-few-disks": (errors.TooFewDisks(
        "This computer has 1 disk to recover onto. The set needs 2 critical disks.",
        hint="Connect the missing disk and press ENTER."),),
    "error-backup-not-found": (errors.BackupNotFound(
        f"The backup {SET.backup.name} of set {SET.id} is on none of the disks that can be read: DATA (/dev/vdc1). "
        "It was written to /run/backup on the volume BACKUP.",
        hint="Connect the disk that holds it and press ENTER, or press B and name the file.",
        untouched="No file was restored yet."), "browse"),
    "error-no-dhcp": (errors.NetworkPlaceFailed(
        "No DHCP server has given this computer an address, on ens3.",
        hint="See to the DHCP server and press ENTER. Or press F9 and type an address."), "browse"),
    "error-backup-not-here-yet": (errors.BackupNotFound(
        f"The backup {SET.backup.name} of set {SET.id} is on none of the disks that can be read: DATA (/dev/vdc1). "
        "It was written to /run/backup on the volume BACKUP.", hint="Connect the disk that holds it and press ENTER."),
        "agree"),
    "error-damaged-backup": (errors.DamagedBackup(
        "Nothing in the backup can be read.", hint="Use another backup of this computer."), "browse"),
    "error-incomplete-backup": (errors.DamagedBackup(
        "The end of the backup mail-20260314-1509.tar.zst is missing, or its last volumes are.", hint=COPY),
        "agree"),
    "error-command-failed": (errors.CommandFailed(
        "sfdisk failed: cannot open /dev/vda: Input/output error", untouched="The disks were already changed."),),
}

def failed(error, *offers, **said):
    return screens.ErrorPage(error, *offers, **said)


SAVED = Lock(LuksContainer("c1", "d/3", "sda3_crypt", 500 << 30, slots=2, tokens=("systemd-tpm2",)), header=True)
LOST = replace(SAVED, header=False)

# name of the golden: (the page, what it says when it is ready, the story behind it)
PAGES = {
    "02-inspecting": (lambda: screens.Inspecting(Path("/nonexistent")), "inspecting", None),
    "03-prompt-f6": (recover.PromptF6, "F6", None),
    "03-prompt-f2": (recover.PromptF2, "F2", None),
    "03-driver-disk": (lambda: recover.DriverDisk("6.12.1-amd64"), "Insert", None),
    "03-drivers": (lambda: recover.Drivers(LOADED), "in use", None),
    "04-welcome": (recover.Welcome, "Welcome", None),
    "05-insert-disk": (recover.InsertDisk, "any key", boot_recovery(find_sets=raises(errors.NoAsrDisk("none")))),
    "05-disk-found": (recover.InsertDisk, "Created", boot_recovery()),
    "05-several-sets": (lambda: recover.Sets("Which computer?", (DISK, OTHER)), "web2", None),
    "06-checks": (lambda: screens.ChecksPage("Automated System Recovery is starting...", iter([
        Check("ASR disk of sample, created 2026-03-14 15:09 UTC"), Check("Firmware"),
        Check("Partitions and file systems: 3 to recreate"), Check("Recovery files on this medium"),
        Check("Backup: /sample-20260314-1509.tar.zst on BACKUP (/dev/vdb)"),
        Check("Hard disks: 1 of 1 found")])), "seconds", None),
    "06-checks-warning": (lambda: screens.ChecksPage("Automated System Recovery is starting...", iter([
        Check("Clock", note="This computer's clock is at 1999-12-31; files will be restored with their own dates."),
        Check("Hard disks: 1 of 1 found")])), "seconds", None),
    "07-disks": (lambda: recover.Disks(Match((BLANK,), LAYOUT)), "continues", None),
    "07-disks-consent": (lambda: recover.Disks(Match((BLANK, FOREIGN), LAYOUT)), "CAUTION", None),
    "07-passphrase": (lambda: screens.Passphrase("sda3_crypt  512000 MB", opens=lambda _: True,
                                                 first=recover._SAVED_HEADER, renew=True), "one of its", None),
    "07-new-passphrase": (lambda: screens.Passphrase("sda3_crypt  512000 MB", opens=None,
                                                     first=recover._new_header(LOST)), "twice", None),
    "08-format": (lambda: at_work(recover.Preparing(), FORMATTING), "37%", None),
    "09-copy": (lambda: at_work(recover.Preparing(), COPYING), "37%", None),
    "10-reboot": (recover.Reboot, "15 seconds", None),
    "11-wizard": (lambda: restore.WizardWelcome(SET), "Seconds left", os_restore()),
    "11-wizard-not-ready": (lambda: restore.WizardWelcome(SET), "looks again", os_restore(
        checks=lambda set: iter([Check("Backup of this set", DISK_ERRORS["error-backup-not-found"][0])]))),
    "11-wizard-incomplete": (lambda: restore.WizardWelcome(SET), "looks again", os_restore(
        checks=lambda set: iter([Check("Backup of this set", DISK_ERRORS["error-incomplete-backup"][0])]))),
    "11-passphrase": (lambda: screens.Passphrase("sda3_crypt  512000 MB", opens=lambda _: True,
                                                 first=restore._UNLOCK), "goes on", None),
    "11-server": (lambda: network.NetworkPassword(NAS, restore._SERVER), "goes on", None),
    "11-wizard-network": (lambda: restore.WizardWelcome(ON_NAS), "brings the network up", os_restore(
        checks=lambda set: (time.sleep(4) for _ in range(1)))),
    "12-source": (lambda: restore.Source(SET, lambda: FOUND, True), "10 seconds", os_restore()),
    "12-browse": (lambda: network.BrowseBackup("Browse for the backup", restore._BROWSE, "/run/backup"), "/run/backup",
                  None),
    "13-completing": (lambda: restore.Completing(SET, FOUND, True), "by itself", None),
    "13-completing-commands": (lambda: restore.Completing(WITH_MORE, FOUND, True), "by itself", None),
    "13-secret": (lambda: restore.BackupSecret(
        "The password of the restic repository", opens=lambda _: True, first=restore._SECRET.format(provider="restic")),
        "Needed", None),
    "14-progress": (lambda: progress_page("Restore Progress", RESTORING), "37%", None),
    "14-progress-differences": (
        lambda: progress_page("Restore Progress", RESTORING, *DIFFERENCES), "37%", None),
    "15-recovered": (lambda: restore.Result(SET, RECOVERED), "reboot in", None),
    "15-differences": (lambda: restore.Result(
        SET, replace(RECOVERED, result="differences", differences=DIFFERENCES)), "reboot in", None),
    "15-not-recovered": (lambda: failed(
        errors.CommandFailed("grub-install failed: cannot find a device for /boot/grub"),
        heading=restore._NOT_RECOVERED, changed=restore._PARTLY), "NOT", None),
    "15-failed": (lambda: restore.Result(SET, replace(RECOVERED, result="failed")), "NOT", None),
    "16-welcome": (lambda: backup.WizardWelcome(Path("/nonexistent")), "wizard mode", None),
    "16-choice": (lambda: backup.Choice(), "What do you", None),
    "16-what": (lambda: backup.WhatToBackUp(), "Let me", None),
    "16-choose": (lambda: backup.Chosen(lambda directory: BACKUP[directory], counted, [b"etc"]), "home", None),
    "16-begin": (lambda: backup.Begin(["/home/ann", "/etc"], Path("/mnt/files-20260314-1509.tar.zst"),
                                      "/mnt is on the system's own volume: if its disk is lost, so is this backup."),
                 "CAUTION", None),
    "16-complete": (lambda: backup.FilesComplete(Path("/mnt/files-20260314-1509.tar.zst"), DIFFERENCES), "diff", None),
    "17-advanced": (lambda: backup.Advanced(), "[Welcome]", None),
    "17-backup": (lambda: backup.FilesTab(lambda directory: BACKUP[directory], counted, [b"etc"]), "48,123,904", None),
    "17-media": (lambda: backup.Media(lambda: MEDIA), "BACKUP", None),
    "17-media-long": (lambda: backup.Media(lambda: (replace(MEDIA[0], backup=replace(FOUND, set=LONG), damaged=-1),)),
                      "At", None),
    "17-jobs": (lambda: backup.Jobs(lambda: [(JOB, "every Sunday at 03:00", "Sun 2026-03-15 03:00:00 UTC")]),
                "Keeps", None),
    "17-jobs-broken": (lambda: backup.Jobs(lambda: [
        (replace(JOB, name="a-job-whose-name-is-as-long-as", when=BROKEN), BROKEN, "not known"),
        (JOB, "every Sunday at 03:00", "Sun 2026-03-15 03:00:00 UTC")]), "X removes", None),
    "17-sure": (lambda: backup.Sure("Remove the job nightly?", "The backups stay.", "To remove it"), "F8", None),
    "17-verified": (lambda: files.Verified(FOUND.place, DIFFERENCES), "DAMAGED", None),
    "17-verified-index": (lambda: files.Verified(FOUND.place, (Difference(INDEX, "It is lost."),)),
                          "DAMAGED", None),
    "26-verified": (lambda: files.Verified(FOUND.place, (), "Its ASR disk is whole, and in floppy disk drive A:."),
                    "is whole", None),
    "26-damaged": (lambda: files.Verified(FOUND.place, DIFFERENCES, OF_ANOTHER), "DAMAGED", None),
    "27-unlock": (lambda: offline.Unlock("/dev/vda3  2350 MB", opens=lambda *_: True, first=offline._UNLOCK,
                                         warning=offline._NOTHING_YET), "closed again", None),
    "27-system": (lambda: offline.Systems((DEBIAN,)), "Lies on", None),
    "27-systems": (lambda: offline.Systems((SUSE, DEBIAN, SUSE, DEBIAN)), "Lies on", None),
    "27-left-out": (lambda: offline.LeftOut((Difference(
        "/srv/data", "It is not mounted: there is no LABEL=data on this computer."),)), "nofail", None),
    "18-welcome": (lambda: prepare.Welcome(SURVEY), "NOT protected", preparation()),
    "18-welcome-all": (lambda: prepare.Welcome(replace(SURVEY, left_out=(), more=())), "press N", preparation()),
    "18-welcome-provider": (lambda: prepare.Welcome(BY_RESTIC), "Backup by", preparation()),
    "18-providers": (lambda: prepare.Providers(lambda: ("", "restic", "tar")), "restic", preparation()),
    "18-options": (lambda: prepare.Options("restic: its options", prepare._OPTIONS), "KEY=VALUE", preparation()),
    "18-destination-provider": (lambda: prepare.BackupDestination(BY_RESTIC, "sftp:server:/repo"), "sftp",
                                preparation()),
    "18-completing-provider": (lambda: prepare.Completing(BY_RESTIC, replace(
        DESTINATION, notes=("The repository has 12 snapshots.",))), "snapshots", preparation()),
    "18-data-volumes": (lambda: prepare.DataVolumes(SURVEY, ()), "/srv/data", preparation()),
    "18-looking": (lambda: screens.Looking(prepare._LOOKING, lambda: time.sleep(4)), "wait", preparation()),
    "18-destination": (lambda: prepare.BackupDestination(SURVEY, "/home"), "/home", preparation()),
    "18-server": (lambda: network.NetworkPassword(NAS, warning=prepare._NO_SET), "wants", preparation()),
    "18-browse": (lambda: prepare.Places(SURVEY, lambda: PLACES), "BACKUP", preparation()),
    "18-completing": (lambda: prepare.Completing(SURVEY, replace(DESTINATION, warnings=(
        "This FAT volume holds files of up to 4 GB; a larger backup will not fit.",))), "CAUTION", preparation()),
    "18-completing-commands": (lambda: prepare.Completing(
        replace(SURVEY, draft=WITH_MORE), DESTINATION), "With it", preparation()),
    "19-selection": (lambda: at_work(prepare.Selecting(), Progress(
        "Counting files...", 106789012, item="usr/share/doc/bash", files=2345)), "2,345", preparation()),
    "19-backup": (lambda: at_minute_four(prepare.Backing(), BACKING_UP), "37%", preparation()),
    "20-insert-diskette": (lambda: prepare.InsertDiskette("/dev/fd0"), "blank", preparation()),
    "20-drives": (lambda: prepare.Drives(lambda: (Drive("/dev/fd0", "floppy disk drive A:"), STICK)), "Data", None),
    "20-writing": (lambda: at_work(prepare.Writing("/dev/fd0"), Progress("Writing /dev/fd0", 1, 2)), "50%", None),
    "18-welcome-long": (lambda: prepare.Welcome(replace(BY_RESTIC, draft=replace(
        LONG, provider=BY_RESTIC.draft.provider))), "press N", preparation()),
    "21-label-long": (lambda: prepare.Label(label_of(LONG)), "label it", preparation()),
    "21-label": (lambda: prepare.Label(label_of(SET)), "label it", preparation()),
    "22-complete": (lambda: prepare.Complete(SURVEY), "complete", preparation()),
    "22-complete-provider": (lambda: prepare.Complete(BY_RESTIC, (NOT_COMPARED,)), "complete", preparation()),
    "22-report": (lambda: prepare.Report(REPORT, "/var/lib/asr/reports/20260314-150900.txt"), "line 9", preparation()),
    "23-searching": (lambda: files.Searching(), "looking", None),
    "23-backups": (lambda: files.Backups([FOUND, replace(FOUND, set=replace(SET, host="other"))],
                                          "Restore single files: from which backup?"), "from which", None),
    "23-backups-long": (lambda: files.Backups([replace(FOUND, set=LONG)], "Verify: which backup?"), "which", None),
    "24-tree": (lambda: files.Tree(lambda directory: BACKUP[directory], [b"etc/hosts"]), "home", None),
    "25-restored": (lambda: files.Restored("/run/asr/volumes/vda2/", RESTORING, DIFFERENCES), "differences", None),
    "error-unexpected": (lambda: screens.UnexpectedPage(ZeroDivisionError("division by zero")), "Zero", None),
    **{name: (lambda error=error: failed(*error), "Error ASR", None) for name, error in DISK_ERRORS.items()},
}


OF_ANOTHER = "The ASR disk in floppy disk drive A: is of ANOTHER set: other, 2026-01-02 03:04 UTC."
BACKUP = {
    b"": [Entry(b"etc", "d", 0), Entry(b"home", "d", 0), Entry(b"swapfile", "f", 2 << 30), Entry(b"vmlinuz", "l", 0)],
    b"etc": [Entry(b"ssh", "d", 0), Entry(b"hostname", "f", 7), Entry(b"hosts", "f", 123_456)],
    b"etc/ssh": [Entry(b"n\xffme \xe2\x98\x83 of a file", "f", 1)],
    b"home": [Entry(b"user%d" % n, "d", 0) for n in range(30)],
}


def in_backup(backup, directory):
    return BACKUP[directory]


def in_the_middle(shown: str) -> str:
    """The canvas on a terminal of 120x40, around which there is nothing."""
    lines = shown.splitlines()
    top = (40 - 25) // 2
    assert not any(line.strip() for line in lines[:top] + lines[top + 25:])
    assert not any(line[:20].strip() or line[100:].strip() for line in lines)
    return "".join(line[20:].rstrip() + "\n" for line in lines[top:top + 25])


@pytest.mark.parametrize("name", PAGES)
async def test_page_looks_as_it_should_and_has_help(name, golden, monkeypatch):
    monkeypatch.setattr(bootenv.run, "LOG", Path("/run/asr/setup.log"))
    monkeypatch.setattr(screens, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(files.story, "entries", in_backup)
    seen = threading.Event()
    monkeypatch.setattr(files.story, "backups", lambda: seen.wait(30) and [])
    monkeypatch.setattr(backup, "datetime", SimpleNamespace(now=lambda zone: datetime(2026, 3, 30, tzinfo=UTC)))
    page, ready, story = PAGES[name]
    app = OnePage(page(), story)
    if name[:2] in ("16", "17"):
        app.title, app.QUIT = backup.BackupApp.TITLE, prepare.PrepareApp.QUIT
    if name[:2] in ("18", "19", "20", "21", "22"):
        app.title, app.QUIT = prepare.PrepareApp.TITLE, prepare.PrepareApp.QUIT
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, ready)
        assert_canvas(app)
        golden(SCREENS / f"{name}.txt", screen_text(app))
        await pilot.resize_terminal(120, 40)
        await pilot.pause()
        assert in_the_middle(screen_text(app)) == (SCREENS / f"{name}.txt").read_text()
        await pilot.resize_terminal(80, 25)
        await pilot.press("f1")
        await until(pilot, "ESC=Back")
        assert_canvas(app)
        assert screen_text(app).splitlines()[23] == "", "its help is too long"
        seen.set()


# Boot recovery

async def test_boot_recovery_needs_nobody_once_the_disk_is_in(tmp_path):
    app = recover_app(boot_recovery(), tmp_path, tick=0.001)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "F2=ASR")
        await pilot.press("f2")
        await until(pilot, "being restarted")
    assert app.story.restart.times == 1


async def test_nothing_pressed_leads_to_the_welcome_page_and_changes_nothing(tmp_path):
    story = boot_recovery(find_sets=None, checks=None, match_disks=None, recover=None)
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Welcome to Setup")
    assert story.restart.times == 0


async def test_f2_acts_at_once_while_the_hardware_is_being_inspected(tmp_path):
    app = recover.RecoverApp(boot_recovery(), hardware_ready=tmp_path / "ready", tick=NEVER)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press("enter")
        await until(pilot, "Press F2")
        await pilot.press("f2")
        await until(pilot, "An ASR disk was found")
        await pilot.press("space")
        await until(pilot, "inspecting")           # nothing is checked before all disks are known
        (tmp_path / "ready").touch()
        await until(pilot, "Hard disks: 1 of 1 found")


@pytest.mark.parametrize("keys", [("enter", "enter"), ("f6",)])
async def test_what_needs_devices_waits_for_them_and_f2_is_still_there(keys, tmp_path):
    app = recover.RecoverApp(boot_recovery(), hardware_ready=tmp_path / "ready", tick=NEVER)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press(*keys)
        await until(pilot, "inspecting")
        await pilot.press("f2")
        await until(pilot, "An ASR disk was found")


async def test_the_restore_waits_for_devices(tmp_path):
    app = restore.RestoreApp(os_restore(), hardware_ready=tmp_path / "ready", tick=NEVER)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "inspecting")
        await pilot.press("f2")
        await until(pilot, "inspecting")
        (tmp_path / "ready").touch()
        await until(pilot, "Seconds left")


@pytest.mark.parametrize(("asked", "seen"), [
    ("f2", "An ASR disk was found"), ("f6", "for Linux 6.12.1-amd64,"), ("welcome", "Welcome to Setup"),
    ("", "Press F6"), ("f1", "ESC=Back"), ("f3", "has not finished"), ("f4", "Which layout"), ("d", "end of the log")])
async def test_what_was_pressed_while_the_program_started_counts(asked, seen, tmp_path):
    (tmp_path / "ready").touch()
    app = recover.RecoverApp(boot_recovery(release=lambda: "6.12.1-amd64"), hardware_ready=tmp_path / "ready",
                             tick=NEVER, asked=asked)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, seen)


async def test_f6_loads_drivers_and_says_of_each_what_became_of_it(tmp_path):
    disks = iter([errors.Unsupported("No disk has drivers."), LOADED])

    def load():
        if isinstance(found := next(disks), Exception):
            raise found
        return found

    story = boot_recovery(load_drivers=load, release=lambda: "6.12.1-amd64")
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press("f6")
        await until(pilot, "for Linux 6.12.1-amd64,")
        await pilot.press("enter")
        await until(pilot, "No disk has drivers.")
        await pilot.press("enter")
        await until(pilot, "Insert the disk")
        await pilot.press("enter")
        await until(pilot, "2 of 3 drivers and firmware files are in use.")
        await pilot.press("enter")
        await until(pilot, "Press F2 to run")
        await pilot.press("f6")                        # and again: another disk
        await until(pilot, "Insert the disk")
        await pilot.press("escape")
        await until(pilot, "Press F2 to run")


# Single files

@pytest.fixture
def single_files(monkeypatch):
    """bootenv.files with nothing behind it; what was asked to be restored."""
    asked = []

    def extract(backup, paths, folder):
        asked.append((backup, paths, folder))
        return working(RESTORING, outcome=DIFFERENCES[:1])

    for name, function in {"backups": lambda: [FOUND], "entries": in_backup, "extract": extract,
                           "forget": lambda: asked.append("forgot")}.items():
        monkeypatch.setattr(files.story, name, function)
    return asked


async def to_the_tree(pilot):
    await welcome(pilot)
    await pilot.press("r")
    await until(pilot, "from which backup")
    assert_canvas(pilot.app)
    await pilot.press("enter")
    await until(pilot, "vmlinuz")


async def test_r_restores_the_files_that_are_marked_in_a_tree(single_files, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_the_tree(pilot)
        await pilot.press("enter")
        await until(pilot, "hostname")
        await pilot.press("down", "right")
        await until(pilot, "n?me ? of a file")
        await pilot.press("down", "space", "down", "down", "space")
        await until(pilot, "2 marked")
        assert_canvas(pilot.app)
        await pilot.press("r")
        await until(pilot, "Where to?")
        await pilot.press(*"vda2", "enter")
        await until(pilot, "1 differences")
        assert "They are in /run/asr/volumes/vda2" in screen_text(pilot.app)
        await pilot.press("enter")
        await until(pilot, "Welcome to Setup")
    assert single_files == [
        (FOUND.path, (b"etc/hosts", b"etc/ssh/n\xffme \xe2\x98\x83 of a file"), "/run/asr/volumes/vda2"), "forgot"]


async def test_left_closes_the_directory_around_and_nothing_is_restored_unmarked(single_files, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_the_tree(pilot)
        await pilot.press("down", "enter")
        await until(pilot, "user9")
        await pilot.press(*["down"] * 20)
        await until(pilot, "user19")
        await pilot.press("r", "left")
        await until(pilot, "vmlinuz")
        assert "user" not in screen_text(pilot.app)
        await pilot.press("space", "space", "r", "escape")
        await until(pilot, "from which backup")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
    assert single_files == ["forgot"]


async def test_a_place_that_will_not_do_can_be_named_again_or_the_tree_comes_back(single_files, monkeypatch, tmp_path):
    monkeypatch.setattr(files.story, "extract", lambda *_: working(errors.DestinationRefused("Not there.")))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_the_tree(pilot)
        await pilot.press("space", "r")
        await until(pilot, "Where to?")
        await pilot.press("x", "enter")
        await until(pilot, "Not there.")
        await pilot.press("enter")
        await until(pilot, "Where to?")
        assert pilot.app.screen.query_one(Input).value == "/run/asr/volumes/x"
        await pilot.press("enter")
        await until(pilot, "Not there.")
        await pilot.press("escape")
        await until(pilot, "1 marked")
        await pilot.press("r")
        await until(pilot, "Where to?")
        await pilot.press("escape")
        await until(pilot, "1 marked")


async def test_v_verifies_a_backup_and_its_disk(monkeypatch, single_files, tmp_path):
    asked = []
    monkeypatch.setattr(files.story, "verify", lambda path: asked.append(path) or working(BACKING_UP,
                                                                                          outcome=DIFFERENCES[:1]))
    monkeypatch.setattr(files.story, "disk_of", lambda path: OF_ANOTHER)
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("V")
        await until(pilot, "Verify: which backup?")
        await pilot.press("enter")
        await until(pilot, "1 of its files is DAMAGED.")
        assert "is of ANOTHER set" in screen_text(pilot.app)
        assert_canvas(pilot.app)
        await pilot.press("enter")
        await until(pilot, "Verify: which backup?")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
    assert asked == [FOUND.path]
    assert single_files == ["forgot"]


async def test_files_are_restored_from_an_address(single_files, nas, monkeypatch, tmp_path):
    monkeypatch.setattr(files.story, "backups_on", wants_password(nas, [FOUND_ON_NAS]))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("r")
        await until(pilot, "from which backup")
        await pilot.press("b")
        await until(pilot, "Another backup")
        pilot.app.screen.query_one(Input).value += NAS.url     # behind what the field begins with
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press(*"good", "enter")
        await until(pilot, "servers/a.tar.zst")
        assert "BACKUP (/dev/vdb)" not in screen_text(pilot.app)
        await pilot.press("enter")
        await until(pilot, "vmlinuz")


async def test_an_address_that_fails_says_why_and_the_list_comes_back(single_files, monkeypatch, tmp_path):
    answers = [errors.NetworkPlaceFailed("The server nas does not answer."), []]

    def backups_on(url):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(files.story, "backups_on", backups_on)
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("v")
        await until(pilot, "Verify: which backup?")
        await pilot.press("b")
        await until(pilot, "Another backup")
        pilot.app.screen.query_one(Input).value = "nfs://nas/x"
        await pilot.press("enter")
        await until(pilot, "The server nas does not answer.")
        await pilot.press("enter")
        await until(pilot, "There is no backup of an ASR set at nfs://nas/x or below.")
        await pilot.press("escape")
        await until(pilot, "Verify: which backup?")
        assert "BACKUP (/dev/vdb)" in screen_text(pilot.app)


async def test_a_path_that_is_wrong_is_asked_for_again_with_what_was_typed(single_files, monkeypatch, tmp_path):
    def entries(backup, directory):
        if backup.endswith("x"):
            raise errors.BackupNotFound(f"There is no file {backup}.")
        return BACKUP[directory]

    monkeypatch.setattr(files.story, "entries", entries)
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("r")
        await until(pilot, "from which backup")
        await pilot.press("b")
        await until(pilot, "Another backup")
        await pilot.press("x", "enter")
        await until(pilot, "There is no file /run/asr/volumes/x.")
        await pilot.press("enter")
        await until(pilot, "Another backup")
        assert pilot.app.screen.query_one(Input).value == "/run/asr/volumes/x"
        await pilot.press("backspace", "y", "enter")
        await until(pilot, "vmlinuz")


async def test_what_failed_with_a_backup_of_the_list_is_tried_again(single_files, monkeypatch, tmp_path):
    tried = []

    def verify(path):
        tried.append(path)
        return working(errors.DamagedBackup("It cannot be read.")) if len(tried) == 1 else working(outcome=())

    monkeypatch.setattr(files.story, "verify", verify)
    monkeypatch.setattr(files.story, "disk_of", lambda path: "")
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("v")
        await until(pilot, "which backup?")
        await pilot.press("enter")
        await until(pilot, "It cannot be read.")
        await pilot.press("enter")
        await until(pilot, "The backup is whole.")
    assert tried == [FOUND.path] * 2


async def test_what_cannot_be_verified_says_so(monkeypatch, single_files, tmp_path):
    monkeypatch.setattr(files.story, "verify", lambda path: working(errors.DamagedBackup("Nothing can be read.")))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("v")
        await until(pilot, "which backup?")
        await pilot.press("enter")
        await until(pilot, "Nothing can be read.")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")


# A system that does not run

CONTAINER = Block("/dev/vda3", "part", "crypto_LUKS", 2350 << 20, "c1")
DEBIAN = System(
    Block("/dev/mapper/sample--vg-root", "lvm", "ext4", 2048 << 20), "Debian GNU/Linux 13 (trixie)", "sample",
    lines=(Line("/dev/mapper/sample--vg-root", "/", "ext4", ()), Line("UUID=b", "/boot", "ext4", ()),
           Line("UUID=e", "/boot/efi", "vfat", ())))
SUSE = System(Block("/dev/vdb2", "part", "btrfs", 40 << 30), "openSUSE Leap 15.6", "web2", "@/.snapshots/1/snapshot")


@pytest.fixture
def at_rest(monkeypatch):
    """bootenv.offline with nothing behind it: one closed container with one system in it. What was done."""
    done = []

    @contextmanager
    def opened():
        done.append("opened")
        try:
            yield SimpleNamespace(returncode=0)
        finally:
            done.append("closed")

    def opens(block, passphrase):
        if passphrase == b"right":
            done.append(block.path)
        return passphrase == b"right"

    def find_systems():
        if CONTAINER.path not in done:
            raise errors.NoSystem("No installed system was found on this computer's volumes.")
        return (DEBIAN,)

    for name, function in {
        "opened": opened, "opens": opens, "find_systems": find_systems,
        "locked": lambda: () if CONTAINER.path in done else (CONTAINER,),
        "mount": lambda system: done.append(f"mounted {system.host}") or (),
    }.items():
        monkeypatch.setattr(offline.story, name, function)
    monkeypatch.setattr(offline, "wizard", lambda app: done.append("wizard") or 0)
    return done


async def to_p(pilot):
    await welcome(pilot)
    await pilot.press("p")


async def test_p_opens_mounts_and_prepares_a_system_and_comes_back(at_rest, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "/dev/vda3  2350 MB")
        assert_canvas(pilot.app)
        await pilot.press(*"wrong", "enter")
        await until(pilot, "does not open the volume")
        await pilot.press(*"right", "enter")
        await until(pilot, "Prepare an ASR set of this system?")
        await until(pilot, "Mounts       /, /boot, /boot/efi")
        assert_canvas(pilot.app)
        assert at_rest == ["opened", "/dev/vda3"]
        await pilot.press("enter")
        await until(pilot, "Welcome to Setup")
    assert at_rest == ["opened", "/dev/vda3", "mounted sample", "wizard", "closed"]


async def test_a_container_may_stay_closed_and_then_there_is_no_system(at_rest, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "ESC=Leave Closed")
        await pilot.press("escape")
        await until(pilot, "No installed system was found")
        await pilot.press("enter")
        await until(pilot, "ESC=Leave Closed")         # again from the beginning
        await pilot.press("escape")
        await until(pilot, "No installed system was found")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
    assert at_rest == ["opened", "closed"]


async def test_of_several_systems_one_is_chosen_and_esc_changes_nothing(at_rest, monkeypatch, tmp_path):
    monkeypatch.setattr(offline.story, "find_systems", lambda: (DEBIAN, SUSE))
    monkeypatch.setattr(offline.story, "locked", lambda: ())
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "of which system?")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
        assert at_rest == ["opened", "closed"]
        await pilot.press("p")
        await until(pilot, "of which system?")
        await pilot.press("down")
        await until(pilot, "@/.snapshots/1/snapshot")
        await pilot.press("enter")
        await until(pilot, "Welcome to Setup")
    assert at_rest[2:] == ["opened", "mounted web2", "wizard", "closed"]


async def test_what_cannot_be_mounted_is_said_and_the_wizard_does_not_start(at_rest, monkeypatch, tmp_path):
    monkeypatch.setattr(offline.story, "find_systems", lambda: (DEBIAN,))
    monkeypatch.setattr(offline.story, "locked", lambda: ())
    monkeypatch.setattr(offline.story, "mount", raises(errors.SystemIncomplete("/home cannot be mounted: no disk.")))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "this system?")
        await pilot.press("enter")
        await until(pilot, "/home cannot be mounted: no disk.")
        assert_canvas(pilot.app)
        await pilot.press("enter")
        await until(pilot, "this system?")
        await pilot.press("enter")
        await until(pilot, "/home cannot be mounted: no disk.")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
    assert at_rest == ["opened", "closed"]


async def test_what_the_system_starts_without_is_shown_before_the_wizard(at_rest, monkeypatch, tmp_path):
    monkeypatch.setattr(offline.story, "find_systems", lambda: (DEBIAN,))
    monkeypatch.setattr(offline.story, "locked", lambda: ())
    monkeypatch.setattr(offline.story, "mount", lambda system: (Difference("/srv/data", "It is not mounted."),))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "this system?")
        await pilot.press("enter")
        await until(pilot, "will not be in the set:")
        assert_canvas(pilot.app)
        assert at_rest == ["opened"]
        await pilot.press("enter")
        await until(pilot, "Welcome to Setup")
    assert at_rest == ["opened", "wizard", "closed"]


async def test_a_wizard_that_crashes_leaves_nothing_mounted_and_says_so(at_rest, monkeypatch, tmp_path):
    monkeypatch.setattr(offline, "wizard", lambda app: -9)
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "ESC=Leave Closed")
        await pilot.press(*"right", "enter")
        await until(pilot, "this system?")
        await pilot.press("enter")
        await until(pilot, "The wizard ended unexpectedly.")
        assert_canvas(pilot.app)
        await pilot.press("enter")
        await until(pilot, "Welcome to Setup")
    assert at_rest[-1] == "closed"


async def test_leaving_while_a_volume_is_open_closes_it(at_rest, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await to_p(pilot)
        await until(pilot, "ESC=Leave Closed")
        await pilot.press(*"right", "enter")
        await until(pilot, "this system?")
        await pilot.press("f3")
        await until(pilot, "has not finished")
        await pilot.press("f3")
        await until(pilot, "being restarted")
    assert at_rest == ["opened", "/dev/vda3", "closed"]


async def test_the_wizard_on_the_medium_looks_at_the_machine_behind_its_first_page(tmp_path):
    surveys = iter([errors.Unsupported("The root lies on ZFS."), SURVEY])

    def look(**_):
        if isinstance(found := next(surveys), Exception):
            raise found
        return found

    app = prepare.PrepareApp(preparation(), None, look, tick=NEVER)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "The root lies on ZFS.")
        await pilot.press("enter")
        await until(pilot, "press N")


async def test_a_key_without_a_disk_says_so_and_a_disk_is_noticed_by_itself(tmp_path):
    drive = []

    def find_sets():
        if not drive:
            raise errors.NoAsrDisk("Setup could not find an ASR disk in any drive.")
        return tuple(drive)

    async with recover_app(boot_recovery(find_sets=find_sets), tmp_path, tick=0.05).run_test(size=(80, 25)) as pilot:
        await insert_disk(pilot)
        await pilot.press("space")
        await until(pilot, "could not find an ASR disk")
        await pilot.press("enter")
        await until(pilot, "Press any key when ready")
        drive.append(DISK)
        await until(pilot, "An ASR disk was found: floppy disk drive A:")


async def test_esc_goes_back_from_the_disk_prompt_and_from_its_error(tmp_path):
    story = boot_recovery(find_sets=raises(errors.NoAsrDisk("Setup could not find an ASR disk in any drive.")))
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await insert_disk(pilot)
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
        await pilot.press("f2")
        await until(pilot, "Press any key")
        await pilot.press("space")
        await until(pilot, "could not find")
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")


async def test_of_several_sets_nothing_is_chosen_by_itself(tmp_path):
    taken = []

    def checks(disk, **_):
        taken.append(disk)
        return iter([Check("Firmware")])

    story = boot_recovery(find_sets=lambda: (DISK, OTHER), checks=checks,
                          match_disks=raises(errors.TooFewDisks("None.")))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "Which computer?")
        await asyncio.sleep(0.3)
        assert taken == []
        await until(pilot, "Computer     sample")
        await pilot.press("down")
        await until(pilot, "Computer     web2")
        assert_canvas(pilot.app)
        await pilot.press("escape")
        await until(pilot, "Welcome to Setup")
        await pilot.press("f2")
        await until(pilot, "Which computer?")
        await pilot.press("down", "enter")
        await until(pilot, "None.")
    assert taken == [OTHER]


async def test_a_lost_disk_is_replaced_by_the_copy_in_a_backup_that_a_person_chooses(tmp_path):
    copy = AsrDisk("", "/sample.tar.zst on BACKUP (/dev/vdb)", SET)
    copies, taken = [], []
    story = boot_recovery(
        find_sets=raises(errors.NoAsrDisk("Setup could not find an ASR disk in any drive.")),
        find_copies=lambda: tuple(copies), checks=lambda disk, **_: taken.append(disk) or iter([Check("Firmware")]),
        match_disks=raises(errors.TooFewDisks("None.")))
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await insert_disk(pilot)
        await pilot.press("space")
        await until(pilot, "U=Use Copy")
        await pilot.press("u")
        await until(pilot, "No backup of an ASR set was found")
        copies.append(copy)
        await pilot.press("enter")
        await until(pilot, "Press any key when ready")
        await pilot.press("space")
        await until(pilot, "U=Use Copy")
        await pilot.press("u")
        await until(pilot, "Use the copy in which backup?")
        assert_canvas(pilot.app)
        assert "BACKUP (/dev/vdb) │" in screen_text(pilot.app)
        await pilot.press("enter")
        await until(pilot, "Firmware ...")
    assert taken == [copy]


async def test_a_lost_disks_copy_is_in_a_backup_on_the_network(tmp_path):
    taken, looked = [], []

    def copies_at(place):
        looked.append(place)
        if len(looked) == 1:
            raise errors.NetworkPlaceFailed("The server nas does not answer.")
        return (AsrDisk("", FOUND_ON_NAS.place, ON_NAS),)

    story = boot_recovery(
        find_sets=raises(errors.NoAsrDisk("Setup could not find an ASR disk in any drive.")), find_copies=lambda: (),
        copies_at=copies_at, checks=lambda disk, **_: taken.append(disk.set) or iter([Check("Firmware")]))
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await insert_disk(pilot)
        await pilot.press("space")
        await until(pilot, "U=Use Copy")
        await pilot.press("u")
        await until(pilot, "No backup of an ASR set was found")
        await pilot.press("b")
        await until(pilot, "ENTER=Continue")
        pilot.app.screen.query_one(Input).value = "nfs://nas/export"
        await pilot.press("enter")
        await until(pilot, "The server nas does not answer.")
        await pilot.press("enter")
        await until(pilot, "Use the copy in which backup?")
        await pilot.press("enter")
        await until(pilot, "Firmware ...")
    assert taken == [ON_NAS]
    assert looked == ["nfs://nas/export"] * 2


async def test_a_damaged_disk_is_reported_without_a_key(tmp_path):
    story = boot_recovery(find_sets=raises(errors.DamagedSif("The file ASR.SIF is damaged.")))
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "ASR-011")


async def test_what_is_typed_and_corrected_in_a_hurry_stays_in_order(tmp_path):
    story = preparation(find_places=lambda survey: ())
    async with prepare.PrepareApp(story, SURVEY).run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        for name in "x", "y", "backspace", "backspace", "a", "b", "left", "c", "home", "d", "end", "e":
            character = name if len(name) == 1 else None
            pilot.app.post_message(events.Key(name, character))
        await until(pilot, "dacbe")
        for name in "tab", "f", "g":
            pilot.app.post_message(events.Key(name, name if len(name) == 1 else "\t"))
        await until(pilot, "│ fg ")


async def test_a_failed_check_stops_before_the_first_write_and_is_repeated_on_enter(tmp_path):
    results = [Check("Hard disks", errors.DiskTooSmall("Disk 0 needs more.")), Check("Hard disks")]
    story = boot_recovery(checks=lambda disk, **_: iter([results.pop(0)]), recover=None)
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await insert_disk(pilot)
        await pilot.press("space")
        await until(pilot, "Disk 0 needs more.")
        await pilot.press("enter")
        await until(pilot, "Hard disks ......")
    assert results == []


async def test_without_its_backup_nothing_is_formatted_until_f8(tmp_path):
    written = []

    def checks(disk, *, without_backup):
        missing = errors.BackupNotFound("The backup was not found.")
        yield Check("Backup of this set", None if without_backup else missing)

    story = boot_recovery(checks=checks, recover=lambda disk, match, secrets: working(outcome=written.append(match)))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "press F8")
        await pilot.press("enter", "space")
        await until(pilot, "press F8")
        assert written == []
        await pilot.press("f8")
        await until(pilot, "being restarted")
    assert len(written) == 1


async def test_a_saved_header_wants_one_of_its_passphrases(tmp_path):
    given = []
    story = boot_recovery(locks=lambda disk: (SAVED,), opens=lambda lock, passphrase: passphrase == b"right one",
                          recover=lambda disk, match, secrets: working(outcome=given.append(secrets)))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "header that was saved")
        await pilot.press("enter")
        await until(pilot, "Type the passphrase, then")
        await pilot.press(*"wrong", "enter")
        await until(pilot, "does not open the volume")
        assert "wrong" not in screen_text(pilot.app)
        await pilot.press(*"right", "space", *"one", "f7")
        await until(pilot, "right one")
        assert given == []
        await pilot.press("enter")
        await until(pilot, "being restarted")
    assert given == [{"c1": b"right one"}]


@pytest.mark.parametrize(("keys", "tried"), [((*"good", "enter"), [b"good"]), (("escape",), [])])
async def test_a_server_with_saved_headers_is_asked_before_they_are_needed(keys, tried, nas, tmp_path):
    opened = []
    story = boot_recovery(server_to_ask=lambda disk: NAS, opens=lambda lock, passphrase: True,
                          locks=lambda disk: opened.append(list(nas)) or (SAVED,))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "on a server that wants a password")
        assert_canvas(pilot.app)
        await pilot.press(*keys)
        await until(pilot, "header that was saved")
    assert opened == [tried]


async def test_a_new_header_wants_its_passphrase_twice(tmp_path):
    given, renewed = [], []
    story = boot_recovery(locks=lambda disk: (SAVED,), opens=lambda lock, passphrase: False, renew=renewed.append,
                          recover=lambda disk, match, secrets: working(outcome=given.append(secrets)))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "F8=New Header")
        await pilot.press("f8")
        await until(pilot, "New passphrase, twice")
        await pilot.press(*"one", "enter", *"other", "enter")
        await until(pilot, "not the same")
        assert given == []
        await pilot.press(*"one", "enter", *"one", "enter")
        await until(pilot, "being restarted")
    assert renewed == [SAVED]
    assert given == [{"c1": b"one"}]


async def test_the_wizard_asks_for_the_passphrase_before_anything_counts_down(tmp_path):
    given = []
    story = os_restore(locks=lambda set: (SAVED,), opens=lambda set, lock, secrets, passphrase: passphrase == b"good",
                       restore=lambda set, backup, secrets: working(outcome=given.append(secrets) or RECOVERED))
    async with restore_app(story, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "sda3_crypt")
        await asyncio.sleep(0.3)
        await pilot.press(*"good", "enter")
        await until(pilot, "being restarted")
    assert given == [{"c1": b"good"}]


async def test_what_a_provider_must_be_told_is_asked_for_in_each_attempt(tmp_path):
    given, asked = [], []
    set = replace(SET, provider=ProviderReference("restic"))

    def questions(set, backup, secrets=None):
        asked.append(secrets)
        return {} if (secrets or {}).get("provider/password") == b"good" else {"provider/password": "The password"}

    def restored(set, backup, secrets):
        given.append(dict(secrets))
        yield RESTORING
        if len(given) == 1:
            raise errors.ProviderFailed("The provider restic could not do its restore: the line is down")
        return RECOVERED

    story = os_restore(pending_set=lambda: set, questions=questions, restore=restored, locks=lambda set: (SAVED,),
                       opens=lambda set, lock, secrets, passphrase: True)
    async with restore_app(story, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "sda3_crypt")
        await pilot.press(*"disk", "enter")
        await until(pilot, "Needed       The password")
        await pilot.press(*"bad", "enter")
        await until(pilot, "This does not open the backup.")
        await pilot.press(*"good", "enter")
        await until(pilot, "the line is down")
        assert "NOT been recovered" in screen_text(pilot.app)
        await pilot.press("enter")
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "Needed       The password")
        await pilot.press(*"good", "enter")
        await until(pilot, "F=Finish")
        await pilot.press("f")
        await until(pilot, "being restarted")
    assert given == [{"c1": b"disk", "provider/password": b"good"}] * 2
    assert asked.count(None) == 2


async def test_a_disk_with_other_content_waits_for_f8(tmp_path):
    written = []
    story = boot_recovery(match_disks=lambda disk: Match((FOREIGN,), LAYOUT),
                          recover=lambda disk, match, secrets: working(outcome=written.append(match)))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "WILL BE LOST")
        await pilot.press("enter", "space", "y")
        await asyncio.sleep(0.2)
        await until(pilot, "WILL BE LOST")
        assert written == []
        await pilot.press("f8")
        await until(pilot, "being restarted")
    assert len(written) == 1


async def test_recovery_that_is_under_way_when_the_console_comes_back_is_shown_to_its_end(tmp_path):
    go_on = threading.Event()

    def under_way():
        yield COPYING
        go_on.wait(60)

    app = recover_app(boot_recovery(under_way=under_way, find_set=raises(AssertionError)), tmp_path)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Copying: root.squashfs")
        go_on.set()
        await until(pilot, "Your computer will reboot")


async def test_recovery_that_failed_while_no_console_was_there_says_that_the_disks_were_changed(tmp_path):
    story = boot_recovery(under_way=lambda: working(COPYING, errors.CommandFailed("mkfs.ext4 failed")))
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "mkfs.ext4 failed")
        assert "The disks were already changed." in screen_text(pilot.app)
        await pilot.press("enter")
        await until(pilot, "Press F6")


async def test_a_console_that_comes_back_goes_on_where_the_technician_was(tmp_path):
    no_disk = raises(errors.NoAsrDisk("Setup could not find an ASR disk in any drive."))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
    story = boot_recovery(find_sets=no_disk)
    async with recover_app(story, tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Welcome to Setup")
        await pilot.press("f2")
        await until(pilot, "Press any key when ready")
    story = boot_recovery(recover=lambda *_: working(COPYING, errors.CommandFailed("mkfs.ext4 failed")))
    async with recover_app(story, tmp_path, tick=0.01).run_test(size=(80, 25)) as pilot:
        await until(pilot, "mkfs.ext4 failed")
    async with recover_app(boot_recovery(find_sets=no_disk), tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press any key when ready")
        await pilot.press("space")
        await until(pilot, "could not find an ASR disk")
        assert "Nothing was changed" not in screen_text(pilot.app)


async def test_a_restore_that_is_under_way_asks_nothing_when_the_console_comes_back():
    story = os_restore(under_way=lambda: working(RESTORING, outcome=RECOVERED), locks=raises(AssertionError),
                       find_backup=raises(AssertionError))
    async with restore_app(story, tick=NEVER).run_test(size=(80, 25)) as pilot:
        await until(pilot, "has been recovered")


@pytest.mark.parametrize(("error", "seen"), [
    (errors.CommandFailed("mkfs.ext4 failed: Input/output error"), "mkfs.ext4 failed: Input/output error"),
    (errors.ToolMissing("The program sfdisk is not on this system."), "The program sfdisk is not on this system."),
    (ZeroDivisionError("division by zero"), "unexpected error"),
])
async def test_a_failure_while_disks_are_written_is_never_a_success(error, seen, tmp_path):
    story = boot_recovery(recover=lambda disk, match, secrets: working(FORMATTING, error))
    async with recover_app(story, tmp_path, tick=0.001).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, seen)
        await asyncio.sleep(0.1)
        shown = screen_text(pilot.app)
        assert "completed" not in shown
        assert "Traceback" not in shown
        assert "Nothing was changed" not in shown
    assert story.restart.times == 0
    assert type(error).__name__ in bootenv.run.LOG.read_text() or error.code in bootenv.run.LOG.read_text()


# OS restore

async def test_os_restore_goes_through_by_itself_and_restarts_once():
    app = restore_app(os_restore(), tick=0.001)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "being restarted")
        async with asyncio.timeout(10):
            while not app.story.restart.times:
                await asyncio.sleep(0.02)
    assert app.story.restart.times == 1


async def test_any_other_key_stops_the_ninety_seconds_and_n_goes_on():
    async with restore_app(os_restore(), tick=0.02).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Seconds left")
        await pilot.press("x")
        await until(pilot, "The wizard waits for you")
        await asyncio.sleep(0.1)
        await until(pilot, "The wizard waits for you")
        await pilot.press("n")
        await until(pilot, "The backup was found.")
        await asyncio.sleep(0.4)                       # nor does a later page go on by itself now
        await pilot.press("n")
        await until(pilot, "press F")
        await pilot.press("escape")
        await until(pilot, "Data Recovery Source")


async def test_the_ninety_seconds_begin_when_every_check_is_green():
    missing = [Check("Backup of this set", errors.BackupNotFound("The backup is not here."))]
    story = os_restore(checks=lambda set: iter(missing.copy() or [Check("Backup of this set")]))
    async with restore_app(story, tick=0.02).run_test(size=(80, 25)) as pilot:
        await until(pilot, "The backup is not here.")
        assert "Seconds left" not in screen_text(pilot.app)
        missing.clear()                                # the disk is connected: the wizard looks again by itself
        await until(pilot, "Seconds left")


@pytest.fixture
def nas(monkeypatch):
    """A server whose password is "good"; what was tried."""
    tried = []

    def opens(place, password):
        assert place == NAS
        tried.append(password)
        return password == b"good"

    monkeypatch.setattr(bootenv_network, "opens", opens)
    return tried


def wants_password(tried, result):
    """A look that wants the password of NAS until it was tried with success."""
    def look(*_):
        if tried[-1:] != [b"good"]:
            raise errors.PasswordWanted("nas wants the password of ann.", place=NAS)
        return result
    return look


async def test_a_restore_from_a_server_waits_for_its_password_and_then_for_nobody(nas):
    story = os_restore(pending_set=lambda: ON_NAS, server_to_ask=lambda set: None if nas[-1:] == [b"good"] else NAS)
    async with restore_app(story, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "smb://ann@nas/backups/servers")
        await asyncio.sleep(0.3)
        await pilot.press(*"bad", "enter")
        await until(pilot, "The server does not accept this")
        assert story.restart.times == 0
        await pilot.press(*"good", "enter")
        await until(pilot, "being restarted")
    assert nas == [b"bad", b"good"]


async def test_a_server_without_a_password_is_restored_from_by_nobody():
    async with restore_app(os_restore(pending_set=lambda: ON_NAS), tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "being restarted")


async def test_a_server_that_is_gone_is_tried_again_or_another_place_is_named(nas, monkeypatch):
    gone = errors.NetworkPlaceFailed("The server nas does not answer.", hint="Look at its cable.")
    monkeypatch.setattr(bootenv_network, "opens", raises(gone))
    named = []
    story = os_restore(
        pending_set=lambda: ON_NAS, server_to_ask=lambda set: NAS,
        checks=lambda set: iter([Check("Backup of this set", gone)]),
        open_backup=lambda path, set: named.append(path) or replace(FOUND_ON_NAS, place=path))
    async with restore_app(story, tick=NEVER).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Password:")
        await pilot.press(*"good", "enter")
        await until(pilot, "Error ASR-034")
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press(*"good", "enter")
        await until(pilot, "Error ASR-034")
        await pilot.press("b")
        await until(pilot, "The wizard looks again")
        await pilot.press("b")
        await until(pilot, "Browse for the backup")
        assert NAS.url in screen_text(pilot.app)
        pilot.app.screen.query_one(Input).value = "nfs://other/backups"
        await pilot.press("enter")
        await until(pilot, "Found at     nfs://other/backups")
    assert named == ["nfs://other/backups"]


async def test_an_address_that_is_browsed_for_may_want_a_password(nas):
    story = os_restore(find_backup=raises(errors.BackupNotFound("It is on none of the disks.")),
                       open_backup=wants_password(nas, FOUND_ON_NAS))
    async with restore_app(story, tick=NEVER).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Seconds left")
        await pilot.press("n")
        await until(pilot, "It is on none of the disks.")
        await pilot.press("b")
        await until(pilot, "Browse for the backup")
        pilot.app.screen.query_one(Input).value = NAS.url
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press("escape")
        await until(pilot, "Error ASR-036")
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press(*"good", "enter")
        await until(pilot, f"Found at     {FOUND_ON_NAS.place}")


async def test_a_backup_that_is_not_found_can_be_named():
    story = os_restore(find_backup=raises(errors.BackupNotFound("It is on none of the disks.")),
                       open_backup=lambda path, set: FoundBackup(path, path, set))
    async with restore_app(story, tick=NEVER).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Seconds left")
        await pilot.press("n")
        await until(pilot, "It is on none of the disks.")
        await pilot.press("b")
        await until(pilot, "Browse for the backup")
        pilot.app.screen.query_one(Input).value = "/mnt/moved.tar.zst"
        await pilot.press("enter")
        await until(pilot, "Found at     /mnt/moved.tar.zst")


async def test_another_sets_backup_is_refused():
    story = os_restore(find_backup=raises(errors.BackupNotFound("It is on none of the disks.")),
                       open_backup=raises(errors.OtherSet("The backup belongs to another ASR set.")))
    async with restore_app(story, tick=NEVER).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Seconds left")
        await pilot.press("n")
        await until(pilot, "It is on none of the disks.")
        await pilot.press("b")
        await until(pilot, "Browse for the backup")
        await pilot.press("enter")
        await until(pilot, "belongs to another ASR set")


@pytest.mark.parametrize("error", [errors.DamagedBackup("Nothing can be read."), OSError("disk is gone")])
async def test_a_restore_that_fails_waits_for_a_key_and_says_so(error):
    story = os_restore(restore=lambda set, backup, secrets: working(RESTORING, error))
    async with restore_app(story, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "NOT been recovered")
        await asyncio.sleep(0.1)
        assert "has been recovered" not in screen_text(pilot.app)
        assert story.restart.times == 0
        await pilot.press("enter")
        await until(pilot, "Data Recovery Source")


async def test_a_result_that_is_no_success_waits_for_a_key():
    story = os_restore(restore=lambda set, backup, secrets: working(outcome=replace(RECOVERED, result="failed")))
    async with restore_app(story, tick=0.001).run_test(size=(80, 25)) as pilot:
        await until(pilot, "NOT been recovered")
        await asyncio.sleep(0.1)
        assert story.restart.times == 0
        await pilot.press("enter")
        await until(pilot, "being restarted")


async def test_an_arrow_key_stops_the_reboot_and_moves_the_list_of_differences():
    result = restore.Result(SET, replace(RECOVERED, result="differences", differences=DIFFERENCES))
    async with OnePage(result, tick=0.1).run_test(size=(80, 25)) as pilot:
        await until(pilot, "8 more below")
        await pilot.press("down")
        await until(pilot, "To restart your computer, press ENTER.")
        assert "7 more below" in screen_text(pilot.app)
        assert "1 more above" in screen_text(pilot.app)
        await pilot.press("end")
        assert "more below" not in screen_text(pilot.app)


# Long work

async def test_a_flood_of_progress_is_drawn_ten_times_a_second_and_no_difference_is_lost(monkeypatch):
    drawn = []
    show = Gauge.show
    monkeypatch.setattr(Gauge, "show", lambda self, *args: drawn.append(args) or show(self, *args))

    def flood():
        for n in range(20000):
            yield replace(RESTORING, done=n, total=20000)
            if n % 100 == 0:
                yield Difference(str(n), "why")
        return RECOVERED

    app = restore_app(os_restore(restore=lambda set, backup, secrets: flood()), tick=0.001)
    async with app.run_test(size=(80, 25)) as pilot:
        pages = []
        monkeypatch.setattr(app, "perform", lambda page, events: pages.append(page) or SetupApp.perform(
            app, page, events))
        await until(pilot, "being restarted")
    assert len(pages[0].differences) == 200
    assert len([args for args in drawn if args[0] == "Progress"]) < 20


async def test_work_goes_on_under_help_and_what_comes_next_is_seen(tmp_path):
    go_on = threading.Event()

    def slow(disk, match, secrets):
        yield COPYING
        assert go_on.wait(10)

    async with recover_app(boot_recovery(recover=slow), tmp_path, tick=0.01).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f2")
        await until(pilot, "Copying: root.squashfs")
        await pilot.press("f1")
        await until(pilot, "Should the power fail")
        go_on.set()
        await until(pilot, "being restarted")


async def test_a_count_down_waits_while_help_is_read():
    async with OnePage(recover.Reboot(), tick=0.1).run_test(size=(80, 25)) as pilot:
        await until(pilot, "will reboot")
        await pilot.press("f1")
        await until(pilot, "Help")
        left = pilot.app.page.seconds
        await asyncio.sleep(0.4)
        assert pilot.app.page.seconds == left > 0


# Keys of every page

async def test_f3_asks_and_restarts_once(tmp_path):
    app = recover_app(boot_recovery(), tmp_path)
    async with app.run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("f3")
        await until(pilot, "has not finished")
        assert_canvas(app)
        await pilot.press("enter")
        await until(pilot, "F2=ASR")
        assert app.story.restart.times == 0
        await pilot.press("f3")
        await until(pilot, "has not finished")
        await pilot.press("f3")
        await until(pilot, "being restarted")
    assert app.story.restart.times == 1


@pytest.fixture
def layouts(monkeypatch, tmp_path):
    """A medium with three keyboard layouts; which of them loadkeys was called for."""
    for name in ("qwertz/de-latin1", "qwertz/de-latin1-nodeadkeys", "qwerty/us"):
        path = tmp_path / "keymaps" / f"{name}.kmap.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    loaded = []
    monkeypatch.setattr(keymap, "KEYMAPS", tmp_path / "keymaps")
    monkeypatch.setattr(keymap, "CHOSEN", tmp_path / "chosen")
    monkeypatch.setattr(keymap, "run", lambda argv: loaded.append(argv[-1]))
    return loaded


async def test_f4_chooses_the_keyboard_on_any_page_and_the_count_down_waits(layouts, tmp_path):
    async with recover_app(boot_recovery(), tmp_path, tick=0.2).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press("f4")
        await until(pilot, "Which layout")
        assert_canvas(pilot.app)
        page, left = pilot.app.page, pilot.app.page.seconds
        await asyncio.sleep(2.7)                       # in which both prompts would be over
        assert (pilot.app.page, page.seconds) == (page, left)
        await pilot.press("d", "d", "enter")           # of the two, the second
        await until(pilot, "Welcome to Setup")
    assert layouts == ["de-latin1-nodeadkeys"]
    assert keymap.chosen() == "de-latin1-nodeadkeys"


async def test_f9_sets_the_address_on_any_page(single_files, monkeypatch, golden, tmp_path):
    told = []

    def set_address(said):
        told.append(said)
        if "/" not in said:
            raise errors.NetworkPlaceFailed(f"{said!r} is no address with its network's length.", hint="Such as 1/2.")

    monkeypatch.setattr(bootenv_network, "set_address", set_address)
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await welcome(pilot)
        await pilot.press("r", "f9")
        await until(pilot, "ENTER=Set")
        golden(SCREENS / "28-address.txt", screen_text(pilot.app))
        assert_canvas(pilot.app)
        await pilot.press(*"192.0.2.9", "enter")
        await until(pilot, "is no address with")
        await pilot.press(*"/24", "space", *"192.0.2.1", "enter")
        await until(pilot, "from which backup")
        await pilot.press("f9", "escape")
        await until(pilot, "from which backup")
    assert told == ["192.0.2.9", "192.0.2.9/24 192.0.2.1"]


async def test_esc_keeps_the_keyboard_as_it_is(layouts, tmp_path):
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press("f4", "f4")                  # a second one closes it
        await until(pilot, "Press F6")
        await pilot.press("f4")
        await until(pilot, "Which layout")
        await pilot.press("d", "escape")
        await until(pilot, "Press F6")
    assert layouts == []
    assert keymap.chosen() == ""


async def test_a_keyboard_that_the_kernel_refuses_says_so(layouts, monkeypatch, tmp_path):
    monkeypatch.setattr(keymap, "run", raises(errors.CommandFailed("loadkeys failed: no console")))
    async with recover_app(boot_recovery(), tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Press F6")
        await pilot.press("f4")
        await until(pilot, "Which layout")
        await pilot.press("enter")
        await until(pilot, "loadkeys failed")


def test_layouts_have_their_languages(layouts):
    assert [(k.name, k.language) for k in keymap.keymaps()] == [
        ("de-latin1", "German"), ("de-latin1-nodeadkeys", "German"), ("us", "American")]
    assert keymap._language("dvorak-fr") == "Dvorak"
    assert keymap._language("fr_CH-latin1") == "Swiss French"
    assert keymap._language("hebrew") == ""
    with pytest.raises(errors.Unsupported, match="no keyboard layout xx"):
        keymap.choose("xx")


async def test_preparing_changes_no_keyboard_of_a_running_system(layouts):
    async with prepare.PrepareApp(preparation(), SURVEY).run_test(size=(80, 25)) as pilot:
        await until(pilot, "NOT protected")
        await pilot.press("f4")
        await until(pilot, "NOT protected")
        assert len(pilot.app.screen_stack) == 2


async def test_ctrl_c_and_ctrl_q_do_not_quit_and_a_line_feed_is_enter():
    app = OnePage(screens.Notice("Heading", "Text"))
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Heading")
        await pilot.press("ctrl+c", "ctrl+q", "ctrl+z")
        assert app.is_running
        assert not hasattr(app, "said")
        await pilot.press("ctrl+j")
        await until(pilot, "being restarted")


async def test_d_shows_the_end_of_the_log():
    bootenv.run.log(*(f"line {n}" for n in range(100)), "x" * 100)
    async with OnePage(recover.Welcome()).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Welcome")
        await pilot.press("D")
        await until(pilot, "line 99")
        assert_canvas(pilot.app)
        await pilot.press("home")
        await until(pilot, "line 0")
        await pilot.press("escape")
        await until(pilot, "Welcome")


async def test_s_opens_a_shell_beside_the_console_but_only_where_there_is_tmux(monkeypatch):
    started = []
    monkeypatch.setattr(bootenv.run, "run", started.append)
    async with OnePage(recover.Welcome()).run_test(size=(80, 25)) as pilot:
        await until(pilot, "S=Shell")
        await pilot.press("s")
        await pilot.pause()
    assert started[0][:4] == ("tmux", "-S", "/run/asr/tmux-0/default", "new-window")
    monkeypatch.setattr(bootenv.run, "run", raises(errors.CommandFailed("tmux failed: no server")))
    async with OnePage(recover.Welcome()).run_test(size=(80, 25)) as pilot:
        await until(pilot, "S=Shell")
        await pilot.press("s")
        await until(pilot, "tmux failed: no server")
    monkeypatch.delenv("TMUX")
    async with OnePage(recover.Welcome()).run_test(size=(80, 25)) as pilot:
        await until(pilot, "Welcome")
        assert "hell" not in screen_text(pilot.app)


# Terminals

async def test_a_terminal_of_24_lines_loses_the_first_row():
    async with OnePage(recover.Reboot()).run_test(size=(80, 24)) as pilot:
        await until(pilot, "15 seconds")
        assert screen_text(pilot.app).splitlines() == (SCREENS / "10-reboot.txt").read_text().splitlines()[1:]


async def test_a_larger_terminal_has_the_same_canvas_in_its_middle():
    async with OnePage(recover.Reboot()).run_test(size=(120, 41)) as pilot:
        await until(pilot, "15 seconds")
        rows = [line[20:] for line in screen_text(pilot.app).splitlines()[8:33]]
        assert rows == (SCREENS / "10-reboot.txt").read_text().splitlines()


async def test_no_glyphs_and_no_colours_leave_a_screen_that_can_be_read(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("ASR_GLYPHS", "ascii")
    page = at_work(recover.Preparing(), COPYING)
    async with OnePage(page).run_test(size=(80, 25)) as pilot:
        await until(pilot, "37%")
        shown = screen_text(pilot.app)
        assert shown.isascii()
        assert "#" * 19 in shown
        rows = list(cells(pilot.app))
    assert all(style.reverse and not style.bgcolor for _, style in rows[24])
    assert not any(style.reverse for row in rows[:24] for _, style in row)


def test_half_blocks_move_in_half_cells():
    assert [half_blocks(n / 8, 4) for n in (0, 1, 2, 8)] == ["    ", "▌   ", "█   ", "████"]


def test_what_a_text_console_cannot_draw_becomes_a_question_mark():
    assert drawable("naïve  € 漢 \udcff\x1b[0m\t│•█") == "na\xefve  ? ? ??[0m    │•█"


async def test_a_list_box_ends_where_its_lines_end():
    page = screens.Notice("Heading")
    page.content = lambda: [Listing([f"line {n}" for n in range(12)], height=7)]
    async with OnePage(page).run_test(size=(80, 25)) as pilot:
        await until(pilot, "7 more below")
        await pilot.press("pagedown", "pagedown", "pagedown")
        await until(pilot, "7 more above")
        assert "line 11" in screen_text(pilot.app)
        await pilot.press("pageup", "up")
        await until(pilot, "1 more above")


# Preparation

async def test_the_wizard_prepares_a_set_and_only_then_ends_with_0():
    app = prepare.PrepareApp(preparation(), SURVEY, tick=0.001)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "formatted diskette")
        await pilot.press("enter")
        await until(pilot, "label it as shown")
        await pilot.press("enter")
        await until(pilot, "NOT protected")
        await pilot.press("enter")
    assert app.return_code == 0


async def test_a_refused_destination_is_explained_on_the_page_that_asks():
    refused = errors.DestinationRefused("/home lies on /dev/vda, a disk that recovery will format.",
                                        hint="Choose a place on another disk or on the network.")
    app = prepare.PrepareApp(preparation(destination=raises(refused)), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "a disk that recovery will format")
        assert_canvas(app)


async def test_a_destination_that_wants_a_password_is_looked_at_again_when_it_was_said(nas):
    app = prepare.PrepareApp(preparation(destination=wants_password(nas, DESTINATION)), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        app.screen.query(Input).first().value = NAS.url
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press("escape")
        await until(pilot, f"│ {NAS.url} ")            # nothing that was typed is lost
        await pilot.press("enter")
        await until(pilot, "Password:")
        await pilot.press(*"bad", "enter")
        await until(pilot, "The server does not accept this")
        assert "bad" not in screen_text(app)
        await pilot.press(*"good", "enter")
        await until(pilot, "You have completed the wizard")


async def to_the_destination(pilot):
    await until(pilot, "press N")
    await pilot.press("n")
    await until(pilot, "Backup Destination")


async def test_the_largest_suitable_volume_is_filled_in_and_another_is_browsed_for():
    asked = []

    def destination(survey, place, name):
        asked.append((place, name))
        return DESTINATION

    app = prepare.PrepareApp(preparation(destination=destination), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        assert "│ /dev/sdb1 " in screen_text(app)
        await pilot.press("tab", *"monday", "f4")
        await until(pilot, "BACKUP")
        assert_canvas(app)
        await pilot.press("down", "down")
        await until(pilot, "formats it, and the backup with it")
        await pilot.press("enter")                     # what won't do can't be chosen
        await pilot.pause()
        await pilot.press("up", "enter")
        await until(pilot, "│ /mnt/server ")
        assert "│ monday " in screen_text(app)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("escape")
        await until(pilot, "│ monday ")                # nothing that was typed is lost
    assert asked == [("/mnt/server", "monday")]


async def test_what_may_lie_on_this_computers_disks_is_not_filled_in_and_said():
    doubted = Place("/home/ann/safe", "/srv/cipher", "fuse.gocryptfs", "", 90 << 30, 80 << 30)
    app = prepare.PrepareApp(preparation(find_places=lambda survey: (doubted, PLACES[1])), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        assert "│ /mnt/server " in screen_text(app)
        await pilot.press("f4")
        await until(pilot, "is not known to be elsewhere")


async def test_a_data_volume_is_added_and_the_machine_looked_at_anew():
    looked = []

    def look(add, provider):
        looked.append(add)
        return replace(SURVEY, left_out=(), more=(replace(SURVEY.more[0], added=True),))

    app = prepare.PrepareApp(preparation(), SURVEY, look)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "NOT protected")
        red = {style.color.number for row in list(cells(app))[16:20] for character, style in row if character.strip()}
        assert red == {9}, "what is not protected isn't red"
        await pilot.press("a")
        await until(pilot, "Data volumes")
        await pilot.press("space")
        await until(pilot, "* /srv/data")
        await pilot.press("enter")
        await until(pilot, "press N")
        assert "NOT protected" not in screen_text(app)
        await pilot.press("a")
        await until(pilot, "* /srv/data")
        await pilot.press("space", "escape")
        await until(pilot, "press N")
    assert looked == [("/srv/data",)]


async def test_the_backup_of_another_product_is_chosen_in_the_wizard():
    looked = []

    def look(add, provider):
        looked.append((add, provider))
        return replace(SURVEY, draft=replace(SURVEY.draft, provider=provider))

    told = Progress("Backing up files with restic...", 1, 2, "etc", files=1, total_files=2)
    story = preparation(prepare=lambda *_: working(told, NOT_COMPARED, outcome=SET))
    app = prepare.PrepareApp(story, SURVEY, look)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "P=Product")
        await pilot.press("p")
        await until(pilot, "restic")
        await pilot.press("escape")
        await until(pilot, "press N")
        await pilot.press("p")
        await until(pilot, "restic")
        await pilot.press("down", "enter")
        await until(pilot, "restic: its options")
        await pilot.press("escape")                    # nothing has changed
        await until(pilot, "press N")
        assert "Backup by" not in screen_text(app)
        await pilot.press("p")
        await until(pilot, "restic")
        await pilot.press("down", "enter")
        await until(pilot, "KEY=VALUE")
        await pilot.press(*"Bad=x", "enter")
        await until(pilot, "small letters")
        await pilot.press("escape")
        await until(pilot, "press N")
        await pilot.press("p")
        await until(pilot, "restic")
        await pilot.press("down", "enter")
        await until(pilot, "KEY=VALUE")
        await pilot.press(*"Bad", "enter")
        await until(pilot, "small letters")
        await pilot.press("enter")
        await until(pilot, "KEY=VALUE")                # with what was typed
        await pilot.press("backspace", "backspace", "backspace", *"password-file=/p tag=a", "enter")
        await until(pilot, "Backup by    restic")
        await pilot.press("n")
        await until(pilot, "Where should restic write it?")
        await pilot.press("enter")
        await until(pilot, "By           restic")
        await pilot.press("f")
        await until(pilot, "formatted diskette")
        await pilot.press("enter")
        await until(pilot, "label it as shown")
        await pilot.press("enter")
        await until(pilot, "does not say that it has read the backup back")
        assert "The backup and the ASR disk were read back" not in screen_text(app)
        await pilot.press("enter")
    assert app.return_code == 0
    assert looked == [([], ProviderReference("restic", {"password-file": "/p", "tag": "a"}))]


async def test_our_own_backup_is_chosen_again():
    app = prepare.PrepareApp(preparation(), BY_RESTIC, lambda add, provider: replace(
        SURVEY, draft=replace(SURVEY.draft, provider=provider)))
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Backup by    restic")
        await pilot.press("p")
        await until(pilot, "tar")
        await pilot.press("enter")
        await until(pilot, "NOT protected")
        assert "Backup by" not in screen_text(app)


def test_what_was_chosen_for_inclusion_keeps_providers_away():
    assert not prepare.Welcome(replace(SURVEY, include=("a",))).products


async def test_a_machine_that_cannot_be_recovered_with_a_volume_says_so_and_stays_as_it_was():
    app = prepare.PrepareApp(preparation(), SURVEY, raises(errors.Unsupported("/dev/vdc: ZFS")))
    app.look = lambda add, provider: raises(errors.Unsupported("/srv/data lies on ZFS."))()
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "NOT protected")
        await pilot.press("a")
        await until(pilot, "Data volumes")
        await pilot.press("space", "enter")
        await until(pilot, "/srv/data lies on ZFS.")
        await pilot.press("enter")
        await until(pilot, "* /srv/data")              # with what was marked
        await pilot.press("enter")
        await until(pilot, "/srv/data lies on ZFS.")
        await pilot.press("escape")
        await until(pilot, "NOT protected")


async def test_c_shows_the_verdict_of_each_device(golden):
    app = prepare.PrepareApp(preparation(), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "press N")
        await pilot.press("c")
        await until(pilot, "What recovery will make")
        assert_canvas(app)
        golden(SCREENS / "18-verdict.txt", screen_text(app))
        await pilot.press("escape")
        await until(pilot, "press N")


async def test_esc_cancels_the_backup_after_a_question_and_nothing_is_left_of_it():
    cleaned = []

    def endless(survey, destination, selection):
        try:
            while True:
                time.sleep(0.005)
                yield BACKING_UP
        finally:
            cleaned.append(True)

    app = prepare.PrepareApp(preparation(prepare=endless), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "37%")
        await pilot.press("escape")
        await until(pilot, "To cancel the backup, press F3.")
        assert_canvas(app)
        await pilot.press("enter")
        await until(pilot, "37%")
        assert cleaned == []
        await pilot.press("escape")
        await until(pilot, "To cancel the backup, press F3.")
        await pilot.press("f3")
        await until(pilot, "The backup was cancelled.")
        assert cleaned == [True]
        await pilot.press("enter")
        await until(pilot, "Backup Destination")
    assert not app.complete


async def test_the_report_is_read_and_saved():
    saved = []
    app = prepare.PrepareApp(preparation(save_report=lambda set, path: saved.append(path)), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "formatted diskette")
        await pilot.press("enter")
        await until(pilot, "label it as shown")
        await pilot.press("enter")
        await until(pilot, "R=Report")
        await pilot.press("r")
        await until(pilot, "line 3")
        await pilot.press("w")
        await until(pilot, "path of the file")
        await pilot.press(*"/x", "enter")
        await until(pilot, "The report was saved.")
        await pilot.press("enter")
        await until(pilot, "line 3")
        await pilot.press("escape")
        await until(pilot, "R=Report")
    assert saved == ["/x"]


async def test_quitting_during_the_backup_lets_it_clean_up_and_is_no_success():
    cleaned = []

    def endless(survey, destination, selection):
        try:
            for _ in range(2000):
                time.sleep(0.005)
                yield BACKING_UP
        finally:
            cleaned.append(True)

    app = prepare.PrepareApp(preparation(prepare=endless), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "37%")
        await pilot.press("f3")
        await until(pilot, "To continue, press ENTER")
        await pilot.press("f3")
        await pilot.pause(0.2)
    assert cleaned == [True]
    assert app.return_code == 1


async def to_the_diskette(pilot):
    await to_the_destination(pilot)
    await pilot.press("enter")
    await until(pilot, "press F")
    await pilot.press("f")
    await until(pilot, "formatted diskette")


async def test_a_disk_that_cannot_be_written_can_be_replaced_by_another():
    places = []

    def write_disk(set, place, **_):
        places.append(place)
        if place == "/dev/fd0":
            raise errors.AsrDiskUnwritable("/dev/fd0 could not be written.")
        yield Progress(f"Writing {place}", 1, 2)

    app = prepare.PrepareApp(preparation(write_disk=write_disk), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_diskette(pilot)
        await pilot.press("enter")
        await until(pilot, "/dev/fd0 could not be written.")
        await pilot.press("enter")                     # the next disk in the same drive
        await until(pilot, "Writing" if len(places) < 2 else "could not be written")
        await until(pilot, "/dev/fd0 could not be written.")
        await pilot.press("b")
        await until(pilot, "DataTraveler")
        await pilot.press("t")
        await until(pilot, "Another place")
        await pilot.press("escape")
        await until(pilot, "formatted diskette")
        await pilot.press("b")
        await until(pilot, "DataTraveler")
        await pilot.press("down", "enter")
        await until(pilot, "label it as shown")
    assert places[-1] == "/dev/sdc1"
    assert set(places[:-1]) == {"/dev/fd0"}


@pytest.mark.parametrize(("error", "key", "said"), [
    (errors.AsrDiskUnformatted("The disk is not formatted."), "f", {"agreed": False, "format": True}),
    (errors.AsrDiskNotBlank("It is not blank: letter.txt."), "f8", {"agreed": True, "format": False}),
])
async def test_a_disk_is_formatted_or_used_only_when_a_person_says_so(error, key, said):
    asked = []

    def write_disk(set, place, **agreed):
        asked.append(agreed)
        if not any(agreed.values()):
            raise error
        yield Progress(f"Writing {place}", 1, 2)

    app = prepare.PrepareApp(preparation(write_disk=write_disk), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_diskette(pilot)
        await pilot.press("enter")
        await until(pilot, error.message)
        other = {"f": "f8", "f8": "f"}[key]
        await pilot.press(other)                       # no answer to this question
        await pilot.pause()
        await until(pilot, error.message)
        await pilot.press(key)
        await until(pilot, "label it as shown")
    assert asked == [{"agreed": False, "format": False}, said]


async def test_without_a_floppy_drive_the_sticks_are_offered_at_once():
    drives = []
    app = prepare.PrepareApp(preparation(find_drives=lambda set: tuple(drives)), SURVEY)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_the_destination(pilot)
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "There is no floppy drive and no USB stick.")
        assert "ENTER=Choose" not in screen_text(app)
        drives.append(STICK)
        await pilot.press("f5")
        await until(pilot, "DataTraveler")
        await pilot.press("enter")
        await until(pilot, "label it as shown")


# The Backup or Restore Wizard

def documents(**changes):
    """bootenv.documents with nothing behind it."""
    return SimpleNamespace(**{
        "mine": lambda: ("/home/ann",), "everyones": lambda: ("/home", "/root"),
        "entries": lambda directory: BACKUP[directory],
        "destination": lambda place: (Path(place) / "files.tar.zst", ""),
        "select": counted,
        "back_up": lambda paths, path, selection: working(BACKING_UP, outcome=()),
    } | changes)


def backup_app(tmp_path, look=lambda: SURVEY, **changes):
    media = SimpleNamespace(**{"known": lambda: MEDIA, "forget": lambda: None,
                               "verify": lambda medium: working(BACKING_UP, outcome=DIFFERENCES[:1]),
                               "delete": Counted()} | {k: v for k, v in changes.items() if k in MANAGED})
    jobs = SimpleNamespace(**{"described": lambda: [], "job_from": lambda **said: said, "jobs": lambda: [],
                              "check_possible": lambda: None, "check_answer": lambda what, value: None,
                              "add_job": Counted(), "remove_job": Counted()}
                           | {k: v for k, v in changes.items() if k in SCHEDULED})
    more = {k: v for k, v in changes.items() if k not in (*MANAGED, *SCHEDULED)}
    return backup.BackupApp(preparation(), documents(**more), media, jobs, look, tmp_path / "config/asr.toml",
                            tick=0.001)


MANAGED, SCHEDULED = ("known", "forget", "verify", "delete"), (
    "described", "job_from", "jobs", "check_possible", "check_answer", "add_job", "remove_job")


async def test_all_information_on_this_computer_is_an_asr_set(tmp_path):
    app = backup_app(tmp_path)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "Welcome to the Backup or Restore Wizard")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press("1")
        await until(pilot, "NOT protected")
        assert not app.complete
        await pilot.press("n")
        await until(pilot, "Backup Destination")
        await pilot.press("enter")
        await until(pilot, "press F")
        await pilot.press("f")
        await until(pilot, "formatted diskette")
        await pilot.press("enter")
        await until(pilot, "label it as shown")
        await pilot.press("enter")
        await until(pilot, "NOT protected")
        await pilot.press("enter")
    assert app.return_code == 0


async def test_a_machine_that_cannot_be_surveyed_says_why_is_looked_at_again_or_the_wizard_goes_on(tmp_path):
    looked = []

    def look():
        looked.append("")
        raise errors.NeedsRoot("Preparing an ASR set needs root.", hint="Use sudo.")

    app = backup_app(tmp_path, look)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press("1")
        await until(pilot, "Preparing an ASR set needs root.")
        page = app.screen
        await pilot.press("enter")
        while app.screen is page or len(looked) < 2:
            await pilot.pause(0.02)
        await until(pilot, "Preparing an ASR set needs root.")
        await pilot.press("escape")
        await until(pilot, "Welcome to the Backup or Restore Wizard")


@pytest.mark.parametrize(("keys", "paths"), [
    (["2"], ["/home/ann"]), (["3"], ["/home", "/root"]), (["4", "space", "down", "space", "n"], ["/etc", "/home"])])
async def test_files_are_backed_up_by_each_of_the_other_choices(keys, paths, tmp_path):
    asked = []

    def back_up(paths, path, selection):
        asked.append((list(paths), path, selection))
        return working(BACKING_UP, outcome=DIFFERENCES[:1])

    app = backup_app(tmp_path, back_up=back_up)
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press(keys[0])
        if keys[1:]:
            await until(pilot, "vmlinuz")
            await pilot.press(*keys[1:-1])
            await until(pilot, "2 marked, 47 MB. To back up what is marked, press N.")
            await pilot.press(keys[-1])
        await until(pilot, "Where should the backup be written?")
        await pilot.press(*"/mnt", "enter")
        await until(pilot, "F=Finish")
        assert_canvas(app)
        await pilot.press("f")
        await until(pilot, "The backup is complete, with 1 difference.")
        await pilot.press("enter")
    assert asked == [(paths, Path("/mnt/files.tar.zst"), Selection(12, SIZES.get(paths[0], 7)))]
    assert app.return_code == 0


async def test_a_backup_of_files_that_fails_is_no_success(tmp_path):
    app = backup_app(tmp_path, back_up=lambda *_: working(BACKING_UP, errors.DestinationFull("It is full.")))
    async with app.run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press("2")
        await until(pilot, "Where should")
        await pilot.press(*"/mnt", "enter")
        await until(pilot, "F=Finish")
        await pilot.press("f")
        await until(pilot, "It is full.")
        await pilot.press("f3")
        await until(pilot, "has not finished")
        await pilot.press("f3")
        await pilot.pause(0.2)
    assert app.return_code == 1


async def test_the_mode_is_remembered(tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "[x] Always start in wizard mode")
        await pilot.press("w")
        await until(pilot, "[ ] Always start in wizard mode")
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "To prepare an ASR set")
        await pilot.press("w")
        await until(pilot, "[ ] Always start in wizard mode")
        await pilot.press("w")
        await until(pilot, "[x] Always start in wizard mode")
        await pilot.press("a")
        await until(pilot, "To prepare an ASR set")
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "[x] Always start in wizard mode")


async def test_files_are_restored_from_the_wizard_too(single_files, tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("r")
        await until(pilot, "from which backup")
        await pilot.press("escape")
        await until(pilot, "Welcome to the Backup or Restore Wizard")
    assert single_files == ["forgot"]


async def to_advanced_mode(pilot, tab):
    await until(pilot, "A=Advanced Mode")
    await pilot.press("a")
    await until(pilot, "[Welcome]")
    for name in ("[Backup]", "[Restore and Manage Media]", "[Schedule Jobs]"):
        if tab not in screen_text(pilot.app):
            await pilot.press("tab")
            await until(pilot, name)


async def test_tab_goes_round_the_tabs(tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await pilot.press("tab")
        await until(pilot, "[Welcome]")
        await pilot.press("w")
        await until(pilot, "Always start in wizard mode")


async def test_files_marked_on_the_backup_tab_are_backed_up(tmp_path):
    asked = []
    app = backup_app(tmp_path, back_up=lambda paths, path, _: asked.append(list(paths)) or working(outcome=()))
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Backup]")
        await until(pilot, "vmlinuz")
        await pilot.press("space")
        await until(pilot, "1 marked")
        await pilot.press("n")
        await until(pilot, "Where should")
        await pilot.press(*"/mnt", "enter")
        await until(pilot, "F=Finish")
        await pilot.press("f")
        await until(pilot, "The backup is complete.")
        await pilot.press("enter")
    assert asked == [["/etc"]]


async def test_a_backup_is_verified_and_what_is_damaged_is_named(tmp_path):
    verified = []

    def verify(medium):
        verified.append(medium)
        return working(BACKING_UP, outcome=DIFFERENCES[:1])

    async with backup_app(tmp_path, verify=verify).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Restore and Manage Media]")
        await until(pilot, "3 damaged")
        await pilot.press("down")
        await until(pilot, "on DATA (/dev/vdc)")
        await pilot.press("v")
        await until(pilot, "1 of its files is DAMAGED.")
        await pilot.press("enter")
        await until(pilot, "3 damaged")
    assert verified == [MEDIA[1]]


async def test_a_backup_is_removed_only_after_f8(tmp_path):
    deleted = []
    async with backup_app(tmp_path, delete=deleted.append).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Restore and Manage Media]")
        await until(pilot, "3 damaged")
        await pilot.press("x")
        await until(pilot, "Remove the backup of sample")
        await pilot.press("enter", "y", "escape")
        await until(pilot, "3 damaged")
        assert deleted == []
        await pilot.press("x")
        await until(pilot, "Remove the backup of sample")
        await pilot.press("f8")
        await until(pilot, "3 damaged")
    assert deleted == [MEDIA[0]]


async def test_files_are_restored_from_a_backup_on_the_media_tab(single_files, tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Restore and Manage Media]")
        await until(pilot, "3 damaged")
        await pilot.press("enter")
        await until(pilot, "vmlinuz")
        await pilot.press("space", "r")
        await until(pilot, "Where to?")
        await pilot.press(*"vda2", "enter")
        await until(pilot, "1 differences")
    assert single_files == [(FOUND.path, (b"etc",), "/run/asr/volumes/vda2")]


async def test_jobs_are_added_and_removed(tmp_path):
    jobs = []
    app = backup_app(tmp_path, described=lambda: [(JOB, "every Sunday at 03:00", "soon") for _ in jobs],
                     add_job=jobs.append, remove_job=lambda name: jobs.clear())
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await until(pilot, "No job is scheduled.")
        assert "X=Remove" not in screen_text(app)
        await pilot.press("n")
        for heading, typed in (("its name", ""), ("when?", ""), ("where is the backup", "/mnt"),
                               ("where is the ASR disk", "/disk"), ("how many", "")):
            await until(pilot, f"New job: {heading}")
            await pilot.press(*typed, "enter")
        await until(pilot, "every Sunday at 03:00")
        assert jobs == [{"name": "nightly", "when": "Sun 03:00", "to": "/mnt", "disk": "/disk", "keep": "4"}]
        await pilot.press("x")
        await until(pilot, "Remove the job nightly?")
        await pilot.press("f8")
        await until(pilot, "No job is scheduled.")


async def typed_into(pilot, heading, typed):
    """Waits for a question and types in the place of what is there."""
    await until(pilot, heading)
    pilot.app.screen.query_one(Input).value = typed
    await pilot.press("enter")


async def test_what_a_job_cannot_have_is_refused_at_once_and_asked_again(tmp_path):
    refused = []

    def check_answer(what, value):
        if "bad" in value:
            refused.append(what)
            raise errors.Unsupported(f"{value} will not do.")

    jobs = []
    app = backup_app(tmp_path, check_answer=check_answer, add_job=jobs.append)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await until(pilot, "No job")
        await pilot.press("n")
        await typed_into(pilot, "its name", "a bad name")
        await until(pilot, "a bad name will not do.")
        await pilot.press("enter")
        await until(pilot, "its name")
        assert app.screen.query_one(Input).value == "a bad name"
        await typed_into(pilot, "its name", "weekly")
        await typed_into(pilot, "when?", "bad")
        await until(pilot, "bad will not do.")
        await pilot.press("enter")
        await until(pilot, "when?")
        await pilot.press("escape")                    # to the question before, with what was typed
        await until(pilot, "its name")
        assert app.screen.query_one(Input).value == "weekly"
        await pilot.press("enter")
        for heading, typed in (("when?", "daily"), ("where is the backup", "/mnt"), ("where is the ASR disk", "/disk"),
                               ("how many", "3")):
            await typed_into(pilot, heading, typed)
        await until(pilot, "[Schedule Jobs]")
        assert jobs == [{"name": "weekly", "when": "daily", "to": "/mnt", "disk": "/disk", "keep": "3"}]
        await pilot.press("n")
        await typed_into(pilot, "its name", "bad")
        await until(pilot, "bad will not do.")
        await pilot.press("escape")
        await until(pilot, "[Schedule Jobs]")
    assert refused == ["name", "when", "name"]


async def test_a_job_that_systemd_does_not_take_keeps_what_was_typed(tmp_path):
    tried = []

    def add_job(job):
        tried.append(job)
        if len(tried) == 1:
            raise errors.CommandFailed("systemctl failed: it is not running")

    app = backup_app(tmp_path, add_job=add_job)
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await until(pilot, "No job")
        await pilot.press("n")
        for heading in ("its name", "when?", "where is the backup", "where is the ASR disk", "how many"):
            await typed_into(pilot, heading, "12")
        await until(pilot, "systemctl failed")
        await pilot.press("enter")
        await until(pilot, "how many")
        await pilot.press("enter")
        await until(pilot, "[Schedule Jobs]")
    assert tried == [dict.fromkeys(("name", "when", "to", "disk", "keep"), "12")] * 2


async def test_a_job_is_replaced_only_after_f8(tmp_path):
    app = backup_app(tmp_path, jobs=lambda: [JOB], described=lambda: [(JOB, "every Sunday at 03:00", "soon")])
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await until(pilot, "every Sunday")
        await pilot.press("n")
        await typed_into(pilot, "its name", "nightly")
        await until(pilot, "Replace the job nightly?")
        assert_canvas(app)
        await pilot.press("enter", "escape")
        await until(pilot, "its name")
        assert app.screen.query_one(Input).value == "nightly"
        await pilot.press("enter")
        await until(pilot, "Replace the job nightly?")
        await pilot.press("f8")
        await until(pilot, "when?")


async def test_who_cannot_add_a_job_is_told_before_anything_is_asked(tmp_path):
    app = backup_app(tmp_path, check_possible=raises(errors.NeedsRoot("Scheduling a job needs root.")))
    async with app.run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Schedule Jobs]")
        await until(pilot, "No job")
        await pilot.press("n")
        await until(pilot, "Scheduling a job needs root.")
        await pilot.press("escape")
        await until(pilot, "[Schedule Jobs]")


async def test_a_tab_that_failed_is_tried_again_with_enter_and_left_with_esc(tmp_path):
    answers = [errors.CommandFailed("lsblk failed"), MEDIA, errors.CommandFailed("lsblk failed")]

    def known():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with backup_app(tmp_path, known=known).run_test(size=(80, 25)) as pilot:
        await until(pilot, "A=Advanced Mode")
        await pilot.press("a")
        await until(pilot, "[Welcome]")
        await pilot.press("r")
        await until(pilot, "lsblk failed")
        await pilot.press("enter")
        await until(pilot, "3 damaged")
        await pilot.press("f5")
        await until(pilot, "lsblk failed")
        await pilot.press("escape")
        await until(pilot, "[Welcome]")


async def test_what_failed_on_a_tab_is_tried_again_with_enter(tmp_path):
    tried = []

    def verify(medium):
        tried.append(medium)
        return working(errors.DamagedBackup("The disk is gone.")) if len(tried) == 1 else working(outcome=())

    async with backup_app(tmp_path, verify=verify).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Restore and Manage Media]")
        await until(pilot, "3 damaged")
        await pilot.press("v")
        await until(pilot, "The disk is gone.")
        await pilot.press("enter")
        await until(pilot, "The backup is whole.")
    assert tried == [MEDIA[0]] * 2


async def test_marks_stay_when_the_person_goes_back_to_the_tree(tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press("4")
        await until(pilot, "vmlinuz")
        await pilot.press("space", "down", "space", "n")
        await until(pilot, "Where should the backup be written?")
        await pilot.press("escape")
        await until(pilot, "2 marked")
        await pilot.press("n")
        await until(pilot, "Where should the backup be written?")
        await pilot.press("escape")
        await until(pilot, "2 marked")
        await pilot.press("escape")
        await until(pilot, "Welcome to the Backup or Restore Wizard")


async def test_marks_on_the_backup_tab_stay(tmp_path):
    async with backup_app(tmp_path).run_test(size=(80, 25)) as pilot:
        await to_advanced_mode(pilot, "[Backup]")
        await until(pilot, "vmlinuz")
        await pilot.press("space")
        await until(pilot, "1 marked")
        await pilot.press("n")
        await until(pilot, "Where should")
        await pilot.press("escape")
        await until(pilot, "1 marked")
        await pilot.press("tab")
        await until(pilot, "[Restore and Manage Media]")
        await pilot.press("tab")
        await until(pilot, "[Schedule Jobs]")
        await pilot.press("tab")
        await until(pilot, "[Welcome]")
        await pilot.press("b")
        await until(pilot, "1 marked")


async def test_what_is_not_there_to_be_backed_up_is_said_and_looked_for_again(tmp_path):
    homes = [errors.NothingToBackUp("Your home folder /home/ann is not there."), ("/home/ann",)]

    def mine():
        home = homes.pop(0)
        if isinstance(home, Exception):
            raise home
        return home

    async with backup_app(tmp_path, mine=mine).run_test(size=(80, 25)) as pilot:
        await until(pilot, "N=Next")
        await pilot.press("n")
        await until(pilot, "What do you want to do?")
        await pilot.press("b")
        await until(pilot, "ASR set")
        await pilot.press("2")
        await until(pilot, "Your home folder /home/ann is not there.")
        await pilot.press("enter")
        await until(pilot, "Where should the backup be written?")


def test_asr_alone_without_a_terminal_prints_its_commands(capsys):
    assert main([]) == 1
    assert "prepare" in capsys.readouterr().out


# The command

def test_the_engine_never_imports_the_console():
    """In a process of its own: here they are imported already."""
    rooms = sorted(path.stem for path in Path(bootenv.run.__file__).parent.glob("*.py"))
    program = (f"import sys, importlib\nfor room in {rooms}: importlib.import_module('bootenv.' + room)\n"
               "print([m for m in sys.modules if m.split('.')[0] in ('textual', 'rich', 'console')])")
    assert in_a_process("-c", program).stdout == "[]\n"


def test_a_command_without_screen_imports_neither_textual_nor_rich():
    program = ("import sys, console.__main__ as asr\nasr.main(['plan', '/nonexistent.sif'])\n"
               "print([m for m in sys.modules if m.split('.')[0] in ('textual', 'rich')])")
    assert in_a_process("-c", program).stdout == "[]\n"


def in_a_process(*arguments):
    process = subprocess.Popen((sys.executable, *arguments), cwd=SCREENS.parents[1], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    return SimpleNamespace(stdout=out, stderr=err, returncode=process.returncode)


@pytest.mark.parametrize(("cmdline", "expected"), [
    ("quiet asr.id=x asr.stage=restore nomodeset\n", "restore"), ("asr.stage=recover", "recover"), ("quiet", "recover"),
    ("asr.stage=recover asr.stage=restore", "restore"),
])
def test_the_kernels_command_line_names_the_stage(cmdline, expected):
    assert stage(cmdline) == expected


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def headless(monkeypatch, as_root):
    """bootenv.prepare with nothing behind it."""
    import bootenv.prepare as story

    for name, function in vars(preparation(survey=lambda **_: SURVEY, alone=nullcontext)).items():
        monkeypatch.setattr(story, name, function)
    return story


def test_prepare_without_a_screen_ends_with_0_when_all_was_read_back(headless, capsys):
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0"]) == 0
    said = capsys.readouterr().out
    assert "Backing up files...   37%  2,345 of 6,083 files" in said
    assert "/run/backup/sample-20260314-1509.tar.zst" in said
    assert "NOT protected: /srv/data" in said
    assert said.endswith("The backup and the ASR disk were read back and match.\n")


@pytest.mark.parametrize("why", [collect.unread(OSError(5, "")), snapshot.FULL, snapshot.HOOK.format(when="before"),
                                 snapshot.HOOK.format(when="after")])
def test_a_set_that_lacks_something_is_a_failure_and_no_older_backup_goes_for_it(why, headless, monkeypatch, capsys):
    monkeypatch.setattr(headless, "prepare", lambda *_: working(Difference("home", why), outcome=SET))
    monkeypatch.setattr(schedule, "retire", raises(AssertionError("an older backup was removed")))
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0", "--keep", "1"]) == 1
    assert capsys.readouterr().out.endswith(
        "match.\nThe set is made, but it lacks what is named above. Older backups were kept for that.\n")
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0"]) == 1
    assert capsys.readouterr().out.endswith("The set is made, but it lacks what is named above.\n")


@pytest.mark.parametrize("why", [collect.CHANGED, collect.VANISHED, collect.SOCKET, snapshot.LIVE])
def test_what_moved_while_it_was_read_is_no_lack(why, headless, monkeypatch, capsys):
    monkeypatch.setattr(headless, "prepare", lambda *_: working(Difference("home", why), outcome=SET))
    monkeypatch.setattr(schedule, "retire", lambda *_: iter([Difference("old.tar.zst", "It was removed.")]))
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0", "--keep", "1"]) == 0
    assert "old.tar.zst: It was removed." in capsys.readouterr().out


INTERRUPTED = """
import sys, time, bootenv.backup
from bootenv.events import Progress
from console.__main__ import main

def write_backup(*_, **__):
    try:
        print("begun", flush=True)
        while True:
            time.sleep(0.01)
            yield Progress("Backing up files...")
    finally:
        time.sleep(0.5)
        print("taken away")

bootenv.backup.write_backup = write_backup
sys.exit(main(["pack", "/etc", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_what_it_began_is_taken_away(number, tmp_path):
    # With signals as a terminal's programs have them: what is started in the background ignores some.
    process = subprocess.Popen(("env", "--default-signal", sys.executable, "-c", INTERRUPTED, tmp_path / "b"),
                               cwd=SCREENS.parents[1], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    if number != signal.SIGINT:
        time.sleep(0.2)
        process.send_signal(number)            # which does not disturb the cleaning up
    out, err = process.communicate(timeout=60)
    assert (out.splitlines()[-1], err, process.returncode) == ("taken away", "asr: interrupted\n", 128 + number)


@pytest.mark.parametrize("step", ["survey", "destination", "select", "prepare", "write_disk"])
def test_prepare_fails_with_1_and_words_wherever_it_fails(step, headless, monkeypatch, capsys):
    monkeypatch.setattr(headless, step, raises(errors.DestinationFull("The disk is full.", hint="Take a larger one.",
                                                                      untouched="No set was made.")))
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0"]) == 1
    told = capsys.readouterr()
    assert told.err == ("asr: ASR-033: The disk is full.\nNo set was made.\nTake a larger one.\n"
                        "More about it: asr explain 33\n")
    assert "match" not in told.out


def test_prepare_asks_for_a_servers_password_where_somebody_can_answer(headless, nas, monkeypatch, capsys):
    wanted = wants_password(nas, DESTINATION)
    monkeypatch.setattr(headless, "destination", wanted)
    words = ["prepare", "--to", NAS.url, "--disk", "/dev/fd0"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert main(words) == 1
    assert "ASR-036: nas wants the password of ann." in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("getpass.getpass", lambda prompt: "good")
    monkeypatch.setattr(bootenv_network, "remember", lambda place, password: nas.append(password))
    assert main(words) == 0
    assert "good" not in capsys.readouterr().out


def test_prepare_says_at_once_that_it_needs_root(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["prepare", "--to", "/mnt", "--disk", "/dev/fd0"]) == 1
    assert "needs root" in capsys.readouterr().err


def test_prepare_wants_both_places_where_nobody_can_be_asked(capsys):
    for arguments in (["prepare"], ["prepare", "--to", "/mnt"]):
        with pytest.raises(SystemExit):
            main(arguments)
    assert "--disk" in capsys.readouterr().err


def test_verify_counts_what_is_damaged(monkeypatch, capsys):
    import bootenv.backup

    monkeypatch.setattr(bootenv.backup, "verify_backup", lambda path: working(BACKING_UP, *DIFFERENCES))
    assert main(["verify", "/mnt/x.tar.zst"]) == 1
    assert "home/user/film6.mkv: Its data is damaged in the backup." in capsys.readouterr().out
    monkeypatch.setattr(bootenv.backup, "verify_backup", lambda path: working(BACKING_UP))
    assert main(["verify", "/mnt/x.tar.zst"]) == 0
    assert "The backup is whole." in capsys.readouterr().out


@pytest.mark.parametrize("kind", list(errors.every_error()), ids=lambda kind: f"{kind.number:03}")
async def test_f1_explains_every_error_and_so_does_the_command(kind, capsys):
    async with OnePage(screens.ErrorPage(kind("What happened."))).run_test(size=(80, 24)) as pilot:
        await until(pilot, f"Error ASR-{kind.number:03}")
        await pilot.press("f1")
        await until(pilot, "ESC=Back")
        shown = screen_text(pilot.app)
        assert shown.splitlines()[22] == "", "its help is too long"
        assert_said(kind.title, shown)
        assert_said(kind.cause, shown)
        assert_said(kind.remedy, shown)
    assert main(["explain", str(kind.number)]) == main(["explain", f"asr-{kind.number:03}"]) == 0
    once, again, *_ = [part for part in capsys.readouterr().out.split(f"ASR-{kind.number:03}: ") if part]
    assert once == again == "\n\n".join([
        kind.title, f"Why: {kind.cause}",
        f"Not touched: {kind.untouched or 'that is said where the error appears.'}", f"What to do: {kind.remedy}\n"])


def assert_said(sentence, shown):
    assert " ".join(sentence.split()) in " ".join(shown.split())


def test_every_error_has_a_number_title_cause_and_remedy_of_its_own(capsys):
    kinds = list(errors.every_error())
    for name in ("number", "title", "cause", "remedy"):
        values = [getattr(kind, name) for kind in kinds]
        assert len(values) == len(set(values)), f"two errors have the same {name}"
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(kinds)
    assert main(["explain", "999"]) == 1
    assert "no error 999" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "started"), [("", True), ("y", True), ("n", False)])
def test_whoever_is_not_root_is_offered_sudo_where_they_can_answer(answer, started, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "execvp", lambda program, argv: calls.append(argv) or 0)
    monkeypatch.setattr("console.__main__.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    main(["check", "--json"])
    assert "needs root" in capsys.readouterr().err
    assert [(argv[0], argv[-2:]) for argv in calls] == [("sudo", ["check", "--json"])] * started


def test_plan_prints_the_commands_of_an_asr_sif(tmp_path, capsys):
    (tmp_path / "asr.sif").write_bytes(write_sif(replace(SET, layout=Layout(LAYOUT.disks))))
    assert main(["plan", str(tmp_path / "asr.sif")]) == 0
    assert "$ sfdisk" in capsys.readouterr().out


# A real terminal

def test_the_real_program_draws_page_2_on_a_terminal_and_ends_with_it(tmp_path):
    """The whole program on a pty, seen as a terminal emulator sees it."""
    (tmp_path / "cmdline").write_text("asr.id=1\n")
    program = ("import sys, pathlib, console.__main__ as asr\nasr._CMDLINE = pathlib.Path(sys.argv[1])\n"
               "sys.exit(asr.main(['console']))")
    screen = pyte.Screen(80, 25)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    process = subprocess.Popen((sys.executable, "-c", program, tmp_path / "cmdline"), cwd=SCREENS.parents[1],
                               stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               env=os.environ | {"TERM": "screen", "LANG": "C.UTF-8", "LINES": "", "COLUMNS": ""})
    os.close(slave)
    try:
        def see(words):
            end = time.monotonic() + 20
            while words not in "\n".join(screen.display):
                assert time.monotonic() < end, "\n".join(screen.display)
                if select.select([master], [], [], 0.1)[0]:
                    stream.feed(os.read(master, 65536))

        see("Press F6")
        os.write(master, b"\r")
        see("Press F2")
        os.write(master, b"\r")
        see("Setup is inspecting")
        assert "".join(line.rstrip() + "\n" for line in screen.display) == (SCREENS / "02-inspecting.txt").read_text()
        assert {cell.bg for cell in screen.buffer[12].values()} == {"blue"}
        assert {cell.bg for cell in screen.buffer[24].values()} == {"white"}
        os.write(master, b"\x1b[[A")                  # F1 as the Linux console sends it
        see("ESC=Back")
    finally:
        process.kill()
        process.wait()
        os.close(master)
