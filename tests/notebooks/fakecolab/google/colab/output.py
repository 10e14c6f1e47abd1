"""JavaScript in the output frame, which lies on another origin than the page with the link.

So the frame's own address and a bare referrer are all that a script can read: a `#gist_id=…` never arrives here.
"""

from __future__ import annotations

from google.colab import errors

FRAME = "https://x-colab.googleusercontent.com/outputframe.html?vrz=colab"
REFERRER = "https://colab.research.google.com/"


class MessageError(errors.Error):
    """A script failed in the front end."""


def eval_js(script: str, ignore_result: bool = False, timeout_sec: float | None = None) -> str | None:
    """Answer as the real frame would; without a timeout the real one waits for ever when no page is open."""
    if timeout_sec is None and not ignore_result:
        raise AssertionError("eval_js without timeout_sec hangs when no front end answers")
    if ignore_result:
        return None
    if "parent.location" in script and "catch" not in script:
        raise MessageError("SecurityError: Blocked a frame from accessing a cross-origin frame.")
    return f"{FRAME} {REFERRER}"
