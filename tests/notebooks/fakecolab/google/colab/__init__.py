"""Stand-in for Colab's own package: the names, signatures and exceptions that our notebooks meet, without a front end.

`google` has no __init__.py here on purpose: it must stay a namespace package beside google.protobuf.
"""

from __future__ import annotations

from google.colab import errors, output

__all__ = ["errors", "output"]
