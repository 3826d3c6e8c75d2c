"""What a user can mend, told in one line. Any other exception is a fault of ours, with its traceback."""


class UserError(ValueError):
    """The message names the file, record or field and says what to do. Commands print it and exit with 1."""

    exit_code = 1


class UsageError(UserError):
    """Wrong arguments or a wrong configuration: exit code 2."""

    exit_code = 2
