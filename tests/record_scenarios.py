"""Records the scenarios anew as machines of a distribution, with the tools of a tree of it.

    python -m tests.record_scenarios SUITE ROOT [SCENARIO ...]

ROOT is "/" for this computer's own tools, or a folder such as the recovery medium's root.
"""

import re
import sys
import tempfile
from pathlib import Path
from shlex import quote

from bootenv.rehearsal import MiB
from tests.conftest import MACHINES
from tests.scenarios import SCENARIOS
from tests.uml import OURS, REPOSITORY, shell_in_uml


def main(suite: str, root: str, *names: str) -> None:
    python = sys.executable if root == str(OURS) else f"PYTHONPATH=/usr/lib/asr:{REPOSITORY} python3"
    for name in names or SCENARIOS:
        machine = MACHINES / f"{name}-{suite}"
        machine.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="asr-") as folder:
            images = [Path(folder) / f"{number}.img" for number in range(SCENARIOS[name].disks)]
            for image in images:
                with image.open("wb") as file:
                    file.truncate(SCENARIOS[name].size * MiB)
            shell_in_uml(f"cd {quote(str(REPOSITORY))}; {python} -m tests.on_disks record {name} {quote(str(machine))}",
                         images, Path(root), shared=[REPOSITORY], seconds=400)
        # What this computer's own folders are called is nobody's business.
        commands = machine / "commands.json"
        commands.write_text(re.sub(r"/tmp/uml-\w+", "/tmp/uml", commands.read_text().replace(str(REPOSITORY),
                                                                                             "/repository")))
        print(machine)


if __name__ == "__main__":
    main(*sys.argv[1:])
