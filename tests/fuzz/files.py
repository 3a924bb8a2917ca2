"Cases of damaged files: copied, damaged, read, judged"

import hashlib
import json
import os
import re
import shutil
import stat
import unicodedata
import warnings
from pathlib import Path

import numpy as np

from . import pool
from .damage import damage
from .subjects import canon_parts, files_of

SECONDS = 20  # for an operation
MEMORY = 256  # MB more than before
GOOD = 'refused', 'harmless', 'as read', 'verify', 'edited', 'text'
BAD = 'foreign', 'crash', 'hang', 'memory', 'silent', 'touched', 'escapes'
BATCH = 40  # cases a fork


def rng_of(seed, kind, index):
    "The random numbers of a case"
    return np.random.default_rng([seed, ord(kind), index])


def choose(wanted, seed, index):
    "The subject of a case"
    w = np.array([s.weight for s in wanted], float)
    return wanted[np.random.default_rng([seed, 7, index]).choice(len(wanted), p=w / w.sum())]


# --- one operation ---------------------------------------------------------------------------------------


def _printable(text):
    return all(c in '\n\t' or unicodedata.category(c)[0] != 'C' for c in text)


def call(op, folder, good):
    "Call an operation: dict of `end` ('ok', 'refused' or a finding), parts, and what was said"
    from jetbook.data.store import JetbookError

    pool.forget_peak()
    before = pool.status('VmRSS')
    parts = None
    try:
        with pool.limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            parts = canon_parts(op.call(folder, good))
        res = dict(end='ok')
    except JetbookError as e:
        text = str(e)
        res = dict(end='refused' if _printable(text) else 'escapes', text=text[:300], type=type(e).__name__)
        res['at'] = pool.where(e)
    except pool.Hang as e:
        res = dict(end='hang', at=pool.where(e))
    except MemoryError as e:
        res = dict(end='memory', at=pool.where(e))
    except BaseException as e:
        import traceback

        res = dict(end='foreign', type=type(e).__name__, text=str(e)[:300], at=pool.where(e))
        res['trace'] = traceback.format_exc()[-3000:]
    peak = pool.status('VmHWM') - before
    if peak > MEMORY and res['end'] in ('ok', 'refused'):
        res = dict(end='memory', at=res.get('at'), text=f'{peak:.0f} MB')
    return dict(res, op=op.name, parts=parts)


def reference(subject, good, place):
    "What all operations give for the sound files"
    res = {}
    for op in subject.ops:
        if op.name == 'images':  # it cuts the file itself, and must be refused
            res[op.name] = dict(end='refused', parts=None)
            continue
        folder = fresh(subject, good, place)
        res[op.name] = call(op, folder, good)
        shutil.rmtree(folder)
    return res


def fresh(subject, good, place):
    "A copy of a subject's files, and a file of the user's beside them"
    folder = place / 'case'
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(good / subject.name, folder, ignore=shutil.ignore_patterns('.made', 'twin'))
    (folder / 'precious.txt').write_text('mine')
    return folder


# --- a case ----------------------------------------------------------------------------------------------


def target_of(subject, folder, rng):
    "The file to damage"
    names = files_of(folder)
    names.remove('precious.txt')
    weights = np.array([(subject.targets or {}).get(n, 0 if subject.targets else 1) for n in names], float)
    return names[rng.choice(len(names), p=weights / weights.sum())]


def kind_of(path):
    "What a name says of its file: another sound file of the same kind is no damage"
    return ''.join(Path(path).suffixes)


def snapshot(folder):
    "The contents of all files, by name; of others their kind"
    res = {}
    for p in sorted(folder.rglob('*')):
        s = p.lstat()
        kind = stat.S_IFMT(s.st_mode)
        name = p.relative_to(folder).as_posix()
        if stat.S_ISREG(s.st_mode):
            res[name] = hashlib.md5(p.read_bytes()).hexdigest()
        elif stat.S_ISLNK(s.st_mode):
            res[name] = os.readlink(p)
        else:
            res[name] = kind
    return res


# what somebody with an HDF5 library did to a whole array
WHOLE = r'( (removed|renamed|as \S+|of another length)|attribute crc32 of \S+ = None)$'

WRITES = {
    'evaluate': ('metrics.json', 'scores-'),
    'resume': ('run/',),
    'fit again': ('bundle/',),
    'export': ('out.',),
    'pack': ('out.',),
    'images': ('toy.',),  # this one cuts its own file
}
MAKES = {'graphs': ('graphs.safetensors',), 'padded': ('graphs.safetensors',)}  # where there is none


def _touched(before, after, subject, ops):
    "What an operation changed that it should not have"
    may = [w for o in ops for w in WRITES.get(o, ())]
    if subject.name == 'unfinished run':
        may.append('run/')
    names = [n for n in before if after.get(n) != before[n]] + [n for n in after if n not in before]
    bad = [n for n in names if not any(m in n for m in may) and not Path(n).name.startswith('.jetbook')]
    bad = [n for n in bad if n in before or not any(n in MAKES.get(o, ()) for o in ops)]
    if before.get('precious.txt') != after.get('precious.txt') and 'precious.txt' not in bad:
        bad.append('precious.txt')
    return bad


def damaged(subject, seed, index, good, place):
    "Make the damaged folder of a case: its random numbers, the way, what was done, the file"
    rng = rng_of(seed, 'f', index)
    folder = fresh(subject, good, place)
    name = target_of(subject, folder, rng)
    others = sorted(p for p in good.glob('*/*.*') if p.is_file() and p.name != '.made')
    others = [p for p in others if kind_of(p) != kind_of(name)]
    twin = good / subject.name / 'twin' / name.partition('/')[2] if '/' in name else None
    return rng, *damage(folder / name, rng, others, twin), name


