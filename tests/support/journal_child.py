"""A process that works on a journal until it is killed, and says each thing that the journal tells it."""

import random
import sys
from pathlib import Path

from rvcd.errors import Code
from rvcd.jobs import JobEvent, JobRequest, JobState
from rvcd.journal import Journal

STEPS_OF_STATE = {
    "queued": (),
    "running": ("start",),
    "staged": ("start", "stage"),
    "committed": ("start", "stage", "commit"),
    "failed": ("start", "fail"),
    "cancelled": ("cancel",),
}
"""How a job that was submitted comes to stand in each state."""


def tell(event: JobEvent) -> None:
    print(type(event).__name__, event.job.id, event.job.state, flush=True)


def finish_what_is_left(journal: Journal, dice: random.Random) -> None:
    for job in journal.recover(1.0):
        if job.state is JobState.STAGED:
            journal.commit(job.id, 1.0) if dice.random() < 0.5 else journal.put_back(job.id, 1.0)


def take_a_turn(journal: Journal, dice: random.Random) -> None:
    job = journal.next_queued()
    assert job is not None
    journal.start(job.id, 2.0)
    journal.progress(job.id, 0.5, "voice")
    end = dice.choice(("commit", "fail", "cancel", "retry", "put_back"))
    if end == "retry":
        journal.retry(job.id, 3.0, Code.ENGINE_DIED, "")
    elif end == "fail":
        journal.fail(job.id, 3.0, Code.GPU_ERROR, "")
    elif end == "cancel":
        journal.cancel(job.id, 3.0)
    else:
        journal.stage(job.id, Path("/stage"), Path("/backup"), (1, 2, 3, 4))
        journal.commit(job.id, 3.0) if end == "commit" else journal.put_back(job.id, 3.0)


def main(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    journal = Journal(path, queue_bound=10_000, announce=tell)
    finish_what_is_left(journal, dice)
    for number in range(5_000):
        request = JobRequest(path=Path(f"/{dice.randrange(40)}.wav"), req=f"{seed}-{number}")
        job = journal.submit(request, 1.0)
        print("submitted", job.id, job.state, flush=True)
        if dice.random() < 0.7:
            take_a_turn(journal, dice)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
