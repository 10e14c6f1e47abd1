"""Which names are risky in a model's source, how much, and why. A table; `code_review` applies it.

A rule holds for the dotted name itself and for everything below it; the longest rule wins. "danger" is what a model
needs in no case to compute its output; "caution" is what honest model code sometimes does.
"""

from __future__ import annotations

from typing import Literal

Severity = Literal["info", "caution", "danger"]
SEVERITIES: tuple[Severity, ...] = ("info", "caution", "danger")


def _rules(kind: str, severity: Severity, why: str, names: str) -> dict[str, tuple[str, Severity, str]]:
    return dict.fromkeys(names.split(), (kind, severity, why))


RULES: dict[str, tuple[str, Severity, str]] = {
    **_rules("network", "danger", "talks to the network",
             "socket urllib.request urllib3 requests httpx aiohttp http.client http.server ftplib smtplib telnetlib "
             "xmlrpc socketserver websocket websockets paramiko webbrowser asyncio.open_connection "
             "asyncio.start_server urllib.urlopen poplib imaplib nntplib boto3 pycurl torch.distributed.rpc"),
    **_rules("network", "caution", "downloads files",
             "torch.hub.load_state_dict_from_url torch.hub.download_url_to_file torch.utils.model_zoo huggingface_hub "
             "datasets.load_dataset "
             "wandb torchvision.datasets gdown wget"),
    **_rules("dynamic execution", "danger", "downloads and runs code", "torch.hub.load torch.hub transformers.dynamic_module_utils"),
    **_rules("process", "danger", "starts or controls other processes",
             "os.system os.popen os.spawnl os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp "
             "os.spawnvpe os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe os.fork "
             "os.forkpty os.kill os.killpg os.posix_spawn os.posix_spawnp os.startfile subprocess commands pty "
             "asyncio.create_subprocess_exec asyncio.create_subprocess_shell multiprocessing.Process posix nt "
             "_posixsubprocess IPython.get_ipython get_ipython os.abort os._exit pexpect sh"),
    **_rules("process", "caution", "acts on this process or starts workers",
             "multiprocessing signal sys.exit exit quit atexit concurrent.futures.ProcessPoolExecutor "
             "faulthandler resource"),
    **_rules("process", "info", "starts threads", "threading concurrent.futures"),
    **_rules("dynamic execution", "danger", "runs text as code, or reaches native code",
             "eval exec compile ctypes cffi code.interact code.InteractiveInterpreter code.InteractiveConsole runpy "
             "torch.utils.cpp_extension torch.ops.load_library torch.classes.load_library imp types.FunctionType "
             "types.CodeType timeit.timeit timeit.repeat cProfile.run profile.run pdb bdb codeop _ctypes "
             "importlib.util.spec_from_file_location importlib.util.spec_from_loader importlib.util.module_from_spec "
             "importlib.util.LazyLoader importlib.machinery importlib.reload importlib.abc importlib._bootstrap "
             "pip ensurepip setuptools distutils doctest numpy.f2py numpy.distutils numpy.testing.rundocs logging.config "
             "pandas.eval sympy.sympify sympy.parse_expr sympy.parsing torch.fx.graph_module._exec_with_source "
             "torch.fx.graph_module._forward_from_src"),
    **_rules("dynamic execution", "danger", "watches or redirects what the interpreter does",
             "sys.meta_path sys.path_hooks sys.settrace sys.setprofile sys.addaudithook threading.settrace "
             "threading.setprofile"),
    **_rules("dynamic execution", "caution", "imports a module by name, or changes where modules come from",
             "__import__ importlib.import_module importlib.__import__ sys.path sys.modules pkgutil zipimport site"),
    **_rules("dynamic execution", "caution", "asks which modules could be imported", "importlib.util"),
    **_rules("dynamic execution", "caution", "reaches into the interpreter",
             "sys._getframe gc.get_objects gc.get_referrers inspect.currentframe "
             "inspect.stack breakpoint input"),
    **_rules("pickle", "danger", "unpickles: a crafted file runs code",
             "pickle.load pickle.loads pickle.Unpickler _pickle.load _pickle.loads _pickle.Unpickler cPickle "
             "dill cloudpickle joblib.load marshal.load marshal.loads shelve pandas.read_pickle "
             "numpy.lib.npyio.NpzFile torch.package jsonpickle torch.serialization._load torch.serialization._legacy_load"),
    **_rules("pickle", "caution", "reads a pickle file; safe only with weights_only=True (the default since torch 2.6)",
             "torch.load torch.serialization.load torch.jit.load torch.export.load numpy.load yaml.load copyreg"),
    **_rules("file", "danger", "deletes, moves or changes files",
             "os.remove os.unlink os.rmdir os.removedirs os.rename os.renames os.replace os.chmod os.chown os.link "
             "os.symlink os.truncate os.open os.mkfifo os.chroot shutil.rmtree shutil.move shutil.copy shutil.copy2 "
             "shutil.copyfile shutil.copytree shutil.chown shutil.unpack_archive"),
    **_rules("file", "caution", "reads or writes files",
             "open io.open io.FileIO codecs.open os.makedirs os.mkdir os.listdir os.scandir os.walk os.chdir glob.glob "
             "glob.iglob shutil tempfile zipfile tarfile gzip bz2 lzma sqlite3 torch.save numpy.save numpy.savez "
             "numpy.savetxt numpy.fromfile numpy.memmap json.dump pickle.dump mmap fileinput linecache "
             "torch.jit.save torch.from_file safetensors"),
    **_rules("environment", "caution", "reads or changes the environment (tokens live there)",
             "os.environ os.environb os.getenv os.putenv os.unsetenv getpass google.colab os.getlogin pwd "
             "pathlib.Path.home os.path.expanduser platform.node keyring"),
}  # fmt: skip
"""Dotted name → (kind, severity, why)."""

