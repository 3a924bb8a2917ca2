"Packing that is killed, runs out of room or is started twice: nothing is broken, and the next run ends with the same bytes"
import json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

import h5py, numpy as np, pytest, torch

import jetbook.data.files as files
from conftest import child, survives
from jetbook.data.store import DataError, JetStore, toy_jets
from jetbook.data.files import pack
from jetbook.data.paths import OutputError

@pytest.fixture
def late_file(tmp_path):
    "48 small jets of three channels: the first is of pixels, the second of towers with two odd jets, the third of towers up to jet 33: it is rewritten on the way"
    rng,x = np.random.default_rng(0),np.zeros((48,15,15,3),'f4')
    for c in range(3): x[...,c] = np.where(rng.random((48,3,3))<.3, rng.random((48,3,3)), 0).repeat(5,1).repeat(5,2)
    x[rng.integers(0,48,1500),rng.integers(0,15,1500),rng.integers(0,15,1500),0] = 1
    x[4,3,3,1] = x[20,3,3,1] = x[4,3,3,2] = 2
    x[33:,::2,::2,2] += 1
    with h5py.File(tmp_path/'late.h5','w') as f: f['X_jets'],f['y'],f['pt'],f['m0'] = x,np.arange(48)%2,rng.random(48),rng.random(48)
    return tmp_path/'late.h5'

@pytest.fixture(autouse=True)
def small_steps(monkeypatch): monkeypatch.setattr(files, 'STEP_BYTES', 6*15*15*3*4) # 6 of those jets at a time

def quietly(source, dest, **kwargs): pack(source, dest, progress=False, **kwargs); return None

def unbroken(source):
    "The bytes of the store, packed in one go"
    dest = source.with_name('unbroken.jets.h5')
    quietly(source, dest)
    return dest.read_bytes()

WATCHED = [sys.modules[f'jetbook.{o}'].__file__ for o in ('data.files','data.store','data.hdf5','data.paths')]

def lines_run(fn, *args, kill=None):
    "Run `fn`, counting the lines of jetbook's files that are executed; SIGKILL this process at line number `kill`"
    count = 0
    def _line(frame, event, arg):
        nonlocal count
        if event=='line':
            count += 1
            if count==kill: os.kill(os.getpid(), signal.SIGKILL)
        return _line
    sys.settrace(lambda frame, event, arg: _line if frame.f_code.co_filename in WATCHED else None)
    try: fn(*args)
    finally: sys.settrace(None)
    return count

def done(dest):
    "Number of jets that the record beside `dest` vouches for"
    try: return json.loads((dest.with_name(dest.name+'.part')/'progress.jsonl').read_text().rsplit('\n',2)[-2])['done']
    except (OSError,IndexError): return None

def finish(source, dest, want):
    "What a killed run left is never a broken store; another run ends with the bytes of an unbroken one and clears up"
    if dest.exists(): assert dest.read_bytes()==want
    else: quietly(source, dest)
    assert dest.read_bytes()==want
    left = {p.name for p in dest.parent.iterdir()}-{dest.name}
    assert left <= {dest.name+'.part'}

@pytest.fixture
def out(tmp_path):
    "A destination; in memory where that can be, since each store is synced to its disk"
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else tmp_path) as d: yield Path(d)/'late.jets.h5'