def run_case(subject, seed, index, good, place, refs, say=lambda **o: None, keep=None):
    "Damage, read, judge: a record"
    rng, way, said, name = damaged(subject, seed, index, good, place)
    folder = place / 'case'
    if keep:
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(folder, keep, symlinks=True, ignore=_only_files)
    before = snapshot(folder)
    rec = dict(
        id=f'f{seed}-{index}', subject=subject.name, owner=subject.owner, file=name, way=way, damage=said
    )
    results = []
    done = []
    for op in subject.ops:
        if op.share < 1 and rng.random() >= op.share:
            continue
        say(at=op.name)
        results.append(call(op, folder, good))
        done.append(op.name)
        out = folder / 'out.jets.h5'
        if subject.expect and op.name == 'pack' and results[-1]['end'] == 'ok':
            if results[-1]['parts'] != refs['pack']['parts']:
                say(at='reader')
                results[-1]['as_read'] = subject.expect(folder, out)
        bad = _touched(before, snapshot(folder), subject, done)
        if bad:
            results.append(dict(op=op.name, end='touched', text=', '.join(bad[:5])))
            break
        for extra in (out, folder / 'out.h5'):
            if subject.name != 'half a pack':
                extra.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return dict(rec, **judge(subject, name, results, refs, way, said))


def _only_files(folder, names):
    "Names that are not to be copied: FIFOs, devices, sockets"
    plain = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
    return [n for n in names if stat.S_IFMT(os.lstat(Path(folder) / n).st_mode) not in plain]


def judge(subject, name, results, refs, way=None, said=''):
    "The worst end of a case's operations"
    ends = []
    for r in results:
        ref = refs.get(r['op'], {})
        end = r['end']
        more = {k: r[k] for k in ('text', 'type', 'at', 'trace') if r.get(k) is not None}
        if end == 'ok':
            end, more = _compare(subject, name, r, ref)
        ends.append(dict(more, end=end, op=r['op']))
    refused = [e for e in ends if e['end'] == 'refused']
    if any(e['op'] in subject.checks for e in refused):
        for e in ends:
            if e['end'] == 'silent':
                e['end'] = 'verify'
    if way == 'hdf5' and re.search(WHOLE, said):
        for e in ends:
            if e['end'] == 'silent':
                e['end'] = 'edited'
    order = (*BAD[::-1], 'text', 'edited', 'verify', 'refused', 'as read', 'harmless')
    worst = min(ends, key=lambda e: order.index(e['end']), default=dict(end='harmless', op=''))
    return worst


def _compare(subject, name, r, ref):
    if ref.get('end') != 'ok':
        return 'silent', dict(text='accepted, though the sound file is refused')
    if r['parts'] == ref['parts']:
        return 'harmless', {}
    if subject.expect:
        if r['op'] != 'pack':
            return 'as read', {}
        said = 'not what the file holds' if r.get('as_read') is False else 'other readers refuse the file'
        return ('as read', {}) if r.get('as_read') else ('silent', dict(text=said))
    differs = [k for k, v in r['parts'].items() if ref['parts'].get(k) != v]
    text = 'other ' + ', '.join(differs[:4]) if differs else 'parts missing'
    if r['op'] in ('notes', 'compare') and Path(name).name in ('history.csv', 'metrics.json'):
        return 'text', dict(text=text)
    return 'silent', dict(text=text)


# --- many cases ------------------------------------------------------------------------------------------


def _work(cases, seed, good, place, refs, keep, say):
    for s, index in cases:
        say(begin=index)
        kept = keep / f'f{seed}-{index}' if keep else None
        rec = run_case(s, seed, index, good, place, refs[s.name], say, kept)
        if kept and rec['end'] in GOOD:
            shutil.rmtree(kept, ignore_errors=True)
        say(record=rec)


def run_cases(cases, seed, good, place, refs, keep=None):
    "Records of cases, each (subject, index); a fork for some at a time"
    cases = list(cases)
    while cases:
        batch, left, now, at = cases[:BATCH], list(cases[:BATCH]), None, None
        pid, r = pool.fork(_work, batch, seed, good, place, refs, keep, memory=3072)
        for o in pool.listen(pid, r, SECONDS + 5):
            if 'begin' in o:
                now, at = o['begin'], None
            elif 'at' in o and 'record' not in o:
                at = o['at']
            elif 'record' in o:
                left = left[1:]
                now = None
                yield o['record']
            elif 'error' in o:
                raise RuntimeError(f'the harness failed at f{seed}-{now}: {o["trace"]}')
            elif 'end' in o and left:
                s, index = left[0]
                if now != index:
                    raise RuntimeError(f'a worker ended between cases: {o}')
                yield _ended(s, seed, index, o['end'], at, good, place)
                left = left[1:]
        cases = left + cases[len(batch) :]


def _ended(s, seed, index, end, at, good, place):
    "The record of a case that ended its process"
    way, said, name = damaged(s, seed, index, good, place)[1:]
    shutil.rmtree(place / 'case', ignore_errors=True)
    rec = dict(id=f'f{seed}-{index}', subject=s.name, owner=s.owner, file=name, way=way, damage=said, op=at)
    if at == 'reader':
        return dict(rec, end='as read', text='the reader it is compared with ended')
    return dict(rec, end='hang' if end == 'hang' else 'crash', text=f'signal {end}')


def dumps(o):
    return json.dumps(o, ensure_ascii=True)
