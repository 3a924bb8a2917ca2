"""Do the notebooks run on Kaggle and Colab? From the wheel alone, away from the repository, beside a full-size file of the CMS layout.

    python tests/kaggle.py                                 everything: ten minutes to an hour, 10 GB of disk
    python tests/kaggle.py --notebooks 00_data 05b_sets    the large file, and these notebooks only
    python tests/kaggle.py --jets 0                        no large file: `find` has to fall back to the sample
    python tests/kaggle.py --slow                          the cells marked `#| slow` too, which away from a checkout say that they are left out

It builds the wheel and makes

    FOLDER/env                                                              what Kaggle has: the packages that jetbook needs, and Jupyter
    FOLDER/input/quark-gluon-data-set/quark-gluon_data-set_n139306.hdf5     as /kaggle/input
    FOLDER/rooms/NAME/working                                               as /kaggle/working, the current folder, one for each notebook

jetbook itself is not in `env`: as on Kaggle, a notebook's first cell has to install it. `pip install jetbook` gives the wheel here, and what
a notebook installs is seen by that notebook only.

The large file holds the shipped sample, over and over: its jets are simulated, and since they repeat, a score reached on them means
nothing. What counts is its size: 26 GB of float32 once unpacked. Every step is a fresh process; its peak is the largest resident memory
(VmHWM). What passed is kept in FOLDER/results.json, so a stopped run goes on where it was, with the wheel and environment it had;
`--again` begins anew, but keeps the environment, and `--rebuild` makes that again too. FOLDER is left: delete it by hand. Linux only;
standard library only.
"""
import argparse, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FULL = 139_306     # jets of the file on Kaggle
MOST = 4*2**10     # MiB; what `find`, training on all jets, and each notebook may take
NAME = 'quark-gluon-data-set/quark-gluon_data-set_n139306.hdf5'
MADE = 'dist', 'input', 'rooms', 'logs'
KERNEL = 'nbclient', 'ipykernel', 'ipywidgets' # what the notebooks run in; part of Kaggle's and Colab's image

TELL = """
def tell(**kwargs):
    peak = next(int(l.split()[1])/2**10 for l in open('/proc/self/status') if l.startswith('VmHWM'))
    print('RESULT '+json.dumps(dict(seconds=time.time()-start, mb=peak, **kwargs)), flush=True)
"""
WRITE = """
import json, sys, time, os
start = time.time()
import numpy as np, jetbook.data.files
from jetbook.data.hdf5 import sample
from pathlib import Path
s,n,dest = sample('qg'),int(sys.argv[1]),Path(sys.argv[2])
dest.parent.mkdir(parents=True, exist_ok=True)
s.select(np.arange(n)%len(s)).to_dense(dest, chunks=(64,125,125,3), compression=1)
tell(note=f'{n:,} jets, {dest.stat().st_size/2**20:,.0f} MiB, {n*125*125*3*4/1e9:.1f} GB unpacked')
"""
FIND = """
import json, sys, time
start = time.time()
from jetbook.data.files import find
s = find(progress=False)
assert 'site-packages' in sys.modules['jetbook'].__file__
tell(jets=len(s), note=f'{s.path.name}, {s.path.stat().st_size/2**20:,.0f} MiB')
"""
TRAIN = """
import json, shutil, sys, time
start = time.time()
from jetbook.data.files import find
from jetbook.train.runs import train
s = find(progress=False)
shutil.rmtree('runs', ignore_errors=True) # or the run would go on, and measure less
run = train('pfn_quick', s, 'runs/pfn_quick', epochs=1, progress=False)
tell(jets=len(s), note=f'{run.metrics["fit"]["seconds"]:.0f} s for one epoch')
"""
NOTEBOOK = """
import json, os, sys, time
start = time.time()
import nbformat
from nbclient import NotebookClient
fn,limit = sys.argv[1],float(sys.argv[2])
nb = nbformat.read(fn, 4)
client = NotebookClient(nb, kernel_name='python3', resources=dict(metadata=dict(path=os.getcwd())))
peak,rise,note,most = 0,0,'',''
with client.setup_kernel():
    status = f'/proc/{client.km.provisioner.pid}/status'
    for i,c in enumerate(nb.cells):
        client.timeout = max(1, int(start+limit-time.time()))
        try: client.execute_cell(c, i)
        except Exception as e: note = f'cell {i} ({c.get("id")}): ' + (f'{e.ename}: {e.evalue}' if hasattr(e,'ename') else f'{type(e).__name__}: {e}'); trace = str(e)
        try: now = next(int(l.split()[1])/2**10 for l in open(status) if l.startswith('VmHWM'))
        except (OSError,StopIteration): now = 0 # the kernel is gone
        if now-peak > rise: rise,most = now-peak,f'{now-peak:,.0f} MiB more in cell {i} ({c.get("id")})'
        peak = max(peak, now)
        if note: print(trace); break
nbformat.write(nb, fn)
left_out = sum(any(o.get('text','').startswith('Left out') for o in c.outputs) for c in nb.cells if c.cell_type=='code')
print('RESULT '+json.dumps(dict(seconds=time.time()-start, mb=peak, note=note[:300] or most, left_out=left_out)), flush=True)
sys.exit(bool(note))
"""