def test_killed_at_any_line(late_file, out):
    want,seen = unbroken(late_file),set()
    total,_ = survives(lines_run, quietly, late_file, out)
    for k in range(1, total, max(total//70, 1)):
        for p in (out.with_name(out.name+'.part'), out.parent): [q.unlink() for q in p.glob('*') if q.is_file()]
        assert child(lambda: lines_run(quietly, late_file, out, kill=k)).signal==signal.SIGKILL
        seen.add(done(out))
        finish(late_file, out, want)
    assert len(seen) > 5 # kills before, between and after the chunks

def test_killed_again_and_again(late_file, out):
    want,rng,kills = unbroken(late_file),np.random.default_rng(1),0
    while not out.exists() and kills < 100:
        k = int(rng.integers(100,1000))
        kills += child(lambda: lines_run(quietly, late_file, out, kill=k)).signal==signal.SIGKILL
    assert kills > 3
    finish(late_file, out, want)

def test_killed_at_any_moment(tmp_path, monkeypatch):
    "kill -9 from outside, in a large file, as soon as so many jets are packed"
    monkeypatch.setattr(files, 'STEP_BYTES', 2**23)
    toys = toy_jets(600)
    dense,dest,rng = toys.to_dense(tmp_path/'dense.h5'),tmp_path/'out'/'dense.jets.h5',np.random.default_rng(0)
    want,seen = unbroken(dense),[]
    for stop in (1,150,300,450):
        def _kill(pid):
            while (n := done(dest) or 0) < stop and not dest.exists(): seen.append(n)
            seen.append(n)
            time.sleep(rng.random()*.005); os.kill(pid, signal.SIGKILL)
        assert child(quietly, dense, dest, meanwhile=_kill).signal==signal.SIGKILL
    assert seen==sorted(seen) and len(set(seen)) > 4 # each run went on where the one before was
    finish(dense, dest, want)
    assert (JetStore(dest).images()==toys.images()).all()

# --- no room ----------------------------------------------------------------------------------------------------------

def refused_for_room(source, dest, **kwargs):
    "What `pack` says where there is no room; only such an error is let through"
    try: pack(source, dest, progress=False, **kwargs)
    except OutputError as e:
        assert 'No room' in e.what and 'free space' in e.do, e
        return str(e)

@pytest.mark.parametrize('there', [False,True])
def test_files_may_not_grow(late_file, out, there):
    "A limit on the size of files, at many sizes: every write of `pack` meets it once"
    want = unbroken(late_file)
    for size in (1, 60, 300, 500, 1000, 2000, 3000, 4096, 6000, len(want)-4000, len(want)-2048, len(want)-100, len(want)-1):
        if there: out.write_bytes(b'old')
        said,_ = survives(refused_for_room, late_file, out, overwrite=there, fsize=size)
        assert said, f'no error at {size} bytes'
        assert out.read_bytes()==b'old' if there else not out.exists()
        assert [p.name for p in out.parent.iterdir() if p!=out]==[out.name+'.part']
        if size%3: pack(late_file, out, progress=False, overwrite=True); assert out.read_bytes()==want; out.unlink() # else: go on from what the next leaves

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 512 KiB"
    d = tmp_path/'disk'; d.mkdir()
    if os.getuid() or subprocess.run(['mount','-t','tmpfs','-o','size=512k','tmpfs',d], capture_output=True).returncode: pytest.skip('needs the right to mount a file system')
    yield d
    subprocess.run(['umount','-l',d])

def test_full_disk(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'STEP_BYTES', 2**23)
    toys = toy_jets(900)
    dense,dest = toys.to_dense(tmp_path/'dense.h5'),small_disk/'dense.jets.h5'
    want = unbroken(dense)
    assert len(want) > 2**19
    said = refused_for_room(dense, dest)
    assert said and 'run again' in said and not dest.exists()
    n = done(dest)
    assert 0 < n < 900
    subprocess.run(['mount','-o','remount,size=4m',small_disk], check=True)
    first = []
    src = files.open_source(dense); read = src.read
    src.read = lambda lo,hi: first.append(lo) or read(lo,hi)
    quietly(src, dest)
    assert first[0]==n and dest.read_bytes()==want

def test_full_disk_while_saving(small_disk):
    toys = toy_jets(900)
    (small_disk/'a.jets.h5').write_bytes(b'old')
    for fn in (lambda: toys.save(small_disk/'a.jets.h5'), lambda: toys.to_dense(small_disk/'a.jets.h5')):
        with pytest.raises(OutputError, match='a.jets.h5 does not fit: no space is left.*Do: free space'): fn()
        assert (small_disk/'a.jets.h5').read_bytes()==b'old' and len(list(small_disk.iterdir()))==1

# --- what the next run may go on from ---------------------------------------------------------------------------------

def half(source, dest, threads=1, **kwargs):
    "Kill packing after some chunks"
    def _fn():
        commit = files._Spool.commit
        def _commit(self, done):
            commit(self, done)
            if done >= 24: os.kill(os.getpid(), signal.SIGKILL)
        files._Spool.commit = _commit
        torch.set_num_threads(threads)
        quietly(source, dest, **kwargs)
    assert child(_fn).signal==signal.SIGKILL
    assert done(dest)==24

def begins(source, dest, **kwargs):
    "Number of the first jet the next run reads"
    src,first = files.open_source(source, channels=kwargs.pop('channels',None)),[]
    read = src.read; src.read = lambda lo,hi: first.append(lo) or read(lo,hi)
    quietly(src, dest, **kwargs)
    return first[0]

def test_goes_on(late_file, out):
    want = unbroken(late_file)
    half(late_file, out)
    assert begins(late_file, out)==24 and out.read_bytes()==want

def test_goes_on_with_other_threads(late_file, out):
    "Killed with three threads, ended with one, and the other way round"
    want = unbroken(late_file)
    half(late_file, out, threads=3)
    assert begins(late_file, out)==24 and out.read_bytes()==want
    out.unlink()
    half(late_file, out)
    e = child(lambda: (torch.set_num_threads(3), quietly(late_file, out)))
    assert e.error is None and out.read_bytes()==want

def test_begins_again_for_another_file(late_file, out):
    half(late_file, out)
    with h5py.File(late_file,'r+') as f: f['X_jets'][3,3,3,0] = 9
    assert begins(late_file, out)==0 and out.read_bytes()==unbroken(late_file)
    assert JetStore(out).images([3])[0,0,3,3]==9

@pytest.mark.parametrize('kwargs', [dict(channels=('a','b','c')), dict(towers=1), dict(towers=3), dict(negative='zero')])
def test_begins_again_for_other_settings(late_file, out, kwargs):
    half(late_file, out)
    assert begins(late_file, out, **kwargs)==0
    other = out.with_name('other.jets.h5'); quietly(late_file, other, **kwargs)
    assert out.read_bytes()==other.read_bytes()

@pytest.mark.parametrize('spoil', ['short','gone','record','no record'])
def test_begins_again_after_a_power_loss(late_file, out, spoil):
    "What was written last may be missing on the disk, though the record has it"
    want,part = unbroken(late_file),out.with_name(out.name+'.part')
    half(late_file, out)
    if spoil=='short': os.truncate(part/'0.1.pixel', (part/'0.1.pixel').stat().st_size-2)
    if spoil=='gone': (part/'2.5.value').unlink()
    if spoil=='record': (part/'progress.jsonl').write_text('{"key": ')
    if spoil=='no record': (part/'progress.jsonl').unlink()
    assert begins(late_file, out)==0 and out.read_bytes()==want

def test_two_at_once(late_file, out):
    "The second is told so, and does the first no harm"
    want = unbroken(late_file)
    def _slow():
        src = files.open_source(late_file); read = src.read
        src.read = lambda lo,hi: time.sleep(.2) or read(lo,hi)
        quietly(src, out)
    def _second(pid):
        while done(out) is None: time.sleep(.01)
        for source in (late_file, np.zeros((3,5,5,1),'f4')):
            with pytest.raises(DataError, match='another process'): quietly(source, out)
    e = child(_slow, meanwhile=_second)
    assert e.error is None and e.signal is None and out.read_bytes()==want
