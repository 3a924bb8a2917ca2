"B10: how long a command takes to answer, and how much memory it takes"
import json
import sys
import tempfile
from pathlib import Path

from timing import fresh_process, median, number, show, spread, table

from jetbook.data.store import toy_jets
import jetbook.data.files  # gives stores `to_dense`

# A launcher that imports nothing: the peak memory of a child counts that of its parent at the fork
LAUNCH = """
import os, subprocess, time
ways, rounds = json.loads(sys.argv[1]), int(sys.argv[2])
def once(command):
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode: raise RuntimeError(f'{command}: {said.decode()[-1000:]}')
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
for command in ways.values(): once(command)    # files into the page cache, kernels into numba's
runs = {k: [] for k in ways}
for i in range(rounds):
    for k in (list(ways) if i % 2 == 0 else list(ways)[::-1]): runs[k].append(once(ways[k]))
print(json.dumps(runs))
"""

LIMITS = {'`python -c "import h5py, numpy"`': 'import h5py, numpy', '`python -c "import torch"`': 'import torch'}
GOAL = ('--help', 'info', 'recipes')  # under 1.5 s and 200 MB on a quiet machine


def commands(tmp):
    "Title -> command: the verbs that train nothing, on a tiny file, and a prediction by a tiny run"
    tmp = Path(tmp)
    dense = toy_jets(64).to_dense(tmp / 'startup.h5')
    python = [sys.executable, '-W', 'ignore']
    jetbook = [*python, '-m', 'jetbook.cli']
    store = str(tmp / 'startup.jets.h5')
    run = str(tmp / 'startup_run')
    train = ['train', 'fused_pfn', 'sample:qg', '-o', run, '--epochs', '1', '--n-train', '256', '-q']
    fresh_process(LAUNCH, json.dumps({'train': jetbook + train}), 0)
    verbs = {
        '--help': ['--help'],
        'info': ['info', 'sample:qg'],
        'recipes': ['recipes'],
        'detectors': ['detectors'],
        'verify': ['verify', 'sample:qg'],
        'pack': ['pack', str(dense), '-o', store, '--overwrite', '-q'],
        'predict': ['predict', run, store, '-o', str(tmp / 'startup.csv'), '--overwrite', '-q'],
    }
    ways = {k: [*python, '-c', code] for k, code in LIMITS.items()}
    return {**ways, **{f'`jetbook {k}`': jetbook + args for k, args in verbs.items()}}


def main(tmp, quick=False):
    rounds = 1 if quick else 5
    runs = fresh_process(LAUNCH, json.dumps(commands(tmp)), rounds)
    seconds = {k: [s for s, _, _ in r] for k, r in runs.items()}
    processor = {k: median(s for _, s, _ in r) for k, r in runs.items()}
    memory = {k: median(mb for _, _, mb in r) for k, r in runs.items()}
    torch = median(seconds['`python -c "import torch"`'])
    rows = [
        [k, f'{median(s):.2f}', spread(s), f'{processor[k]:.2f}', number(memory[k]), f'{median(s) / torch:.2f}']
        for k, s in seconds.items()
    ]
    met = all(median(seconds[f'`jetbook {k}`']) < 1.5 and memory[f'`jetbook {k}`'] < 200 for k in GOAL)
    head = ['command', 'seconds (median)', 'lowest to highest', 'processor seconds', 'peak MB', 'over `import torch`']
    return '\n\n'.join(
        [
            '## B10: start-up',
            f'Each command in a fresh process, in turn with the others, rounds: {rounds}, after one to warm up. '
            'Processor seconds tell how much of the time was spent waiting for other work on the machine. '
            '`info` and `verify` open the shipped quark/gluon sample, `pack` packs 64 toy jets, '
            '`predict` scores them with a small `fused_pfn`.',
            table(head, rows),
            f'Goal: {", ".join(f"`{k}`" for k in GOAL)} under 1.5 s and 200 MB: {"met" if met else "not met here"}. '
            'Measured earlier, on a quiet machine, when every command imported all of jetbook: `info` 5.3 s and '
            '1,074 MB, `recipes` 11.7 s and 1,382 MB, `detectors` 7.0 s, `verify` 3.7 s.',
        ]
    )


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as t:
        show(main(t, '--quick' in sys.argv))
