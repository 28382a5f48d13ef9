"""The keyboard's layout. It is the kernel's: every screen has it, the serial line and ssh have their terminal's own."""

from dataclasses import dataclass
from pathlib import Path

from .errors import Unsupported
from .run import STATE, run

KEYMAPS = Path("/usr/share/keymaps/i386")        # Debian's console-data: FAMILY/NAME.kmap.gz
CHOSEN = STATE / "keymap"                        # its name; init writes it, too, for asr.keymap=
_SUFFIX = ".kmap.gz"

# By what a layout's name begins with, up to a mark or a digit.
_LANGUAGES = {
    "ANSI": "English, Dvorak", "azerty": "French", "be": "Belgian", "bg": "Bulgarian", "br": "Brazilian",
    "by": "Belarusian", "ca": "Canadian", "cf": "Canadian French", "croat": "Croatian", "cz": "Czech", "de": "German",
    "dk": "Danish", "dvorak": "Dvorak", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French",
    "fr_CH": "Swiss French", "gr": "Greek", "hu": "Hungarian", "il": "Hebrew", "is": "Icelandic", "it": "Italian",
    "jp": "Japanese", "kg": "Kyrgyz", "kk": "Kazakh", "la": "Latin American", "lt": "Lithuanian", "lv": "Latvian",
    "mk": "Macedonian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "se": "Swedish", "sg": "Swiss German", "sk": "Slovak", "slovene": "Slovene", "sr": "Serbian",
    "th": "Thai", "tr": "Turkish", "trf": "Turkish", "trq": "Turkish", "ua": "Ukrainian", "uk": "British",
    "us": "American",
}


@dataclass(frozen=True)
class Keymap:
    name: str                          # as loadkeys and asr.keymap= take it
    language: str                      # for people; "" where the name says nothing


def keymaps() -> list[Keymap]:
    """Every layout of this medium, by name."""
    names = (path.name.removesuffix(_SUFFIX) for path in KEYMAPS.glob(f"*/*{_SUFFIX}"))
    return [Keymap(name, _language(name)) for name in sorted(names, key=str.lower)]


def _language(name: str) -> str:
    known = (word for word in sorted(_LANGUAGES, key=len, reverse=True)
             if name.startswith(word) and not name[len(word):len(word) + 1].islower())
    return _LANGUAGES.get(next(known, ""), "")


def chosen() -> str:
    """The layout that was chosen, or "" for the kernel's own, an American one."""
    return CHOSEN.read_text().strip() if CHOSEN.exists() else ""


def choose(name: str) -> None:
    """From now on keys mean this, in the minimal OS too. Raises Unsupported, CommandFailed."""
    if name not in (keymap.name for keymap in keymaps()):
        raise Unsupported(f"There is no keyboard layout {name} on this medium.")
    # The program's own terminal is none of the kernel's.
    run(("loadkeys", "--quiet", "--console=/dev/tty1", name))
    CHOSEN.write_text(f"{name}\n")
