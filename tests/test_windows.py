"""Windows, as far as Linux can stand in for it: there an open or mapped file can be neither removed nor replaced,
a text has the encoding of the country, and a signal 0 ends a process"""
import ast
import contextlib
import io
import os
import re
import sys
from pathlib import Path

import pytest

from jetbook.cli import main

LIB = Path(__file__).parent.parent / 'jetbook'
MODULES = sorted(p for p in LIB.rglob('*.py') if p.name != '_modidx.py')

watched = []  # folders, while a test watches them
broken = []  # what Windows would refuse there


def _busy(path):
    "The files of a folder, or the file, that are open or mapped in this process"
    path = os.path.realpath(os.fsdecode(path))
    held = []
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            held.append(os.readlink(f'/proc/self/fd/{fd}'))
    with open('/proc/self/maps', encoding='utf-8') as f:
        held += [line.split(maxsplit=5)[5].strip() for line in f if len(line.split()) > 5]
    return sorted({h for h in held if h == path or h.startswith(path + '/')})


def _watch(event, args):
    if not watched or event not in ('os.remove', 'os.rename', 'os.rmdir', 'os.kill'):
        return
    if event == 'os.kill':
        return broken.append('os.kill')
    paths = [p for p in args[:2] if isinstance(p, (str, bytes, os.PathLike))]
    for p in map(os.fsdecode, paths):
        if any(os.path.abspath(p).startswith(w) for w in watched) and '.lock' not in p and _busy(p):
            broken.append(f'{event} of {Path(p).name}')


@contextlib.contextmanager
def no_busy_files(folder):
    "No file of `folder` may be removed or replaced while it is open, and none may be open at the end"
    broken.clear()
    watched.append(str(folder))
    try:
        yield
    finally:
        watched.clear()
    assert not broken, broken
    assert _busy(folder) == []  # none was left open


@pytest.fixture(scope='module', autouse=True)
def hook():
    sys.addaudithook(_watch)  # there is no way to remove it


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    import jetbook.data.files  # gives stores `to_dense`
    from jetbook.data.store import toy_jets

    d = tmp_path_factory.mktemp('windows')
    toy_jets(40).to_dense(d / 'cms.h5')
    toy_jets(400, 'wqcd').save(d / 'w.jets.h5')
    return d