def environ(folder, room):
    "The surroundings of a step: the room's commands first, nothing of the repository, data sets below `input`, our wheel for `pip install jetbook`"
    env = {k:v for k,v in os.environ.items() if k not in ('PYTHONPATH','PYTHONHOME','VIRTUAL_ENV','MPLBACKEND','IN_TEST')}
    first = [str(p/'env'/'bin') for p in (room,folder)]
    paths = [*first, *(p for p in env.get('PATH', os.defpath).split(os.pathsep) if not Path(p).is_relative_to(ROOT))]
    return {**env, 'PATH':os.pathsep.join(paths), 'JETBOOK_DATA':str(folder/'input'), 'PYTHONNOUSERSITE':'1',
            'PIP_FIND_LINKS':f"{env.get('PIP_FIND_LINKS','')} {folder/'dist'}".strip(), 'PIP_CONSTRAINT':str(folder/'wheel.txt')}

def sh(*cmd, timeout=None, **kwargs):
    "Run `cmd`; returns (worked, what it printed)"
    try: r = subprocess.run([str(o) for o in cmd], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors='replace', timeout=timeout, **kwargs)
    except subprocess.TimeoutExpired as e: return False, f"{(e.stdout or b'').decode(errors='replace')}\nstopped after {timeout} s"
    return r.returncode==0, r.stdout

def must(*cmd, **kwargs):
    ok,text = sh(*cmd, **kwargs)
    if not ok: sys.exit(f'{" ".join(map(str,cmd))}\n{text[-3000:]}')

def environment(folder):
    "The wheel, and an environment with what it needs and a Jupyter kernel, but without it"
    if not list((folder/'dist').glob('*.whl')): must(sys.executable, '-m', 'build', '--wheel', '--quiet', '--outdir', folder/'dist', cwd=ROOT)
    whl,pip = next((folder/'dist').glob('*.whl')),(folder/'env'/'bin'/'python', '-m', 'pip', '--disable-pip-version-check')
    (folder/'wheel.txt').write_text(f'jetbook=={whl.name.split("-")[1]}\n')
    if (folder/'env'/'done').exists(): return
    must(sys.executable, '-m', 'venv', '--clear', folder/'env')
    must(*pip, 'install', '--quiet', whl, *KERNEL)
    must(*pip, 'uninstall', '--quiet', '--yes', 'jetbook')
    for p in (folder/'env'/'lib').glob('python3*/site-packages/jetbook'): shutil.rmtree(p) # a folder left empty would still be a package
    (folder/'env'/'done').touch()

def new_room(folder, name, jetbook=False):
    "An empty working folder, and an environment of its own on top of the common one; with `jetbook` in it, or not yet"
    room = folder/'rooms'/name
    shutil.rmtree(room, ignore_errors=True)
    (room/'working').mkdir(parents=True)
    must(sys.executable, '-m', 'venv', '--without-pip', room/'env')
    below,own = (next((d/'env'/'lib').glob('python3*/site-packages')) for d in (folder,room))
    (own/'below.pth').write_text(f'{below}\n')
    if jetbook: must(room/'env'/'bin'/'python', '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet', 'jetbook', env=environ(folder, room))
    return room

