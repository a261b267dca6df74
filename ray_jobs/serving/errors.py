"""What the app answers instead of predictions. No traceback leaves the process."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is not answered with predictions; `status` is HTTP's code for why."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class BadInput(RequestError):
    """A body that the model cannot take. Names the row and the column."""

    def __init__(self, message: str, *, status: int = 422):
        super().__init__(status, message)
