"""All timed comparisons, one after the other -> benchmarks/RESULTS.md

    python benchmarks/run.py                all
    python benchmarks/run.py --only b2      one of them, printed
    python benchmarks/run.py --only b2 --update   and put in its place in RESULTS.md
    python benchmarks/run.py --quick        small files, few rounds, printed: to see that they run

Some minutes and 4 GB of temporary files (in $TMPDIR); no other work on the machine meanwhile. The sections that studies
write (`make studies`) are taken from nbs/studies/tables.
"""
import argparse, importlib, re, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from timing import machine, versions

HEAD = """# Results

Written by `make bench`. {machine}; {versions}. Each way is run in turn with the others, in one thread;
a figure is the median of the rounds, a ratio the median of the rounds' ratios. README.md says what is compared, and why.
"""

def merged(old, parts):
    "The results `old` with the sections in `parts` put in their place, in order"
    cut = lambda text: ['## '+s for s in ('\n'+text).split('\n## ')[1:]]
    key = lambda s: s.split(':')[0]
    sections = {key(s):s for s in [*cut(old), *cut('\n'.join(parts[1:]))]}
    note = [p for p in old.split('\n## ')[0].split('\n\n') if p.startswith('*')] # in italics: what holds for sections that stay
    parts = ['\n\n'.join([parts[0].strip(), *note])+'\n', *parts[1:]]
    return '\n'.join(s.strip()+'\n' for s in [parts[0], *(sections[k] for k in sorted(sections, key=lambda k: int(re.search(r'\d+', k)[0])))])

def studies():
    "The sections that studies write, from the tables they keep"
    return [t for f in sorted((HERE.parent/'nbs'/'studies'/'tables').glob('*.md')) if (t := f.read_text(encoding='utf-8')).startswith('## B')]

def short(name): return name.split('_')[0] # 'b2' of `b2_batches`

def main():
    names = sorted((p.stem for p in HERE.glob('b[0-9]*_*.py')), key=lambda n: int(n.split('_')[0][1:]))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', help='b1, b2, ... with commas between; the results are printed, not written')
    p.add_argument('--quick', action='store_true', help='small and rough; the results are printed, not written')
    p.add_argument('--update', action='store_true', help='with --only: replace those sections of RESULTS.md')
    p.add_argument('--tmp', help='folder for temporary files')
    a = p.parse_args()
    only = a.only.split(',') if a.only else [short(n) for n in names]
    if bad := set(only)-{short(n) for n in names}: p.error(f"no such benchmark: {', '.join(bad)}. There are: {', '.join(names)}")
    parts = [HEAD.format(machine=machine(), versions=versions())]
    with tempfile.TemporaryDirectory(dir=a.tmp) as tmp:
        for n in names:
            if short(n) not in only: continue
            print(f'{n} ...', file=sys.stderr, flush=True); start = time.time()
            parts.append(importlib.import_module(n).main(tmp, a.quick))
            print(f'{n} took {time.time()-start:.0f} s', file=sys.stderr, flush=True)
    text = '\n'.join(p.strip()+'\n' for p in parts)
    print(text)
    old = (HERE/'RESULTS.md').read_text(encoding='utf-8') if a.update else ''
    if not a.quick: text = merged(old, [*parts, *studies()])
    if not a.quick and (a.update or not a.only): (HERE/'RESULTS.md').write_text(text, encoding='utf-8'); print(f'written to {HERE/"RESULTS.md"}', file=sys.stderr)

if __name__=='__main__': main()
