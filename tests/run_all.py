"""Everything `make test` checks, with one sum at the end: N passed, N failed.

    python tests/run_all.py                       all steps but the last
    python tests/run_all.py --only sync,pytest    some of them
    python tests/run_all.py --only newest         the one step that is asked for by name: the exported library's tests with the newest of everything

A step that fails does not keep the next ones from running. Each notebook counts as one, each pytest test as one, and each other check
as one. Standard library only: it must be able to say what is wrong when an installation is.
"""
import argparse, filecmp, os, shutil, subprocess, sys, tempfile, time, xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = min(2, os.cpu_count() or 1)
NB_LIMIT = 900 # s; a notebook takes under two minutes, a busy machine a few times that

def notebooks(): return sorted((ROOT/'nbs').glob('[!_.]*.ipynb')) + sorted((ROOT/'nbs'/'studies').glob('[!_.]*.ipynb'))

def sh(*cmd, cwd=ROOT, timeout=None, **env):
    "Run `cmd`; returns (worked, what it printed)"
    try: r = subprocess.run([str(o) for o in cmd], cwd=cwd, timeout=timeout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors='replace', env={**os.environ, **env})
    except subprocess.TimeoutExpired as e:
        return False, f"{(e.stdout or b'').decode(errors='replace')}\nstopped after {timeout} s"
    except OSError as e: return False, str(e)
    return r.returncode==0, r.stdout

def say(name, ok, text='', secs=None):
    "One line a check; what it printed only where it failed"
    print(f"{'ok  ' if ok else 'FAIL'} {name}" + (f'  {secs:.0f} s' if secs is not None else ''), flush=True)
    if not ok and text: print('\n'.join('     '+l for l in text.strip().splitlines()[-60:]), flush=True)
    return ok

def check(name, *cmd, **kwargs):
    "Run `cmd` as one check; returns whether it passed"
    start = time.time()
    ok,text = sh(*cmd, **kwargs)
    return say(name, ok, text, time.time()-start)

def score(oks): return sum(oks), len(oks)-sum(oks)

def same_folder(a, b, pattern):
    "Names whose files differ between folders `a` and `b`, or are in one of them only"
    names = {p.relative_to(d).as_posix() for d in (a,b) for p in d.rglob(pattern)}
    return sorted(n for n in names if not ((a/n).exists() and (b/n).exists() and filecmp.cmp(a/n, b/n, shallow=False)))

