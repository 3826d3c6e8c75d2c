"""What can be wrong with a checkpoint or with the place an output should go."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is; the message names the file or key and what to do."""


class OutputError(ValueError):
    """An output path that must not be written; the message says why."""
