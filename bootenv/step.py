"""One command that changes a disk, as a value: what a plan is made of."""

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One command that changes a disk, and what a person is told meanwhile."""

    title: str
    argv: tuple[str, ...]
    stdin: bytes = b""
    subject: str = ""          # the partition and disk at hand, a line each
    secret: str = ""           # id of the LuksContainer whose passphrase is the standard input


def as_text(steps: tuple[Step, ...]) -> str:
    """The plan as a person reads it, and as tests/machines/*/plan.txt keeps it."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number:3}. {step.title}" + (f" {step.subject.splitlines()[0]}" if step.subject else ""))
        lines.append("     $ " + " ".join(shlex.quote(word) for word in step.argv))
        lines += [f"     | {line}" for line in step.stdin.decode().splitlines()]
        if step.secret:
            lines.append("     | (the passphrase)")
    return "\n".join(lines) + "\n"
