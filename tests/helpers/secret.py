"""A text that no error message may show: it stands for the text of users and agents, and for passwords."""

import traceback

SECRET = "5a1t-0f-the-5ea"  # noqa: S105


def assert_secret_is_kept(error: BaseException) -> None:
    for shown in (str(error), repr(error), "".join(traceback.format_exception(error))):
        assert SECRET not in shown