def copy_project(to):
    "What `nbdev_export` and `nbdev_clean` need, in folder `to`"
    by_hand = [p for p in (ROOT/'jetbook').rglob('__init__.py')]
    for p in (ROOT/'settings.ini', ROOT/'setup.py', *by_hand):
        (to/p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to/p.relative_to(ROOT))
    shutil.copytree(ROOT/'nbs', to/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', 'kept'))

def sync():
    "Modules are what the notebooks export"
    with tempfile.TemporaryDirectory() as t:
        copy_project(t := Path(t))
        ok,text = sh(BIN/'nbdev_export', cwd=t)
        bad = same_folder(t/'jetbook', ROOT/'jetbook', '*.py') if ok else []
    if bad: text = f"{', '.join(bad)}: not what the notebooks export. Change the notebook and run `nbdev_export`"
    return score([say('modules are what the notebooks export', ok and not bad, text)])

def clean():
    "Notebooks carry no noise, and the README is made from the index"
    with tempfile.TemporaryDirectory() as t:
        copy_project(t := Path(t))
        ok,text = sh(BIN/'nbdev_clean', cwd=t)
        bad = same_folder(t/'nbs', ROOT/'nbs', '*.ipynb') if ok else []
    if bad: text = f"{', '.join(bad)}: run `nbdev_clean`"
    return score([say('notebooks are clean', ok and not bad, text),
                  check('their code is laid out by `ruff format nbs`', BIN/'ruff', 'format', '--check', '-q', 'nbs'),
                  check('README.md is made from nbs/index.ipynb', sys.executable, 'docs/readme.py', '--check')])

def notebook(fn):
    threads = str(max(1, (os.cpu_count() or 1)//WORKERS))
    return check(fn.name, BIN/'nbdev_test', '--path', fn, '--do_print', timeout=NB_LIMIT, OMP_NUM_THREADS=threads, MPLBACKEND='agg')

def run_notebooks():
    "Every chapter and the quick cells of every study run; a process for each, two at a time"
    with ThreadPoolExecutor(WORKERS) as ex: return score(list(ex.map(notebook, notebooks())))

def run_pytest(*args, python=sys.executable, cwd=ROOT, **env):
    "Run pytest with `args`; each test counts as one"
    with tempfile.TemporaryDirectory() as t:
        out = Path(t)/'junit.xml'
        rc = subprocess.run([str(python), '-m', 'pytest', '-q', '--continue-on-collection-errors', f'--junitxml={out}', *map(str, args)], cwd=cwd,
                            stdin=subprocess.DEVNULL, env={**os.environ, **env}).returncode
        try: suites = list(ET.parse(out).getroot().iter('testsuite'))
        except (OSError, ET.ParseError): return 0,1
    n,bad,skipped = (sum(int(s.get(k,0)) for s in suites for k in ks) for ks in (['tests'],['failures','errors'],['skipped']))
    return n-bad-skipped, max(bad, rc!=0)

def pytest():
    "What a notebook cell can't test"
    return run_pytest('tests', '--ignore=tests/test_site.py', '--durations=8', f'-n{WORKERS}', '--dist=loadfile', OMP_NUM_THREADS='1')

def docs():
    "The site builds, and a warning is an error; it is opened in a browser"
    with tempfile.TemporaryDirectory() as t:
        site = Path(t)/'site'
        oks = [check('equations need no network, where npm is', 'docs/mathjax.sh'),
               check('notebooks become pages', sys.executable, 'docs/nbsrc.py'),
               check('nothing on a page is wrong', sys.executable, '-m', 'sphinx', '-n', '-W', '--keep-going', '-q', '-j', 'auto', '-b', 'html', '-c', 'docs', 'docs/_nbs', site),
               check('every link leads somewhere', sys.executable, 'docs/links.py', site)]
        good,bad = run_pytest('tests/test_site.py', '-rs', JETBOOK_SITE=str(site))
    return good+sum(oks), bad+len(oks)-sum(oks)

OPENS = """
import jetbook, sys
from jetbook.data.hdf5 import sample
for name in ('qg','wqcd','tau','egamma','dark'): print(repr(sample(name))); assert sample(name).images([0]).abs().sum()>0
assert 'site-packages' in jetbook.__file__, jetbook.__file__
assert not {'nbdev','sphinx','pytest'} & set(sys.modules)
"""

def wheel():
    "Wheel and source archive, and the wheel in an environment that has nothing else"
    with tempfile.TemporaryDirectory() as t:
        t,oks = Path(t),[]
        oks.append(check('wheel and source archive are built', sys.executable, '-m', 'build', '--quiet', '--outdir', t/'dist'))
        built = sorted((t/'dist').glob('*')) if oks[0] else []
        oks.append(check('their metadata is right', sys.executable, '-m', 'twine', 'check', '--strict', *built))
        if not oks[0]: return score(oks)
        py,away = t/'env'/'bin'/'python',t/'elsewhere'
        away.mkdir()
        whl = next(p for p in built if p.suffix=='.whl')
        oks.append(check('an empty environment is made', sys.executable, '-m', 'venv', t/'env'))
        oks.append(check('the wheel installs there', py, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet', whl))
        oks.append(check('it opens its samples', py, '-c', OPENS, cwd=away))
        oks.append(check('it runs its command', t/'env'/'bin'/'jetbook', '--help', cwd=away))
        oks.append(check('it runs the demo, with the newest fastai and fastcore', t/'env'/'bin'/'jetbook', 'demo', '--jets', '200', '--epochs', '1', '-q', cwd=away, timeout=600))
    return score(oks)

LIBRARY = 'test_cli.py', 'test_compress.py', 'test_hostile.py', 'test_pack_kill.py', 'test_pack_property.py', 'test_runs_kill.py' # pytest's tests of the library

def newest():
    "The wheel alone with the newest of everything: the README's lines, each notebook's tests as on Kaggle, and pytest's tests of the library"
    sys.path.insert(0, str(ROOT/'tests'))
    import kaggle
    with tempfile.TemporaryDirectory() as t:
        t = Path(t)
        kaggle.environment(t)
        nbs = [n.stem for n in notebooks() if n.stem[0].isdigit()]
        steps = kaggle.Steps(t)
        kaggle.readme(steps, t)
        for n in nbs: kaggle.notebook(steps, t, ROOT/'nbs'/f'{n}.ipynb', False, NB_LIMIT)
        room = kaggle.new_room(t, 'pytest')
        py,env = room/'env'/'bin'/'python',kaggle.environ(t, room)
        ok = check('pytest is installed beside it', py, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet', 'jetbook[compress]', 'pytest', 'hypothesis', 'psutil', **env)
        print(sh(py, '-c', "from importlib.metadata import version as v; print(*(f'{p} {v(p)}' for p in ('jetbook','fastai','fastcore','torch','torch-geometric','numpy','pandas')), sep=', ')", cwd=room/'working', **env)[1])
        good,bad = run_pytest(*(ROOT/'tests'/n for n in LIBRARY), python=py, cwd=room/'working', **env)
    return good+1+len(nbs)-len(steps.bad)+ok, bad+len(steps.bad)+(not ok)

STEPS = dict(sync=sync, clean=clean, notebooks=run_notebooks, pytest=pytest, docs=docs, wheel=wheel, newest=newest)
ALWAYS = [n for n in STEPS if n!='newest']

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default=','.join(ALWAYS), help=f"steps, with commas between: {', '.join(STEPS)}")
    names = p.parse_args().only.split(',')
    if bad := [n for n in names if n not in STEPS]: p.error(f"no such step: {', '.join(bad)}. There are: {', '.join(STEPS)}")
    sums,begun = {},time.time()
    for n in names:
        print(f'\n== {n}: {STEPS[n].__doc__}', flush=True)
        start = time.time()
        try: good,bad = STEPS[n]()
        except Exception as e: good,bad = 0,int(not say(n, False, f'{type(e).__name__}: {e}'))
        sums[n] = good,bad,time.time()-start
    print()
    for n,(good,bad,secs) in sums.items(): print(f'{n:10} {good:4} passed {bad:4} failed {secs:6.0f} s')
    print(f'all        {time.time()-begun:31.0f} s')
    good,bad = (sum(s[i] for s in sums.values()) for i in (0,1))
    print(f'{good} passed, {bad} failed', flush=True)
    sys.exit(bad>0)

if __name__=='__main__': main()
