"""What can go wrong, said to the person at the console."""

from collections.abc import Iterator
from typing import Any


class AsrError(Exception):
    """A failure with a number, what is wrong, what was not touched and what to do.

    Subclasses set `number` (stable, printed as "ASR-NNN"), and what `asr explain` and F1 say of every failure of the
    kind: its title, cause and remedy. The instance carries the sentences about the one that happened.
    """

    number = 1
    title = "An error of no known kind."
    cause = "The program met something that it has no words for."
    remedy = "Read the end of the log (D, or /run/asr/setup.log). Then try again."
    untouched = "Nothing was changed."

    def __init__(self, message: str, *, hint: str = "", untouched: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        if untouched is not None:
            self.untouched = untouched

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> str:
        return f"ASR-{self.number:03d}"


def every_error(kind: type[AsrError] = AsrError) -> Iterator[type[AsrError]]:
    """All kinds of errors, by their numbers."""
    kinds = {kind} | {kind for below in kind.__subclasses__() for kind in every_error(below)}
    yield from sorted(kinds, key=lambda kind: kind.number)


class NeedsRoot(AsrError):
    number = 2
    title = "This needs root."
    cause = "Disks, and the files of all users, can be read and written by root alone."
    remedy = "Run the same command with sudo, or as root."


class ToolMissing(AsrError):
    number = 3
    title = "A program is missing."
    cause = ("ASR uses the field's own programs (sfdisk, mkfs, lvm, mtools and others), and one that this computer "
             "needs is not installed on it.")
    remedy = ("Install the package that has the program, or run ASR from the recovery medium, which carries every "
              "one: mount it and run  sudo /media/cdrom/asr.")


class CommandFailed(AsrError):
    """Another program failed; `message` has its last words, the log has all of them."""

    number = 4
    title = "Another program failed."
    cause = ("A program that ASR ran ended with an error. Its last words are in the message; all that it said is in "
             "the log, with the command line.")
    remedy = ("Read the log. If it speaks of input or output errors, a disk or cable is failing. Put that right, then "
              "try again: every step can be repeated.")
    untouched = ""

    def __init__(self, message: str, *, status: int = 0, hint: str = "", untouched: str | None = None):
        super().__init__(message, hint=hint, untouched=untouched)
        self.status = status           # the program's exit status; 0 if it has none


class Unsupported(AsrError):
    number = 5
    title = "This computer has something that this version cannot bring back."
    cause = ("A part of the system lies on a kind of storage, or is started in a way, that recovery could not make "
             "again. It is said now, not after the disaster.")
    remedy = ("asr check names each device and what is wrong with it. Move the system off it, or back it up by other "
              "means.")


class Busy(AsrError):
    number = 6
    title = "Another preparation is running."
    cause = "Two at once would each back up what the other is changing, and each need what the other has mounted."
    remedy = "Wait until it has ended. A scheduled job may be the one: asr schedule list."


class NoSuchJob(AsrError):
    number = 7
    title = "There is no such job."
    cause = "A job is a timer and a service of systemd; those of this one are missing, or were edited."
    remedy = "asr schedule list names all jobs. Remove a broken one and add it again."


# The ASR disk

class NoAsrDisk(AsrError):
    number = 10
    title = "No ASR disk was found."
    cause = ("No drive holds a readable disk with asr.sif, in its root or in a folder of it. The disk may be another "
             "one, not inserted to its end, or worn out.")
    remedy = ("Insert the disk labeled Automated System Recovery Disk. If it is lost, press U to use the copy in the "
              "backup, or write a new one on any computer: asr make-disk --from BACKUP --disk /dev/fd0")


class DamagedSif(AsrError):
    number = 11
    title = "The file ASR.SIF is damaged."
    cause = ("Its checksum does not match, or its end is missing: the disk is worn out, was taken out too early, or "
             "the file was edited. A damaged description of disks must not be used to format them.")
    remedy = ("Press U to use the copy in the backup, or write a new disk from it: "
              "asr make-disk --from BACKUP --disk /dev/fd0")


class NewerSchema(AsrError):
    number = 12
    title = "The ASR disk was written by a newer version."
    cause = "It may say things that this version does not know, and half of a machine would come back."
    remedy = "Use a recovery medium at least as new as the program that prepared the set."


class OtherSet(AsrError):
    number = 13
    title = "The disk and the backup are of different ASR sets."
    cause = ("A backup restores to the disks as they were when it was made. The ASR disk at hand describes those of "
             "another time or of another computer.")
    remedy = ("Compare host and date on the labels and take the two that belong together. If the right disk is lost, "
              "asr make-disk writes it from the backup.")


class AsrDiskFull(AsrError):
    number = 14
    title = "There is no room on the ASR disk."
    cause = "Other files fill it. An older set that was on it is still whole: it goes only when the new one is there."
    remedy = "Insert an empty disk, or delete files from this one."


class AsrDiskNotBlank(AsrError):
    number = 15
    title = "The disk for the ASR set is not blank."
    cause = ("It holds files, or ASR sets. They would stay, only an older set of the same computer is replaced; but a "
             "disk that somebody needs is better not used for this.")
    remedy = "Insert another disk, or press F8 to use this one."


class AsrDiskUnwritable(AsrError):
    number = 16
    title = "The ASR disk could not be written."
    cause = ("The disk is write-protected, not in the drive, worn out, or of another system's kind; the message says "
             "which. A disk that read back differently counts as worn out.")
    remedy = "Open the write protection or insert another disk, then press ENTER. The backup needs not be made again."


class AsrDiskUnformatted(AsrError):
    number = 17
    title = "The disk is not formatted."
    cause = "No file system of any known kind was found on it, as on a new disk."
    remedy = ("Press F to have it formatted; on the command line add --format-disk. A disk that does hold a file "
              "system is never formatted here.")


# The disks to recover onto

class DiskTooSmall(AsrError):
    number = 20
    title = "What was recorded fits on no free disk."
    cause = ("Each disk that may be used is smaller than the recorded partitions need, or has larger sectors than they "
             "and their file systems were made for: 4096 bytes instead of 512.")
    remedy = "Connect a disk at least as large, or with sectors as small, as the message says, and press ENTER."


class TooFewDisks(AsrError):
    number = 21
    title = "There are too few disks."
    cause = ("Each disk that held a part of the system needs one that takes its place. The recovery medium, the ASR "
             "disk and the disk that holds the backup are never used, and a USB disk only in the place of one.")
    remedy = "Connect the missing disk and press ENTER."


class FirmwareDiffers(AsrError):
    number = 22
    title = "This medium was started by another firmware than the recorded system."
    cause = "A system that starts by BIOS cannot be made to start from a medium that UEFI started, nor the reverse."
    remedy = "In the firmware's setup or boot menu, choose the other way to start this medium."


class TargetNotMounted(AsrError):
    number = 23
    title = "The place to restore to is not mounted."
    cause = "The files would have gone to this computer's memory instead of its disk."
    remedy = "Start the recovery again from the medium. If it happens again, keep the log."


class WrongPassphrase(AsrError):
    number = 24
    title = "The passphrase does not open the volume."
    cause = "It is another one, or was typed with another keyboard: keys are those of a US keyboard here."
    remedy = "Type it again; F7 shows what you type."

    def __init__(self, message: str, *, container: str = "", hint: str = "", untouched: str | None = None):
        super().__init__(message, hint=hint, untouched=untouched)
        self.container = container     # the id of the one that stays closed


class DuplicateIds(AsrError):
    number = 25
    title = "A disk that stays holds what is to be made anew."
    cause = ("Two volume groups with one name, or two arrays or file systems with one UUID, cannot be told apart: LVM "
             "refuses them, and the recovered system might start from the wrong ones. Such a disk is a copy of this "
             "computer's, or that of a computer that was installed alike.")
    remedy = ("Disconnect the disk that the message names, then press ENTER. Leave it out of the recovered computer "
              "until what it holds has another name (vgrename) or UUID (tune2fs -U and the like).")


# The backup

class BackupNotFound(AsrError):
    number = 30
    title = "The backup was not found."
    cause = ("It is looked for by its set's id on every volume that can be read, whatever its name and wherever it was "
             "moved to. Of places on the network, only the one that it was written to is looked into.")
    remedy = ("Connect the disk that holds it and press ENTER, or press B and name the file, or its place on the "
              "network.")


class NetworkPlaceFailed(BackupNotFound):
    """A place on the network can't be mounted now, or its address is none."""

    number = 34
    title = "The place on the network cannot be reached."
    cause = ("A backup on a server needs a network card with a link, an address, the server at work, and its leave to "
             "mount the export or share. The message says which of them is missing.")
    remedy = ("Put that right and press ENTER. In recovery, B names another place, such as "
              "nfs://server/export/folder, and F9 sets this computer's address where there is no DHCP.")


class PasswordWanted(NetworkPlaceFailed):
    """`place` is the network.NetworkPlace whose user's password is missing or wrong, None if typing it is of no use."""

    number = 36
    title = "The server wants a password."
    cause = ("The share is opened by a user's password. It is in no file of the ASR set: whoever found the disk would "
             "have it.")
    remedy = ("Type it where it is asked for. For jobs, write the lines username=USER and password=PASSWORD to "
              "/etc/asr/credentials, and see to it that root alone can read it: chmod 600.")

    def __init__(self, message: str, *, place: Any = None, hint: str = ""):
        super().__init__(message, hint=hint)
        self.place = place


class DamagedBackup(AsrError):
    number = 31
    title = "The backup is damaged."
    cause = "Parts of the file are not as they were written: its disk is failing, or it was copied incompletely."
    remedy = ("asr verify BACKUP names the files that are lost; all others can be restored. After preparing a set: "
              "check the destination's disk and prepare again.")


class DestinationRefused(AsrError):
    number = 32
    title = "That place will not do."
    cause = ("The backup must outlive the disaster and be readable at recovery: not on a disk that recovery formats, "
             "not in memory, on a file system and device that the recovery medium knows, with room for it.")
    remedy = "Choose another place. F4 in the wizard lists each volume, and why it will do or not."


def refused(what: str, hint: str) -> DestinationRefused:
    return DestinationRefused(what, hint=hint, untouched="Nothing was written.")


class DestinationFull(AsrError):
    number = 33
    title = "The destination is full."
    cause = "There was less room than the backup needs, or than the files that are brought back from one."
    remedy = "Delete older backups, or choose a larger place. asr schedule keeps only as many as you say."
    untouched = "What was written of the backup was removed."


class WorkerFailed(AsrError):
    """A worker process ended, or had an error that it doesn't know how to name."""

    number = 35
    title = "A part of the program ended."
    cause = "One of the processes that read, compress and write files has failed, or the kernel ended it."
    remedy = "The computer may be short of memory: end other programs and try again. The log has what it said."
    untouched = ""


class NothingToBackUp(AsrError):
    number = 38
    title = "What was to be backed up is not there."
    cause = ("The folder or file does not exist: a home on a disk or server that is not mounted, a user who has none, "
             "or a path that was removed meanwhile. A backup without it would look complete, and hold nothing.")
    remedy = "Mount what it lies on, or mark in the tree what is to be backed up."
    untouched = "Nothing was written."


# What goes along with a set

class NoDriver(AsrError):
    number = 40
    title = "That is no driver or firmware that can go along with a set."
    cause = ("asr add-driver takes kernel modules (.ko, also compressed), Debian packages and firmware: what boot "
             "recovery can load. It looks into each file, not only at its name.")
    remedy = ("Name the files themselves. Firmware keeps its path below a folder named firmware, since the kernel asks "
              "for it by that: asr add-driver /usr/lib/firmware/rtl_nic/rtl8168h-2.fw")
    untouched = "No driver was added or removed."


class BadCommands(AsrError):
    number = 41
    title = "The list of commands cannot be used."
    cause = ("/etc/asr/commands.toml says what recovery runs before and after the restore. A mistake in it is better "
             "known now than then.")
    remedy = ("Put right what the message names. Each [[commands]] has a title, argv (a list of words), when (before, "
              "after), and may have where (recovery, system) and critical (true, false).")
    untouched = "No backup was begun; the last ASR set is as good as it was."


class CriticalCommandFailed(AsrError):
    number = 42
    title = "A critical command of the set failed."
    cause = ("The set has a command without which its maker does not call the computer recovered. It ended with an "
             "error.")
    remedy = ("Read the log (D): it has what the command said. Put that right, then press ENTER to restore again; the "
              "commands run again, too.")
    untouched = "Files may have been restored already."


class NoProvider(AsrError):
    number = 43
    title = "The provider is not there."
    cause = ("The set's backup is another product's business. The executable that speaks for it is looked for in "
             "/etc/asr/providers, in /usr/lib/asr/providers and among those that ship; in recovery, on the ASR disk.")
    remedy = ("Install it, and see to it that it is executable and belongs to root. If the ASR disk does not have it, "
              "make one on the computer that does: asr make-disk.")


class ProviderFailed(AsrError):
    number = 44
    title = "The other backup product has failed."
    cause = ("The set's backup is made and restored by a provider, which has ended with an error. The message has its "
             "last words, the log has all of them.")
    remedy = ("See whether the place of the backup can be reached, and whether the recovery medium has the programs "
              "that the provider calls. Then try again.")
    untouched = "No ASR set was made; in recovery, files may have been restored already."


# A computer whose own system does not run

class NoSystem(AsrError):
    number = 50
    title = "No installed system was found."
    cause = ("A system is known by /etc/fstab and os-release on one of this computer's volumes, and by starting from "
             "where it was found: snapshots of a system do not count. What is encrypted and closed, or an array that "
             "lacks a disk, cannot be looked into.")
    remedy = ("See whether all disks are connected and F6 loads a driver that they need. Press P again and type the "
              "passphrases of encrypted volumes. An array that lacks a disk is started with a shell (S): mdadm --run.")


class SystemIncomplete(AsrError):
    number = 51
    title = "A file system of the system cannot be mounted."
    cause = ("The system's own /etc/fstab mounts it at every start, so its files belong into the backup. A set without "
             "them would be taken for a whole one.")
    remedy = ("Connect the disk that is missing, or repair the file system (S opens a shell, fsck). What the computer "
              "does start without has the word nofail in its /etc/fstab; then it is left out, and named.")


class Asleep(AsrError):
    number = 52
    title = "The computer is asleep on its disk."
    cause = ("It was hibernated: its memory, with all that it knows of its file systems, is in its swap space. If "
             "these were mounted now and it then woke up, they would be destroyed.")
    remedy = ("Start the computer and shut it down. If it does not wake up any more, start it with  noresume  on the "
              "kernel's command line: what was open is lost, and the file systems are well.")


# Rehearsals

class RehearsalFailed(AsrError):
    number = 70
    title = "The rehearsal failed."
    cause = "The virtual machine did not do what was expected."
    remedy = "Look at the screens that it kept."
    untouched = "Only virtual disks were changed."


class NotSeen(RehearsalFailed):
    """What was waited for did not come in time."""

    number = 71
    title = "A screen was not seen in time."
    cause = "The virtual machine is slower than its time limits, or it stopped."
    remedy = "Look at the screens that it kept, then try again with fewer programs beside it."


class MachineGone(RehearsalFailed):
    """The virtual machine ended, or never started."""

    number = 72
    title = "The virtual machine ended."
    cause = "QEMU could not be started, or it ended by itself."
    remedy = "Read the log for QEMU's last words."
