"`find` as a Kaggle notebook calls it: a fresh process, the data set below `input`, the working folder as the current one"
import json, os, subprocess, sys
from pathlib import Path

import pytest

from jetbook.data.store import JetStore
from jetbook.data.files import find
from jetbook.data.hdf5 import sample

sys.path.insert(0, str(Path(__file__).parent))
import kaggle

@pytest.fixture
def machine(tmp_path, toys):
    "A folder like Kaggle's, with a small file of the CMS layout that may only be read, and the working folder"
    import jetbook.data.files
    dense = tmp_path/'input'/kaggle.NAME
    dense.parent.mkdir(parents=True); (tmp_path/'working').mkdir()
    toys.to_dense(dense, chunks=(8,125,125,3), compression=1)
    dense.chmod(0o444); dense.parent.chmod(0o555)
    yield dense,tmp_path/'working'
    dense.parent.chmod(0o755)

def found(work, **env):
    "What `find()` says in a fresh process in the folder `work`, and the number of jets it returns"
    code = 'from jetbook.data.files import find; s = find(progress=False); print(len(s))'
    env = {**os.environ, 'PYTHONPATH':str(kaggle.ROOT), 'JETBOOK_DATA':str(work.parent/'input'), **env}
    r = subprocess.run([sys.executable, '-c', code], cwd=work, env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode==0, r.stderr
    *said,n = r.stdout.strip().splitlines()
    return ' '.join(said),int(n)

def test_packs_once(machine, toys, monkeypatch, capsys):
    dense,work = machine
    store,before = work/f'{dense.stem}.jets.h5',dense.read_bytes()
    said,n = found(work)
    assert n==len(toys) and str(dense) in said and 'packing it once' in said
    packed = store.stat()
    said,n = found(work)
    assert n==len(toys) and said==f'Found {store.name}'
    assert (store.stat().st_ino, store.stat().st_mtime_ns)==(packed.st_ino, packed.st_mtime_ns) # not written again
    assert [p.name for p in work.iterdir()]==[store.name] and dense.read_bytes()==before
    assert (JetStore(store).images()==toys.images()).all() and (JetStore(store).columns['y']==toys.columns['y']).all()
    assert [p.name for p in dense.parent.iterdir()]==[dense.name]
    dense.parent.chmod(0o755); store.unlink(); dense.unlink()
    monkeypatch.chdir(work); monkeypatch.setenv('JETBOOK_DATA', str(work.parent/'input'))
    n,said = len(find()),capsys.readouterr().out
    assert n==len(sample('qg')) and 'No CMS quark/gluon file in' in said and str(dense.parents[1]) in said and 'sample, simulated' in said

# --- the script that runs the notebooks there -------------------------------------------------------------------------

def cell(source, kind='code'): return dict(cell_type=kind, source=source.splitlines(True), outputs=[1], execution_count=3)

def test_slow_cells_are_left_out():
    "Away from a checkout a flagged cell says so and does not run; without its flag it does"
    from IPython.core.interactiveshell import InteractiveShell
    assert set(kaggle.flags())=={'slow','gpu'}
    cells = [cell('#| slow\ntrain()'), cell('#| hide\n#| slow\ntrain()'), cell("s = '#| slow'"), cell('#| slow', 'markdown'), cell('#| gpu\nx'), cell('#| gpu')]
    assert [kaggle.flagged(c) for c in cells]==[True,True,False,False,True,True]
    given = kaggle.as_given(dict(cells=[dict(c) for c in cells]))['cells']
    assert [c['source'] for c in given]==[c['source'] for c in cells] and all(c['outputs']==[] for c in given if c['cell_type']=='code')
    assert [''.join(c['source']) for c in kaggle.as_given(dict(cells=[dict(c) for c in cells]), slow=True)['cells'][:2]]==['train()','#| hide\ntrain()']
    firsts = {}
    for fn in sorted((kaggle.ROOT/'nbs').glob('[0-9]*.ipynb')):
        cells_ = json.loads(fn.read_text())['cells']
        first = next(c for c in cells_ if 'find_spec' in ''.join(c['source'])) # installs jetbook where it is missing
        rest = [c for c in cells_ if c is not first]
        assert ('Left out' in ''.join(first['source']))==any(map(kaggle.flagged, rest)), fn.name
        if 'Left out' in ''.join(first['source']): firsts[''.join(first['source']).split('import os')[1]] = fn
    assert len(firsts)==1 # the same lines everywhere
    shell = InteractiveShell()
    shell.user_ns['get_ipython'] = lambda: shell
    assert shell.run_cell('import os'+next(iter(firsts)).replace("'../settings.ini'", "'no such file'")).success
    for c in cells:
        out = shell.transform_cell(''.join(c['source']))
        assert out.startswith("print('Left out")==(''.join(c['source'])!="s = '#| slow'"), out

def test_surroundings(tmp_path, monkeypatch):
    "A step sees the wheel's environment and nothing of the repository"
    monkeypatch.setenv('PYTHONPATH', str(kaggle.ROOT)); monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setenv('PATH', os.pathsep.join([str(kaggle.ROOT/'.venv'/'bin'), '/usr/bin']))
    env = kaggle.environ(tmp_path, tmp_path/'room')
    assert env['PATH']==os.pathsep.join([str(tmp_path/'room'/'env'/'bin'), str(tmp_path/'env'/'bin'), '/usr/bin']) and env['JETBOOK_DATA']==str(tmp_path/'input')
    assert not {'PYTHONPATH','IN_TEST'} & set(env)

def test_goes_on(tmp_path, capsys):
    "What passed is not done again; what failed, or another notebook of that name, is"
    (tmp_path/'working').mkdir(); (tmp_path/'env'/'bin').mkdir(parents=True); (tmp_path/'env'/'bin'/'python').symlink_to(sys.executable)
    code = "import pathlib\nstart = time.time()\nwith open('ran','a') as f: f.write('x')\ntell(note='fine')\nassert not pathlib.Path('bad').exists(), 'it is bad'"
    ran = lambda key='': (kaggle.Steps(tmp_path)('a step', code, room=tmp_path, key=key), len((tmp_path/'working'/'ran').read_text()))
    (tmp_path/'working'/'bad').touch()
    assert ran()==(False,1) and kaggle.Steps(tmp_path).rows['a step']['ok']==False
    assert 'FAIL' in capsys.readouterr().out and 'it is bad' in (tmp_path/'logs'/'a-step.txt').read_text()
    (tmp_path/'working'/'bad').unlink()
    assert ran()==(True,2) and ran()==(True,2) and ran('other')==(True,3)
    row = kaggle.Steps(tmp_path).rows['a step']
    assert row['note']=='fine' and 1 < row['mb'] < 1000 and 0 <= row['seconds'] < 10
    steps = kaggle.Steps(tmp_path)
    assert not steps('a step', code, room=tmp_path, key='b', check=lambda row,text: 'too large') and steps.bad==['a step'] and steps.rows['a step']['note']=='too large'

@pytest.mark.parametrize('args,what', [(['--folder',str(kaggle.ROOT/'here')], 'lies in the repository'), (['--notebooks','99_none'], 'no notebook 99_none')])
def test_refuses(args, what, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['kaggle.py','--folder',str(tmp_path),*args])
    with pytest.raises(SystemExit) as e: kaggle.main()
    assert e.value.code==2 and what in capsys.readouterr().err and not list(tmp_path.iterdir())
