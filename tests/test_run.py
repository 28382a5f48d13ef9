"""The one door to other programs: what it waits for, and what is done whatever ends the program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootenv import run as door
from bootenv.errors import CommandFailed
from bootenv.run import afterwards, run
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.disks         # real programs, which change nothing


def appears(path: Path) -> bool:
    for _ in range(100):
        if path.exists():
            return True
        time.sleep(0.1)
    return False


def python(program: str, **options) -> subprocess.Popen:
    # With signals as a terminal's programs have them: what is started in the background ignores some.
    return subprocess.Popen(("env", "--default-signal", sys.executable, "-c", program), cwd=REPOSITORY, text=True,
                            **options)


def test_what_a_program_leaves_in_the_background_is_not_waited_for():
    began = time.monotonic()
    assert run(("sh", "-c", "sleep 40 & echo said"), limit=50) == "said\n"
    with pytest.raises(CommandFailed, match=r"^sh failed: Why not$") as failed:
        run(("sh", "-c", "sleep 40 & echo Why not >&2; exit 3"), limit=50)
    assert failed.value.status == 3
    assert time.monotonic() - began < 30


def test_the_last_words_have_all_that_was_said_since_somebody_emptied_the_file():
    with pytest.raises(CommandFailed, match=r"^sh failed: b c$"):
        run(("sh", "-c", "echo a >&2; echo b >/dev/stderr; echo c >&2; exit 1"), limit=50)


@pytest.mark.parametrize("script", ["echo hangs >&2; sleep 60", "trap 'exit 0' TERM; echo hangs >&2; sleep 60 & wait"])
def test_a_program_that_hangs_is_ended_and_has_failed(script):
    with pytest.raises(CommandFailed, match=r"^sh failed: hangs It was ended since it took more than 0.5 seconds\.$"):
        run(("sh", "-c", script), limit=0.5)
    assert "It was ended since" in door.LOG.read_text()


def interrupted(script: str, tmp_path, seconds: float = 30) -> int:
    """The exit status of a program that gets Ctrl+C while it runs a shell script."""
    process = python(f"from bootenv import run\nrun._SECONDS_TO_END = {seconds}\n"
                     f"run.run(('sh', '-c', {f'cd {tmp_path}; touch begun; {script}'!r}))", stderr=subprocess.DEVNULL)
    assert appears(tmp_path / "begun")
    process.send_signal(signal.SIGINT)
    return process.wait(20)


def test_ctrl_c_lets_the_program_at_work_end(tmp_path):
    much = "head -c 300000 /dev/zero | tr '\\0' x"         # more than a pipe holds
    assert interrupted(f"sleep 1; {much}; touch ended", tmp_path) == -signal.SIGINT
    assert (tmp_path / "ended").exists()


def test_after_ctrl_c_a_program_that_does_not_end_is_told_to(tmp_path):
    assert interrupted("trap 'touch told; exit' TERM; sleep 60 & wait", tmp_path, seconds=0.5) == -signal.SIGINT
    assert appears(tmp_path / "told")


def test_a_signal_to_a_whole_job_leaves_the_script_to_run_to_its_end(tmp_path):
    """A second signal comes when the program is gone."""
    script = f"touch {tmp_path}/begun; sh -c 'kill -TERM 0; touch {tmp_path}/ended'"
    process = python("import signal\nfrom bootenv.run import afterwards\n"
                     f"with afterwards({script!r}) as keeper:\n    print(keeper.pid, flush=True)\n    signal.pause()\n",
                     stdout=subprocess.PIPE)
    keeper = int(process.stdout.readline())
    time.sleep(0.5)
    os.killpg(keeper, signal.SIGTERM)
    time.sleep(0.5)
    assert not (tmp_path / "begun").exists(), "the program is still at work"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    assert appears(tmp_path / "ended")


def test_while_the_program_goes_on_its_script_can_be_ended_by_signals():
    with afterwards("sh -c 'kill -TERM $$; sleep 5'\nexit $?") as keeper:
        pass
    assert keeper.returncode == 128 + signal.SIGTERM
    began = time.monotonic()
    with afterwards("sleep 60", 0.5) as keeper:
        pass
    assert keeper.returncode
    assert time.monotonic() - began < 30
