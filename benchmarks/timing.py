"What the benchmarks share: rounds side by side, memory of a fresh process, tables, the machine in words"
import json, os, platform, statistics, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # one process, one thread, for all alike

def side_by_side(ways, rounds=7, clock=time.perf_counter):
    """Run all `ways` (name -> (function, units of work)) once to warm up, then in turn, `rounds` times.
    Returns name -> list of units per second of `clock`, one a round."""
    for fn,_ in ways.values(): fn()
    rates = {k:[] for k in ways}
    for i in range(rounds):
        for k in (list(ways) if i%2==0 else list(ways)[::-1]): # there and back: a drift hits all alike
            fn,n = ways[k]
            start = clock(); fn()
            rates[k].append(n/(clock()-start))
    return rates

def ratio(rates, a, b):
    "Median over the rounds of rate `a` over rate `b`"
    return statistics.median(x/y for x,y in zip(rates[a], rates[b]))

def spread(rates): return f'{min(rates):,.0f} to {max(rates):,.0f}' if min(rates) >= 100 else f'{min(rates):.2f} to {max(rates):.2f}'
def number(x): return f'{x:,.0f}' if x >= 100 else f'{x:.1f}' if x >= 10 else f'{x:.2f}'
median = statistics.median

def table(head, rows):
    "A Markdown table"
    return '\n'.join(['| '+' | '.join(head)+' |', '|'+'---|'*len(head)] + ['| '+' | '.join(map(str,r))+' |' for r in rows])

MEASURE = """
import json, sys, warnings; warnings.filterwarnings('ignore')
def status(key): return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith(key+':')) # bytes
def peak_from_here(): open('/proc/self/clear_refs','w').write('5') # the peak starts anew at what is resident now
"""

def fresh_process(code, *args):
    "Run `code` in a new interpreter; it has `status('VmRSS')`, `peak_from_here()` and prints one JSON line"
    r = subprocess.run([sys.executable, '-c', MEASURE+code, *map(str,args)], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(r.stderr[-2000:])
    return json.loads(r.stdout.strip().splitlines()[-1])

def machine():
    "The machine in words"
    model = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
    pages = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')
    return f'{os.cpu_count()} cores {model}, {pages/2**30:.0f} GB, {platform.system()}'

def versions():
    return ', '.join([f'Python {platform.python_version()}'] + [f'{k} {version(k)}' for k in ('jetbook','numpy','numba','torch','h5py','pyarrow','scipy')])

def show(result):
    "What a script prints when it is run alone"
    print(f'\n{result}\n\n{machine()}; {versions()}')
