"""Execute notebooks in place, with nbdev_test's own rules for which cells to skip, and clean them.

    python tests/runnb.py                       every notebook of nbs/
    python tests/runnb.py 02_conv_ae            one (name, number or path; several may follow)
    python tests/runnb.py --studies             every study of nbs/studies/
    python tests/runnb.py 02_conv_ae --flags slow   its `#| slow` cells too

Pictures are stored as PNG. What differs from machine to machine and tells a reader nothing (paths, progress bars,
seconds per epoch, deprecation notes of other libraries) is left out. A notebook that fails is left as it was.
"""
import argparse, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def _overwrite(line):
    "What a terminal shows of `line`: each carriage return starts it again"
    shown = ''
    for part in line.split('\r'): shown = part + shown[len(part):]
    return shown.rstrip()

_bar = re.compile(r'^\s*(Epoch \d+/\d+ : )?\|[-█]+\|\s+\d|\d+%\|.*\|\s*\d+/\d+ \[|^█+$|(it/s|s/it)[\],]') # fastprogress, tqdm
_seconds = re.compile(r'(?<=\d)\s+(\d+:)?\d\d:\d\d\s*$')                                                    # last column of a fastai table
_foreign = re.compile(r'^\S*site-packages/\S+:\d+: (Future|Deprecation|PendingDeprecation)Warning:')
_places = [(re.compile(r'[^\s\'"(<]*/site-packages/'), 'site-packages/'),
           (re.compile(re.escape(str(ROOT))+r'/?'), ''),
           (re.compile(re.escape(tempfile.gettempdir())+r'/(tmp\w{8}/?)?'), 'tmp/'),
           (re.compile(re.escape(str(Path.home()))+r'(?=/)'), '~')]

def tidy(text, stderr=False):
    "Stream or reply `text` as a reader wants it"
    out,skip,table = [],False,False
    for line in text.split('\n'):
        if '\r' in line: line = _overwrite(line)
        if skip and line.startswith('  '): skip = False; continue   # the source line under a warning
        skip = stderr and bool(_foreign.search(line))
        if skip or _bar.search(line): continue
        if re.match(r'epoch\s.*\stime\s*$', line): line,table = re.sub(r'\s+time\s*$', '', line),True
        elif table and re.match(r'\d+\s', line): line = _seconds.sub('', line)
        else: table = False
        out.append(line)
    res = '\n'.join(out)
    for pat,new in _places: res = pat.sub(new, res)
    return res if res.strip() else ''

def tidy_outputs(outs):
    "Stored outputs of one cell, with `tidy` text and without empty streams"
    kept = []
    for o in outs:
        if o['output_type']=='stream':
            text = tidy(''.join(o['text']), o['name']=='stderr')
            if not text: continue
            o['text'] = text.splitlines(True)
        for k,v in o.get('data', {}).items():
            if k.startswith('text/'):
                text = ''.join(v)
                for pat,new in _places: text = pat.sub(new, text)
                o['data'][k] = text.splitlines(True)
        kept.append(o)
    return kept

def run(fn, flags=()):
    "Execute notebook `fn` in place, `#| slow`-like cells only where `flags` names their flag"
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import nbdev_clean
    from nbdev.config import get_config
    from nbdev.process import extract_directives
    from fastcore.utils import working_directory
    skip_flags = set(get_config(path=fn).tst_flags.split()) - set(flags)
    nb = read_nb(fn)
    def skip(c):
        if c.cell_type!='code' or 'nbdev_export'+'(' in c.source: return True
        d = extract_directives(c, remove=False)
        if d.get('eval:', [''])[0].lower()=='false' or skip_flags & d.keys(): return True
        c.outputs = [] # a cell that no longer says anything must not keep its old words
    def tidied(c): c.outputs = tidy_outputs(c.outputs)
    shell = CaptureShell(fn, mpl_format='png')
    with working_directory(fn.parent):
        try: shell.run_all(nb, exc_stop=True, preproc=skip, postproc=tidied)
        except BaseException: sys.exit(shell.prettytb(fn.name) if shell.exc else f'{fn.name}: stopped')
    write_nb(nb, fn)
    nbdev_clean(str(fn))

def find(name):
    "Notebook a person means by `name`: path, stem, or what the stem starts with"
    for p in (Path(name), ROOT/'nbs'/name, ROOT/'nbs'/f'{name}.ipynb', ROOT/'nbs'/'studies'/f'{name}.ipynb'):
        if p.suffix=='.ipynb' and p.exists(): return p.resolve()
    hits = sorted((ROOT/'nbs').glob(f'{name}_*.ipynb'))
    if len(hits)==1: return hits[0]
    sys.exit(f"runnb: no notebook {name!r}. There are: {', '.join(p.stem for p in [*notebooks(), *studies()])}")

def notebooks(): return sorted((ROOT/'nbs').glob('[!_.]*.ipynb'))
def studies(): return sorted((ROOT/'nbs'/'studies').glob('[!_.]*.ipynb'))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help='notebooks (default: all of nbs/)')
    p.add_argument('--flags', default='', help='test flags whose cells run too, for example "slow"')
    p.add_argument('--studies', action='store_true', help='every study')
    a = p.parse_args()
    fns = [find(o) for o in a.names] + (studies() if a.studies else []) or notebooks()
    if len(fns)==1:
        sys.path.insert(0, str(ROOT))
        start = time.time()
        run(fns[0], a.flags.split())
        return print(f'{fns[0].name}: {time.time()-start:.1f} s')
    # one process a notebook: nothing of one is left over in the next
    bad = [f.name for f in fns if subprocess.run([sys.executable, __file__, str(f), '--flags', a.flags]).returncode]
    if bad: sys.exit(f"runnb: {len(bad)} of {len(fns)} failed: {', '.join(bad)}")

if __name__=='__main__': main()
