"Run the fuzz, resume it, replay a case, write the results"

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name('RESULTS.md')


def arguments(argv):
    p = argparse.ArgumentParser('fuzz', description='Damaged files and kills.')
    p.add_argument('--files', type=int, default=10_000, metavar='N', help='damaged files (default: 10,000)')
    p.add_argument('--kills', type=int, default=1000, metavar='N', help='kills (default: 1,000)')
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--only', metavar='A,B', help='these subjects and verbs only')
    p.add_argument('--work', metavar='FOLDER', help='inputs and findings (default: runs/fuzz)')
    p.add_argument(
        '--replay', metavar='ID', help='one case again, such as f1-203 or k1-7, and all that is known of it'
    )
    p.add_argument('--fresh', action='store_true', help='begin anew, instead of going on')
    p.add_argument('--write', action='store_true', help=f'write {RESULTS.relative_to(ROOT)}')
    return p.parse_args(argv)


def key():
    "Changes with the library and with this harness"
    h = hashlib.sha256()
    for folder in (ROOT / 'jetbook', ROOT / 'tests' / 'fuzz'):
        for p in sorted(folder.rglob('*.py')):
            h.update(p.read_bytes())
    return h.hexdigest()[:16]


class Log:
    "The records, one a line, in a file that a next run goes on with"

    def __init__(self, path, fresh):
        self.path = path
        self.records = []
        lines = path.read_text().splitlines() if path.exists() and not fresh else []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a run that was killed
                self.records.append(json.loads(line))
        path.write_text(''.join(json.dumps(r) + '\n' for r in self.records))
        self.done = {r['id'] for r in self.records}

    def add(self, record):
        self.records.append(record)
        with open(self.path, 'a') as f:
            f.write(json.dumps(record) + '\n')


def warm():
    "Import and compile once, before anything is forked"
    os.environ.update(MPLBACKEND='agg', OMP_NUM_THREADS='1')
    import warnings

    warnings.simplefilter('ignore')
    import torch

    torch.set_num_threads(1)
    import jetbook.all  # noqa: F401
    import jetbook.cli  # noqa: F401


def wanted(things, only):
    return [t for t in things if not only or t.name in only]


def room(work):
    "A folder in memory where that can be: each case is a few files"
    where = Path('/dev/shm') if os.access('/dev/shm', os.W_OK) else work
    place = where / f'jetbook-fuzz-{os.getpid()}'
    place.mkdir()
    return place


def say(text):
    print(text, file=sys.stderr, flush=True)


def _need(subjects, names):
    "Subjects that are to be prepared for these"
    from . import subjects as S

    return [s for s in subjects if s.name in names or s.name in S.NEEDED]


def run_files(a, log, good, place, keep):
    from . import files as F
    from . import subjects as S

    subjects = S.subjects()
    some = wanted(subjects, a.only)
    if not some or not a.files:
        return
    S.prepare(good, _need(subjects, {s.name for s in some}), say)
    cases = [(F.choose(some, a.seed, i), i) for i in range(a.files)]
    cases = [c for c in cases if f'f{a.seed}-{c[1]}' not in log.done]
    refs = {s.name: F.reference(s, good, place) for s in some if any(c[0] is s for c in cases)}
    begin = time.time()
    for n, r in enumerate(F.run_cases(cases, a.seed, good, place, refs, keep), 1):
        log.add(r)
        if r['end'] not in F.GOOD:
            what = f'{r["end"]} {r.get("op")} {r.get("type") or ""}'
            say(f'{r["id"]} {r["subject"]}: {what} ({r["damage"][:60]})')
        if n % 200 == 0:
            say(f'{n} of {len(cases)} files, {(time.time() - begin) / n:.2f} s each')


def run_kills(a, log, good, place):
    import numpy as np

    from . import kills as K
    from . import subjects as S

    verbs = wanted(K.verbs(), a.only)
    if not verbs or not a.kills:
        return
    S.prepare(good, _need(S.subjects(), ()), say)
    K.prepare(good)
    w = np.array([v.weight for v in verbs], float)
    done = sum(r.get('kills', 0) for r in log.records)
    refs = {}
    begin, first, i = time.time(), done, 0
    while done < a.kills:
        v = verbs[np.random.default_rng([a.seed, 8, i]).choice(len(verbs), p=w / w.sum())]
        i += 1
        if f'k{a.seed}-{i - 1}' in log.done:
            continue
        if v.name not in refs:
            say(f'undisturbed: {v.name}')
            refs[v.name] = K.reference(v, good, place)
        r = K.run_kill(v, a.seed, i - 1, good, place, refs[v.name])
        log.add(r)
        done += r['kills']
        if r['end'] not in K.GOOD:
            say(f'{r["id"]} {r["subject"]}: {r["end"]} {r.get("text", "")[:80]} ({"; ".join(r["how"])})')
        if i % 50 == 0:
            say(f'{done} of {a.kills} kills, {(time.time() - begin) / max(done - first, 1):.1f} s each')