class Steps:
    "Named steps, each a fresh process; what passed stands in `results.json` and is not done again"
    def __init__(self, folder):
        self.folder,self.file,self.bad = folder,folder/'results.json',[]
        self.rows = json.loads(self.file.read_text()) if self.file.exists() else {}

    def passed(self, name, key): row = self.rows.get(name); return bool(row) and row['ok'] and row['key']==key

    def __call__(self, name, code, *args, room, key='', timeout=None, check=lambda row,text: ''):
        "Run `code` in a room; `check` says what is wrong with what it told and printed"
        row = self.rows.get(name)
        if not self.passed(name, key):
            ok,text = sh(room/'env'/'bin'/'python', '-c', f'import json, time\n{TELL}{code}', *args, cwd=room/'working', env=environ(self.folder, room), timeout=timeout)
            told = re.findall(r'^RESULT (.*)$', text, re.M)
            row = dict(seconds=None, mb=None, note='') | (json.loads(told[-1]) if told else {}) | dict(ok=ok, key=key)
            if ok and (wrong := check(row, text)): row |= dict(ok=False, note=wrong)
            if not row['ok']: row['note'] = row['note'] or (text.strip().splitlines() or ['no word'])[-1][:300]
            (self.folder/'logs').mkdir(exist_ok=True); (self.folder/'logs'/f'{name.replace(" ","-")}.txt').write_text(text)
            self.rows[name] = row
            self.file.with_suffix('.tmp').write_text(json.dumps(self.rows, indent=1)); os.replace(self.file.with_suffix('.tmp'), self.file)
        if not row['ok']: self.bad.append(name)
        print(line(name, row), flush=True)
        return row['ok']

HEAD = f'{"":24} {"":4} {"seconds":>8} {"peak MiB":>9}'
def line(name, row):
    n = lambda v,w: f'{v:{w},.0f}' if v is not None else ' '*w
    return f'{name:24} {"ok  " if row["ok"] else "FAIL"} {n(row["seconds"],8)} {n(row["mb"],9)}  {" ".join(row["note"].split())}'.rstrip()

def within(row): return f'more than {MOST:,} MiB; {row["note"]}' if row['mb'] > MOST else ''

def large(steps, folder, jets):
    "`find` and training, beside a file of `jets` jets or none"
    dense,room = folder/'input'/NAME,folder/'rooms'/'find'
    store,key = room/'working'/f'{dense.stem}.jets.h5',str(jets)
    def said(what): return lambda row,text: within(row) or ('' if what in text and row['jets']==(jets or row['jets']) else f'did not say "{what}" of {jets:,} jets: {text[-200:]}')
    if not jets:
        dense.unlink(missing_ok=True)
        return steps('find: the sample', FIND, room=new_room(folder, 'find', jetbook=True), check=said('this is the sample'))
    need = jets*10_000 # bytes: 1,800 of a dense jet, 600 of a packed one, twice of that while it is packed, and room for the notebooks
    if not dense.exists() and (free := shutil.disk_usage(folder).free) < need: sys.exit(f'{folder} has {free/1e9:.1f} GB free; {jets:,} jets need {need/1e9:.1f}')
    if not (dense.exists() and steps.passed('write the file', key) and store.exists() and steps.passed('find: packs', key)):
        if not dense.exists(): steps.rows.pop('write the file', None)
        for n in ('find: packs','find: finds','pfn_quick'): steps.rows.pop(n, None)
        new_room(folder, 'find', jetbook=True)
    if not steps('write the file', WRITE, jets, dense, room=room, key=key): return
    if not steps('find: packs', FIND, room=room, key=key, check=said('packing it once')): return
    steps('find: finds', FIND, room=room, key=key, check=said(f'Found {store.name}'))
    steps('pfn_quick', TRAIN, room=room, key=key, check=lambda row,text: within(row))