METHODS: dict[str, tuple[str, Severity, str]] = {
    **_rules("file", "danger", "writes, links or deletes files",
             "write_text write_bytes unlink rmdir symlink_to hardlink_to extractall"),
    **_rules("file", "caution", "reads or makes files", "read_text read_bytes touch"),
    **_rules("network", "caution", "downloads weights", "from_pretrained push_to_hub hf_hub_download"),
    **_rules("dynamic execution", "danger", "climbs from an object to the interpreter's own functions",
             "__subclasses__ __globals__ __builtins__ __code__ __closure__ __mro__ __bases__ __base__ gi_frame f_globals "
             "f_builtins f_back tb_frame cr_frame __loader__ load_module exec_module"),
    **_rules("dynamic execution", "caution", "reads attributes in a way that the review cannot follow",
             "__getattribute__ __reduce__ __reduce_ex__ __setstate__"),
}  # fmt: skip
"""Attribute or method name on any object → (kind, severity, why)."""

CALLED_METHODS: dict[str, tuple[str, Severity, str]] = {
    **_rules("process", "danger", "starts or controls other processes",
             "system popen Popen check_output check_call getoutput getstatusoutput execv execve execvp execvpe spawnl "
             "spawnv posix_spawn forkpty"),
    **_rules("file", "danger", "deletes, moves or changes files", "rmtree"),
    **_rules("network", "danger", "talks to the network", "urlopen create_connection"),
    **_rules("dynamic execution", "danger", "imports or runs what the review cannot see", "import_module CDLL"),
}  # fmt: skip
"""Names of functions that are risky when called on an object that the review cannot identify → (kind, severity, why)."""

POWERFUL_MODULES = frozenset(
    ("os", "subprocess", "sys", "builtins", "shutil", "socket", "pickle", "importlib", "ctypes", "posix", "nt", "pty")
)
"""Modules with which everything can be done: reaching them through another module, or handing them on, is reported."""

_REACHED_MODULES = POWERFUL_MODULES | {
    "bdb", "cPickle", "cffi", "cloudpickle", "codecs", "codeop", "dill", "ftplib", "imp", "io", "marshal",
    "multiprocessing", "pdb", "pexpect", "posixsubprocess", "requests", "runpy", "smtplib", "socketserver", "telnetlib",
    "types", "urllib", "webbrowser",
}  # fmt: skip
_PRIVATE_NAMES = {"posixsubprocess": "_posixsubprocess"}


def canonical(dotted: str) -> str:
    """The name that a chain through other modules ends in: "torch.os.system" and "random._os.system" are "os.system"."""
    parts = dotted.split(".")
    for index in reversed(range(len(parts))):
        name = parts[index].lstrip("_")
        if name in _REACHED_MODULES and not (index == 1 and parts[0].lstrip("_") == name):  # socket.socket is a class
            return ".".join([_PRIVATE_NAMES.get(name, name), *parts[index + 1 :]])
    return dotted


def rule_for(dotted: str) -> tuple[str, Severity, str] | None:
    """The longest rule that `dotted` falls under."""
    name = dotted
    while name:
        if name in RULES:
            return RULES[name]
        name = name.rpartition(".")[0]
    return None
