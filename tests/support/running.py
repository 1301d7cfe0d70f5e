"""A running batch, run until everybody has an answer."""

from llmc.runtime.running_batch import RunningBatch
from llmc.runtime.sequence import GeneratedSequence


def run(batch: RunningBatch, waiting: list[GeneratedSequence]) -> None:
    """Until all have ended; as many join as may, whenever they may. Nobody is left in `waiting`."""
    while waiting or batch.busy:
        if count := batch.fitting(waiting):
            batch.join(waiting[:count])
            del waiting[:count]
        batch.step()
