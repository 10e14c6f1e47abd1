"""Colab's kernel class: an ordinary kernel with its own shell class, by which packages recognise Colab."""

from __future__ import annotations

from google.colab._shell import Shell
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type


class Kernel(IPythonKernel):
    """Started by the test's kernelspec."""

    shell_class = Type(Shell, klass="IPython.core.interactiveshell.InteractiveShellABC")
