"""Steps -> Events: the only loop that changes disks."""

from collections.abc import Iterator, Sequence

from .events import Event, Progress
from .plan import Step
from .run import run


def execute(steps: Sequence[Step]) -> Iterator[Event]:
    """Runs each step to its end; done and total count steps. Raises CommandFailed at the first that fails."""
    for done, step in enumerate(steps):
        yield Progress(step.title, done, len(steps), subject=step.subject)
        run(step.argv, input=step.stdin)
    if steps:
        yield Progress(steps[-1].title, len(steps), len(steps), subject=steps[-1].subject)
