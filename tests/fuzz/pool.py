"Processes of one's own: a fork with limits, whose end is seen whatever it is"

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import threading
import time
import traceback
from pathlib import Path

from tqdm import tqdm

MB = 2**20


class Hang(BaseException):
    "An operation that takes too long; no `except Exception` catches it"


def delayed(pid='self'):
    "Seconds for which a process could have run, had the machine not been busy with others"
    try:
        with open(f'/proc/{pid}/schedstat') as f:
            return int(f.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@contextlib.contextmanager
def limit(seconds):
    "Raise `Hang` after so many seconds; those in which other processes had the processor don't count"
    begin = time.time() - delayed()

    def ring(signum, frame):
        if time.time() - delayed() - begin >= seconds:
            raise Hang

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again each second
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def status(key):
    "A figure of this process in MB, such as VmRSS"
    with open('/proc/self/status') as f:
        return next((int(l.split()[1]) / 1024 for l in f if l.startswith(key + ':')), 0)


def forget_peak():
    "From here on VmHWM is the peak of what follows"
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def begin_child(memory=None, quiet=True, group=False):
    "Limits of a process that was just forked"
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the parent
    if group:
        os.setsid()
    faulthandler.disable()
    gc.freeze()  # leave the parent's pages shared
    # tqdm's own lock is shared by all forks: one that is killed while it holds it would stop the others
    tqdm.set_lock(threading.RLock())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        n = int((status('VmSize') + memory) * MB)
        resource.setrlimit(resource.RLIMIT_AS, (n, n))
    if quiet:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)


def fork(fn, *args, **limits):
    "Start `fn(*args, say)` in a fork; the process and the end of a pipe at which what it says arrives"
    r, w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(w)
        return pid, r
    try:
        os.close(r)
        begin_child(**limits)
        with os.fdopen(w, 'w') as f:

            def say(**o):
                f.write(json.dumps(o, default=str) + '\n')
                f.flush()

            try:
                fn(*args, say)
            except BaseException as e:
                say(error=type(e).__name__, text=str(e)[:500], trace=traceback.format_exc()[-4000:])
    finally:
        os._exit(0)


def listen(pid, r, seconds):
    "What a fork says, one dict a line, until it ends; then dict(end=signal, or None, or 'hang')"
    rest = b''
    end = None
    deadline = time.time() + seconds
    lost = delayed(pid)
    try:
        while True:
            ready, _, _ = select.select([r], [], [], max(deadline - time.time(), 0))
            if not ready:
                now = delayed(pid)
                if now - lost > 1:  # it had to wait for the processor
                    deadline, lost = time.time() + now - lost, now
                    continue
                end = 'hang'
                break
            data = os.read(r, 65536)
            if not data:
                break
            deadline, lost = time.time() + seconds, delayed(pid)  # it is alive
            *lines, rest = (rest + data).split(b'\n')
            for line in lines:
                yield json.loads(line)
    finally:
        os.close(r)
        if end == 'hang':
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    yield dict(end=end or (-code if code < 0 else None))


def where(e):
    "The last place of an exception in jetbook, and in what lies below"
    frames = traceback.extract_tb(e.__traceback__)
    ours = [f for f in frames if '/jetbook/' in f.filename]
    at = ours[-1] if ours else frames[-1] if frames else None
    name = at.filename.rsplit('/jetbook/', 1)[-1] if at else '?'
    return f'{name}:{at.name}' if at else '?'
