"""Every error a user can cause or meet, each with the process exit code that tells a scheduler
what to do."""

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class EmberlineError(Exception):
    """Base of the project's errors. The message names the cause and the fix; no traceback is
    shown."""

    exit_code = 4


class SpecError(EmberlineError):
    """The command line or the job description is wrong. Nothing has started."""

    exit_code = 2


class PreflightError(EmberlineError):
    """The job description is sound, but the data or the environment cannot carry it. Nothing was
    trained."""

    exit_code = 3


class DataError(PreflightError):
    """The data cannot be used as the spec asks. Names the file, the column or the row, and the
    fix."""


class JobFailed(EmberlineError):
    """The job ran and failed in a way that a retry of the same job will repeat."""

    exit_code = 4


class Stopped(EmberlineError):
    """The job was asked to stop, and stopped where it can be taken up again."""

    exit_code = EXIT_INTERRUPTED


class RetryableError(EmberlineError):
    """The job failed for a reason that may pass (network, a lost node): a retry may succeed."""

    exit_code = 5


class GateRefused(EmberlineError):
    """The promotion gate refused a model; no alias was moved. Names each rule that it broke."""

    exit_code = 6


class DriftFound(EmberlineError):
    """Live traffic is not what the model was trained on. Names what has drifted."""

    exit_code = 7
