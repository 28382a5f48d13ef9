"""What can go wrong, said to the person at the console."""


class AsrError(Exception):
    """A failure with a number, what is wrong, what was not touched and what to do.

    Subclasses set `number` (stable, printed as "ASR-NNN"); the instance carries the sentences.
    """

    number = 1
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


class NeedsRoot(AsrError):
    number = 2


class ToolMissing(AsrError):
    number = 3


class CommandFailed(AsrError):
    """Another program failed; `message` has its last words, the log has all of them."""

    number = 4
    untouched = ""


class Unsupported(AsrError):
    """The machine has something that this version cannot bring back."""

    number = 5


# The ASR disk

class NoAsrDisk(AsrError):
    number = 10


class DamagedSif(AsrError):
    number = 11


class NewerSchema(AsrError):
    number = 12


class OtherSet(AsrError):
    number = 13


class AsrDiskFull(AsrError):
    number = 14


class AsrDiskNotBlank(AsrError):
    number = 15


class AsrDiskUnwritable(AsrError):
    number = 16


class AsrDiskUnformatted(AsrError):
    number = 17


# The disks to recover onto

class DiskTooSmall(AsrError):
    number = 20


class TooFewDisks(AsrError):
    number = 21


class FirmwareDiffers(AsrError):
    number = 22


class TargetNotMounted(AsrError):
    number = 23


class WrongPassphrase(AsrError):
    number = 24


# The backup

class BackupNotFound(AsrError):
    number = 30


class DamagedBackup(AsrError):
    number = 31


class DestinationRefused(AsrError):
    number = 32


class DestinationFull(AsrError):
    number = 33