def replay(a, good, place):
    "One case again"
    import numpy as np

    from . import files as F
    from . import kills as K
    from . import subjects as S

    kind, rest = a.replay[0], a.replay[1:]
    seed, index = map(int, rest.split('-'))
    if kind == 'f':
        some = wanted(S.subjects(), a.only)
        s = F.choose(some, seed, index)
        S.prepare(good, _need(S.subjects(), {s.name}), say)
        refs = {s.name: F.reference(s, good, place)}
        keep = good.parent / 'replayed'
        (r,) = F.run_cases([(s, index)], seed, good, place, refs, keep)
        r['files'] = str(keep / a.replay)
    else:
        verbs = wanted(K.verbs(), a.only)
        w = np.array([v.weight for v in verbs], float)
        v = verbs[np.random.default_rng([seed, 8, index]).choice(len(verbs), p=w / w.sum())]
        S.prepare(good, _need(S.subjects(), ()), say)
        K.prepare(good)
        r = K.run_kill(v, seed, index, good, place, K.reference(v, good, place))
    trace = r.pop('trace', None)
    print(json.dumps(r, indent=1), *([trace] if trace else []), sep='\n')


def table(records, ends, first):
    "How the cases of each kind ended, as Markdown"
    rows = Counter((r['subject'], r['end']) for r in records)
    names = list(dict.fromkeys(r['subject'] for r in records))
    kills = Counter()
    for r in records:
        kills[r['subject']] += r.get('kills', 0)
    head = [first, 'cases', *(['kills'] if any(kills.values()) else []), *ends]
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for n in sorted(names) + ['all']:
        of = [k for k in rows if n in (k[0], 'all')]
        cells = [sum(rows[k] for k in of)]
        if any(kills.values()):
            cells.append(sum(kills.values()) if n == 'all' else kills[n])
        cells += [sum(rows[k] for k in of if k[1] == e) for e in ends]
        lines.append(f'| {n} | ' + ' | '.join(f'{c:,}' if c else '' for c in cells) + ' |')
    return '\n'.join(lines)


def report(records):
    from . import files as F
    from . import kills as K

    parts = []
    for kind, module, first in (('f', F, 'damaged files'), ('k', K, 'kills')):
        some = [r for r in records if r['id'][0] == kind]
        if some:
            parts.append(table(some, [*module.GOOD, *module.BAD], first))
    return '\n\n'.join(parts)


def bad_ones(records):
    from . import files as F
    from . import kills as K

    return [r for r in records if r['end'] not in (*F.GOOD, *K.GOOD)]


def write(a, records):
    only = f" --only {';'.join(a.only)};" if a.only else ''
    command = f'make fuzz ARGS="--files {a.files} --kills {a.kills} --seed {a.seed}{only} --write"'
    found = bad_ones(records)
    text = f'# Damaged files and kills\n\n`{command}`: {len(found)} findings.\n\n{report(records)}\n\n'
    text += 'What the words mean, and what is left out: the docstring of `tests/fuzz/__init__.py`.\n'
    RESULTS.write_text(text)


def main(argv=None):
    a = arguments(argv)
    a.only = a.only.split(';' if ';' in a.only else ',') if a.only else None
    work = Path(a.work or ROOT / 'runs' / 'fuzz').resolve()
    work.mkdir(parents=True, exist_ok=True)
    lock = open(work / 'lock', 'w')  # held as long as this process is there
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f'another fuzz runs in {work}: name another folder with --work')
    good = work / f'inputs-{key()}'
    for old in work.glob('inputs-*'):
        if old != good:
            shutil.rmtree(old)
    good.mkdir(parents=True, exist_ok=True)
    warm()
    place = room(work)
    try:
        if a.replay:
            return replay(a, good, place)
        log = Log(work / f'{key()}-seed{a.seed}.jsonl', a.fresh)
        if log.done:
            say(f'{len(log.done)} cases are done already: {log.path}')
        run_files(a, log, good, place, work / 'findings')
        run_kills(a, log, good, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = bad_ones(log.records)
    print(report(log.records), f'\n{len(found)} findings: {log.path}')
    if a.write:
        write(a, log.records)
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
