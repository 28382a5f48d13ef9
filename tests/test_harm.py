"""A sample of what tests/harm.py does a thousand times."""

import pytest

from tests.harm import Damage, Kills, in_small_frames


@pytest.fixture(autouse=True)
def no_real_commands() -> None:
    """The engine is killed as a program of its own."""


def test_damage_never_restores_wrongly_and_costs_no_more_than_itself(tmp_path):
    with in_small_frames():
        damage = Damage(tmp_path)
        for seed in range(60):
            damage.trial(seed)


def test_a_killed_backup_has_no_name_and_the_next_one_is_whole(tmp_path):
    kills = Kills(tmp_path, files=200)
    for seed in range(3):
        kills.of_backup(seed)


def test_a_killed_restore_goes_on_to_the_same_result(tmp_path):
    kills = Kills(tmp_path, files=200)
    for seed in range(3):
        kills.of_restore(seed)
