"""Start a front end on loopback and open notebooks in it: JupyterLab 4, classic Notebook, and classic with Colab's kernel.

Knows servers, kernels and how each page says that it is ready. Leaves what a person does on the page to `notebook_page`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from playwright.sync_api import Browser, Page

from tests.browser.notebook_page import HEIGHT, WIDTH, NotebookPage
from tests.environments import ROOT, python_of

STARTS_WITHIN = 90.0  # seconds; a cold start on two busy cores takes 20
KERNEL = "under-test"

LAB_READY = """() => window.jupyterapp && jupyterapp.shell.currentWidget && jupyterapp.shell.currentWidget.context
  && jupyterapp.commands.hasCommand('notebook:run-all-cells')"""
LAB_SETTLED = """async () => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready; await panel.sessionContext.ready; await panel.revealed;
}"""
CLASSIC_CONNECTED = """() => window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel
  && Jupyter.notebook.kernel.is_connected()"""
CLASSIC_IDLE = """() => Jupyter.notebook.kernel.info_reply.status === 'ok' && !Jupyter.notebook.kernel_busy
  && Jupyter.notebook.kernel.widget_manager"""


@dataclass(frozen=True)
class Kind:
    """What distinguishes a front end.

    Attributes:
        environment: which of `environments.NAMES` holds it.
        command: what starts its server, with {root} and {port} to fill in.
        path: of a notebook, with {notebook} to fill in.
        colab: whether the kernel is Colab's class, so that the product takes itself to be in Colab.
    """

    environment: str
    command: tuple[str, ...]
    path: str
    colab: bool = False


_LAB = (
    *("-m", "jupyterlab", "--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.root_dir={root}"),
    *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--LabApp.news_url=None"),
)
_CLASSIC = ("-m", "notebook", "--NotebookApp.token=", "--NotebookApp.password=", "--notebook-dir={root}")
KINDS = {
    "jupyterlab": Kind("lab", _LAB, "lab/tree/{notebook}?reset"),
    "classic": Kind("classic", _CLASSIC, "notebooks/{notebook}"),
    "colab": Kind("classic", _CLASSIC, "notebooks/{notebook}", colab=True),
}


class FrontEnd:
    """A running server, in whose folder notebooks are opened.

    Example:
        >>> with start("jupyterlab", tmp_path, browser) as front_end:
        ...     page = front_end.open(notebook, "first")
        ...     page.run_all()
    """

    def __init__(self, name: str, root: Path, address: str, browser: Browser) -> None:
        """See `start`."""
        self.name, self.kind, self.root, self.address = name, KINDS[name], root, address
        self._browser = browser

    def open(self, notebook: NotebookNode, name: str, *, dark: bool = False) -> NotebookPage:
        """Write `notebook` into a folder `name` of its own, open it there and wait until its kernel is ready."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": "under test", "language": "python"}
        nbformat.write(notebook, folder / "notebook.ipynb")
        return self.reopen(name, dark=dark)

    def reopen(self, name: str, *, dark: bool = False) -> NotebookPage:
        """Open a notebook that `open` wrote, in a page of its own; its kernel, where one runs, is found again."""
        context = self._browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, accept_downloads=True, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        shown = NotebookPage(page, self.name, self.root / name)
        page.goto(self.address + self.kind.path.format(notebook=f"{name}/notebook.ipynb"))
        self.wait_ready(page)
        if dark:
            shown.darken()
        return shown

    def wait_ready(self, page: Page) -> None:
        """Wait on the page's own word: what its DOM shows before is an idle placeholder."""
        if self.name == "jupyterlab":
            page.wait_for_function(LAB_READY, timeout=60_000)
            page.evaluate(LAB_SETTLED)
        else:
            page.wait_for_function(CLASSIC_CONNECTED, timeout=60_000)
            page.wait_for_function(CLASSIC_IDLE, timeout=60_000)
            page.wait_for_timeout(1000)  # the widget manager's first synchronisation closes what was made before it


@contextlib.contextmanager
def start(name: str, root: Path, browser: Browser) -> Iterator[FrontEnd]:
    """Run the server of a front end in `root` until the block ends.

    Raises:
        RuntimeError: it did not answer in time; the message holds the end of its log.
    """
    kind, port = KINDS[name], _free_port()
    python = python_of(kind.environment)
    command = [str(python), *(part.format(root=root) for part in kind.command)]
    command += ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    address, log = f"http://127.0.0.1:{port}/", root / ".server.log"
    environ = _environment(root, python)
    _write_kernelspec(Path(environ["JUPYTER_PATH"]), python, kind.colab)
    _ask_nothing(Path(environ["JUPYTER_CONFIG_DIR"]))
    with log.open("w") as sink:
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=sink, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"{address}api", process, log)
        yield FrontEnd(name, root, address, browser)
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(root: Path, python: Path) -> dict[str, str]:
    """Folders of its own for everything that Jupyter keeps, no network, and the working tree's package."""
    own = {f"JUPYTER_{name}_DIR": str(root / f".{name.lower()}") for name in ("CONFIG", "RUNTIME", "DATA")}
    return {
        **os.environ,
        **own,
        "JUPYTER_PATH": str(root / ".kernels"),
        "IPYTHONDIR": str(root / ".ipython"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "notebooks" / "offline"), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMER_BUILDER_CACHE": str(root / ".cache"),
    }


def _write_kernelspec(folder: Path, python: Path, colab: bool) -> None:
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
    paths = [ROOT / "tests" / "notebooks" / "offline", ROOT]
    if colab:
        command += ["--IPKernelApp.kernel_class=google.colab._kernel.Kernel"]
        paths.append(ROOT / "tests" / "notebooks" / "fakecolab")
    environ = {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    spec = {"argv": command, "display_name": "under test", "language": "python", "env": environ}
    place = folder / "kernels" / KERNEL
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _ask_nothing(settings: Path) -> None:
    """JupyterLab's question about news would lie over the page."""
    file = (
        settings / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    )
    file.parent.mkdir(parents=True)
    file.write_text('{"fetchNews": "false"}', encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(address):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{address} did not answer within {STARTS_WITHIN:.0f} s: {log.read_text()[-2000:]}")


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except urllib.error.HTTPError:  # it answers, if only to refuse
        return True
    except OSError:
        return False
    return True
