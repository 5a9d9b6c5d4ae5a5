"""Programs in processes of their own, without the seconds in which each new Python imports torch and JAX.

A Python that has imported them waits, and is forked for each program: `run` is `subprocess.run` for a Python program,
and what it costs is the program's own work. The waiting one is not the tests' own process, which uses JAX and has
threads: such a process cannot be forked. Where the start itself is tested, run a new Python.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


@cache
def waiting() -> subprocess.Popen:
    """Return the Python that waits; it ends with its input, at the latest when the tests do."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # which closes its input, and waits for it
    return process


def run(*command, cwd=None, env=None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a program, or `-m` and a module, with flags; return its exit code and what it printed.

    Raises subprocess.TimeoutExpired, and the program is killed, after so many seconds.
    """
    command = [*map(str, command)]
    with tempfile.TemporaryDirectory() as folder:
        request = {"command": command, "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
        request |= {"timeout": timeout, "folder": folder}
        print(json.dumps(request), file=waiting().stdin, flush=True)
        code = json.loads(waiting().stdout.readline())
        stdout, stderr = (Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def program(request):
    """Return what the forked process does: all that a new Python would have found is put in place first."""
    from tests.faults.programs import python

    def start():
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['folder']}/{name}", os.O_WRONLY | os.O_CREAT), number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        quick = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"  # which JAX reads when it is imported
        sys.modules["jax"].config.update("jax_disable_most_optimizations", quick)
        for name in [name for name in sys.modules if name.partition(".")[0] == "common"]:
            del sys.modules[name]  # some of it reads the environment when it is imported
        command = request["command"]
        folder = request["cwd"] if command[0] == "-m" else str(Path(command[0]).parent)
        sys.path[:2] = [folder]  # in place of this file's two
        try:
            python(*command)()
        finally:
            atexit._run_exitfuncs()  # as a Python that ends does: workers are stopped, temporary files are deleted

    return start


def serve() -> None:
    """Answer each request, a line of JSON, with the exit code of a program, or null where it took too long."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.faults.programs import end, import_all, start

    import_all()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(end(start(program(request)), request["timeout"]).code), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