def readme(steps, folder):
    "The lines of Python that the README shows, pasted one block after the other where jetbook is installed"
    code = '\n'.join(re.findall(r'^```python\n(.*?)^```$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M|re.S))
    key = hashlib.sha256(code.encode()).hexdigest()[:16]
    if not steps.passed("README's lines", key): new_room(folder, 'readme', jetbook=True)
    steps("README's lines", f"start = time.time()\nimport matplotlib; matplotlib.use('agg')\n{code}\ntell(note=f\"AUC {{scores['auc']:.3f}}\")", room=folder/'rooms'/'readme', key=key,
          check=lambda row,text: within(row))

def flags():
    "Test flags of the project: away from a checkout, cells that carry one say that they are left out"
    c = ConfigParser(delimiters=['='], interpolation=None)
    c.read(ROOT/'settings.ini', encoding='utf-8')
    return c['DEFAULT']['tst_flags'].split()

def flagged(c): return c['cell_type']=='code' and any(re.search(rf'^#\| {f}$', ''.join(c['source']), re.M) for f in flags())

def as_given(nb, slow=False):
    "The notebook without its outputs; with `slow`, the lines `#| slow` taken away too, as its cells tell a reader to"
    for c in nb['cells']:
        if c['cell_type']!='code': continue
        c['outputs'],c['execution_count'] = [],None
        if slow: c['source'] = re.sub(r'^#\| slow\n', '', ''.join(c['source']), flags=re.M)
    return nb

def notebook(steps, folder, fn, slow, limit):
    "One notebook in a working folder of its own"
    nb = as_given(json.loads(fn.read_text(encoding='utf-8')), slow)
    text,left_out = json.dumps(nb),sum(map(flagged, nb['cells']))
    key,room = hashlib.sha256(text.encode()).hexdigest()[:16],folder/'rooms'/fn.stem
    if not steps.passed(fn.stem, key): (new_room(folder, fn.stem)/'working'/fn.name).write_text(text, encoding='utf-8')
    def check(row, said):
        n = row.pop('left_out', None)
        return within(row) or ('' if n==left_out else f'{left_out} cells are slow or need a GPU, {n} said that they are left out')
    if steps(fn.stem, NOTEBOOK, fn.name, limit, room=room, key=key, timeout=limit+60, check=check): shutil.rmtree(room, ignore_errors=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir())/'jetbook-kaggle', help='where all is made; outside the repository (default: %(default)s)')
    p.add_argument('--jets', type=int, default=FULL, help='jets of the large file; 0: no such file (default: %(default)s)')
    p.add_argument('--nbs', type=Path, default=ROOT/'nbs', help='folder of the notebooks (default: nbs)')
    p.add_argument('--notebooks', nargs='*', metavar='NAME', help='which of them; none: only `find` and training (default: all that have a number)')
    p.add_argument('--slow', action='store_true', help='take the lines `#| slow` away, so that those cells run too')
    p.add_argument('--timeout', type=int, default=900, help='seconds for one notebook (default: %(default)s)')
    p.add_argument('--again', action='store_true', help='begin anew, but keep the environment')
    p.add_argument('--rebuild', action='store_true', help='begin anew, with a new environment')
    a = p.parse_args()
    folder = a.folder.resolve()
    if folder.is_relative_to(ROOT): p.error(f'{folder} lies in the repository, of which nothing may be near')
    known = {f.stem:f for f in sorted(a.nbs.glob('[0-9]*.ipynb'))}
    if bad := [n for n in a.notebooks or () if n not in known]: p.error(f"no notebook {', '.join(bad)}. There are: {', '.join(known)}")
    if a.again or a.rebuild:
        for n in (*MADE, *['env'][:a.rebuild]): shutil.rmtree(folder/n, ignore_errors=True)
        (folder/'results.json').unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f'{folder}: environment', flush=True)
    environment(folder)
    steps = Steps(folder)
    print(HEAD)
    readme(steps, folder)
    large(steps, folder, a.jets)
    for n in (known if a.notebooks is None else a.notebooks): notebook(steps, folder, known[n], a.slow, a.timeout)
    print(f"{len(steps.bad)} failed{': ' if steps.bad else ''}{', '.join(steps.bad)}")
    sys.exit(bool(steps.bad))

if __name__=='__main__': main()