CHAIN = """
info cms.h5
pack cms.h5 -o cms.jets.h5 -q
pack cms.h5 -o cms.jets.h5 -q --overwrite
pack cms.h5 -o half.jets.h5 -q --towers 2
verify cms.jets.h5 cms.h5 -q
export-dense cms.jets.h5 -o back.h5 -q
sample wqcd -o small.jets.h5
train pfn_quick cms.jets.h5 -o tagger --epochs 2 --set bs=8 -q
train pixel_code w.jets.h5 -o code --epochs 1 --set hidden=8 --set bs=32 --set steps=[0.001,0.5] --set step=0.02 -q
train gcn cms.jets.h5 -o gcn --epochs 1 --set bs=8 -q
evaluate tagger cms.jets.h5
evaluate tagger cms.jets.h5 --part valid
predict tagger cms.jets.h5 -o scores.csv -q
predict tagger cms.jets.h5 -o scores.csv -q --overwrite
compare tagger gcn --plot a.png
compress code w.jets.h5 -o w.jetz -q
decompress w.jetz -m code -o back.jets.h5 -q
fit mean_image w.jets.h5 --background QCD -o det -q
fit mean_image w.jets.h5 --background QCD -o det -q
fit gmm_latent w.jets.h5 --background QCD -o latent --set epochs=1 -q
scan det w.jets.h5 -o scan.jets.h5 --top 2
search w.jets.h5 --background QCD --methods mean_image --seeds 1 --part valid -o search -q
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='needs /proc')
@pytest.mark.parametrize('line', CHAIN.strip().splitlines())
def test_no_file_is_open_when_it_is_replaced(folder, line, monkeypatch):
    monkeypatch.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with no_busy_files(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(line.split())
    assert status == 0, err.getvalue()


def _calls(path):
    "(line, name, call) of all calls in a module"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Call):
            yield node.lineno, getattr(node.func, 'attr', getattr(node.func, 'id', '')), node


def _mode(call):
    mode = next((k.value for k in call.keywords if k.arg == 'mode'), call.args[1] if len(call.args) > 1 else None)
    return getattr(mode, 'value', 'r')


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(LIB)))
def test_texts_are_utf8(path):
    "`open` and `write_text` take the encoding of the country on Windows unless they are told"
    for line, name, call in _calls(path):
        named = any(k.arg == 'encoding' for k in call.keywords)
        if name == 'open' and isinstance(call.func, ast.Name) and len(call.args):
            assert named or 'b' in _mode(call), f'{path.name}:{line}'
        if name == 'write_text' or (name == 'read_text' and isinstance(call.func, ast.Attribute)):
            assert named, f'{path.name}:{line}'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(LIB)))
def test_nothing_that_only_unix_has(path):
    "Neither modules nor functions, but where they are asked for first"
    text = path.read_text(encoding='utf-8')
    for name in ('import fcntl', 'import pwd', 'import grp', 'os.fork', 'os.getuid', 'SIGKILL', '/dev/null'):
        assert name not in text, name
    for name, guard in (
        ('os.kill', r"if os\.name == 'nt'"),
        ('import resource', 'except ImportError'),
        ('os.sysconf', r'(except |suppress)\(AttributeError'),
        ('os.sched_getaffinity', r"hasattr\(os, 'sched_getaffinity'\)"),
    ):
        assert name not in text or re.search(guard, text), name


class _Kernel32:
    "Windows' own, for two processes: 7 runs, 8 has ended with exit status 1"

    def OpenProcess(self, access, inherit, pid):
        return pid if pid in (7, 8) else 0

    def GetLastError(self):
        return 87

    def GetExitCodeProcess(self, handle, code):
        code._obj.value = 259 if handle == 7 else 1
        return 1

    def CloseHandle(self, handle):
        return 1


def test_a_process_is_looked_up_without_a_signal(monkeypatch):
    import ctypes
    from types import SimpleNamespace
    from jetbook.data import paths

    monkeypatch.setattr(ctypes, 'windll', SimpleNamespace(kernel32=_Kernel32()), raising=False)
    assert [paths._alive_on_windows(pid) for pid in (7, 8, 9)] == [True, False, False]
    monkeypatch.setattr(_Kernel32, 'GetLastError', lambda self: 5)  # it runs, and is somebody else's
    assert paths._alive_on_windows(9)


@pytest.fixture
def nt(monkeypatch):
    "`os.name` of Windows; pathlib has chosen its class already"
    from jetbook.data import paths

    class Os:
        name = 'nt'

        def __getattr__(self, k):
            return getattr(os, k)

    monkeypatch.setattr(paths, 'os', Os())
    return paths


@pytest.mark.parametrize('name', ['nul', 'CON.h5', 'lpt1.jets.h5', 'aux '])
def test_device_names_are_no_files(nt, tmp_path, name):
    with pytest.raises(nt.OutputError, match='is a device'):
        nt.output_file(tmp_path / name)
    assert nt.output_file(tmp_path / 'console.h5').name == 'console.h5'


def test_an_open_file_is_left_for_the_next_run(nt, tmp_path, monkeypatch):
    "An error stays the error it is, although what it leaves cannot be removed"

    def refuse(self, missing_ok=False):
        raise PermissionError(13, 'in use')

    monkeypatch.setattr(Path, 'unlink', refuse)
    with pytest.raises(ZeroDivisionError):
        with nt.atomic_path(tmp_path / 'a.txt') as part:
            part.touch()
            1 / 0


@pytest.mark.parametrize('code', [32, 33, 1224])
def test_in_use_is_said(code):
    from jetbook.data.paths import os_problem

    e = OSError(13, 'Permission denied')
    e.winerror = code
    assert os_problem(e)[0] == 'is in use by another process'
