"""Every kind of storage comes back: probe(execute(plan(L))) == L, on dirty disks, in a kernel of their own."""

import json
import sys
from pathlib import Path
from shlex import quote

import pytest

from bootenv.rehearsal import MiB
from tests.scenarios import SCENARIOS
from tests.uml import REPOSITORY, shell_in_uml

pytestmark = [pytest.mark.disks, pytest.mark.timeout(600)]

# The machine is made and recorded with this computer's tools, and made again with the medium's.
_STORY = """
cd {repository}
{python} -m tests.on_disks make {name} {folder}
mkdir /run/live /run/upper; mount -t tmpfs tmpfs /run/upper; mkdir /run/upper/changes /run/upper/work /run/lower
mount -t hostfs none /run/lower -o {medium}
mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper/changes,workdir=/run/upper/work live /run/live
for tree in dev proc sys run; do mount --rbind /$tree /run/live/$tree; done
mkdir -p /run/live/asr /run/live{folder} /run/live{repository}
mount --bind {repository} /run/live/asr; mount --bind {repository} /run/live{repository}
mount --bind {folder} /run/live{folder}
cd /run/live
for part in look recover; do
    chroot . env PYTHONPATH=/usr/lib/asr:{repository} LC_ALL=C.UTF-8 sh -c \\
        "cd {repository}; python3 -m tests.on_disks $part {name} {folder}"
done
"""


def recovered(name: str, folder: Path, medium: Path) -> dict:
    """What came of a scenario."""
    scenario = SCENARIOS[name]
    images = [folder / f"{number}.img" for number in range(2 * scenario.disks)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(scenario.size * MiB)
    shell_in_uml(_STORY.format(repository=quote(str(REPOSITORY)), python=quote(sys.executable), name=name,
                               folder=folder, medium=medium),
                 images, shared=[folder], memory=1024 * MiB, seconds=500)
    return json.loads((folder / "outcome.json").read_text())


# One of each sort; the rest differ in details.
ALWAYS = ("gpt-odd", "mbr-logical", "fat-and-others", "xfs", "btrfs", "md-mirror", "lvm-thin", "luks-guided",
          "lvm-on-luks-on-md")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.long)
    for name, scenario in SCENARIOS.items() if scenario.recoverable])
def test_storage_comes_back(name, tmp_path, live_tree):
    outcome = recovered(name, tmp_path, live_tree)
    assert outcome["after"] == outcome["before"]
    before, after = outcome["seen"]
    unlike = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert unlike == {*SCENARIOS[name].lost.split()}, [(before.get(key), after.get(key)) for key in unlike]
    assert outcome["consent"] is True          # the disks held somebody else's data
