"""Colab's shell class. Only its name matters."""

from __future__ import annotations

from ipykernel.zmqshell import ZMQInteractiveShell


class Shell(ZMQInteractiveShell):
    """`"google.colab" in str(type(get_ipython()))` is how Colab is recognised."""
