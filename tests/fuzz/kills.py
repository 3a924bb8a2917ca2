"Verbs that are killed, run again, and looked at"

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import time
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np

from . import pool
from . import subjects as S

SECONDS = 60  # for a run that is not killed
GOOD = ('whole',)
BAD = 'stuck', 'lost', 'left', 'touched', 'broken', 'both', 'orphans', 'foreign', 'hang'

Verb = namedtuple('Verb', 'name owner weight act result out mark begin', defaults=[None, None])
Verb.__doc__ = """act(place, good, variant) writes `place / out`; result(place, good): what is there, as
parts; mark: name of the file that shows a folder is ours, where two at once must not both win;
begin(place, good): what is there before"""


# --- the verbs -------------------------------------------------------------------------------------------


def _pack(place, good, v):
    from jetbook.data.files import pack

    S.small_steps()
    pack(good / 'kills' / f'dense{v}.h5', place / 'out.jets.h5', progress=False, overwrite=True)


def _store(place, good):
    from jetbook.data.store import JetStore

    return S.of_store(JetStore(place / 'out.jets.h5'))


def _trained(recipe, store='jets', **settings):
    def act(place, good, v):
        from jetbook.data.store import JetStore
        from jetbook.train.runs import train

        jets = JetStore(good / 'kills' / f'{store}.jets.h5')
        train(recipe, jets, place / 'out', seed=v, progress=False, **settings)

    return act


def _run(place, good):
    from jetbook.train.runs import Run

    r = Run(place / 'out')
    assert r.complete, 'the run is not complete'
    leave = ('seconds', 'date', 'created', 'versions')
    return dict(
        weights=dict(r.model().state_dict()),
        history=S.steady_table(r.history),
        metrics=S.steady(r.metrics),
        config={k: v for k, v in r.config.items() if k not in (*leave, 'crc32', 'checksum')},
    )


def _fitted(method, **settings):
    def act(place, good, v):
        from jetbook.anomaly.methods import fit_background
        from jetbook.data.store import JetStore

        own = dict(power=1.0 - 0.25 * v) if method == 'mean_image' else dict(random_state=v)
        jets = JetStore(good / 'kills' / 'jets.jets.h5')
        fit_background(method, jets, 'QCD', out=place / 'out', **settings, **own)

    return act


def _bundle(place, good):
    from jetbook.anomaly.methods import anomaly_score, load_method, p_values

    m = load_method(place / 'out')
    s = anomaly_score(m, S._others(good))
    return dict(score=s, p=p_values(m, s))


def _simulate(place, good, v):
    from jetbook.simulate.jets import simulate

    simulate('wqcd', 40, seed=v + 1, workers=2, dest=place / 'out.jets.h5', progress=False)


def _compress(place, good, v):
    from jetbook.codec.files import compress

    store = good / 'kills' / ('jets.jets.h5' if v else 'few.jets.h5')
    compress(good / 'code' / 'run', store, place / 'out.jetz', block=20, progress=False)


def _bytes(name):
    return lambda place, good: dict(bytes=hashlib.sha256((place / name).read_bytes()).hexdigest())


def _decompress(place, good, v):
    from jetbook.codec.files import decompress

    decompress(good / 'kills' / f'{v}.jetz', good / 'code' / 'run', place / 'out.jets.h5', progress=False)


def _scan(place, good, v):
    from jetbook.anomaly.methods import scan

    store = good / 'kills' / ('jets.jets.h5' if v else 'many.jets.h5')
    scan(good / 'mean_image' / 'bundle', store, place / 'out.jets.h5', top=2)


def _scanned(place, good):
    return dict(_store(place, good), picture=(place / 'out.png').stat().st_size > 1000)


def _export(place, good, v):
    import jetbook.data.files  # noqa: F401
    from jetbook.data.store import JetStore

    JetStore(good / 'kills' / ('jets.jets.h5' if v else 'many.jets.h5')).to_dense(place / 'out.h5')


def _dense(place, good):
    return S.read_dense(place / 'out.h5')


def _search(place, good, v):
    from jetbook.anomaly.methods import anomaly_method
    from jetbook.anomaly.search import compare_methods
    from jetbook.data.store import JetStore

    methods = dict(
        mean_image=anomaly_method('mean_image', power=1.0 - 0.25 * v), ae=anomaly_method('ae', epochs=1)
    )
    jets = JetStore(good / 'kills' / 'jets.jets.h5')
    compare_methods(jets, 'QCD', place / 'out', methods, (0,), progress=False)


def _searched(place, good):
    from jetbook.train.training import load_tensors

    files = sorted((place / 'out').glob('*/scores-*.safetensors'))
    assert len(files) == 2, f'{len(files)} files of scores'
    return {f.parent.name: load_tensors(f)[0] for f in files}


def _compare(place, good, v):
    from jetbook.data.store import JetStore
    from jetbook.taggers.compare import compare_recipes

    jets = JetStore(good / 'kills' / 'jets.jets.h5')
    compare_recipes(jets, ['pfn_quick'], place / 'out', (2 * v, 2 * v + 1), epochs=1)


def _compared(place, good):
    from jetbook.taggers.compare import tagger_scores

    runs = sorted(p for p in (place / 'out').iterdir() if p.is_dir())
    return {r.name: S.steady(v) for r, v in zip(runs, tagger_scores(runs)['pfn_quick'])}


def _a_run(place, good):
    shutil.copytree(good / 'classifier' / 'run', place / 'out')


def _evaluate(place, good, v):
    from jetbook.train.runs import evaluate

    evaluate(place / 'out', S._jets(good), ('test', 'train')[v])


def _evaluated(place, good):
    from jetbook.train.runs import Run

    r = Run(place / 'out')
    parts = [k for k in ('test', 'train') if k in r.metrics]
    return {k: dict(r.scores(k), metrics=S.steady(r.metrics[k])) for k in parts}


def _graphs(place, good, v):
    from jetbook.data.store import JetStore
    from jetbook.graphs.batches import cache_graphs

    jets = JetStore(good / 'kills' / ('jets.jets.h5' if v else 'many.jets.h5'))
    cache_graphs(jets, place / 'out.safetensors')


def _save(place, good, v):
    from jetbook.data.hdf5 import JetStore

    JetStore(good / 'kills' / ('jets.jets.h5' if v else 'many.jets.h5')).save(place / 'out.jets.h5')


def verbs():
    "All verbs that can be tried here"
    small = dict(epochs=2, schedule='flat')
    res = [
        Verb('pack', 'files', 14, _pack, _store, 'out.jets.h5'),
        Verb('train classifier', 'runs', 10, _trained('pfn_quick', **small), _run, 'out', 'config.json'),
        Verb(
            'train autoencoder',
            'runs',
            7,
            _trained('latent_ae', width=16, **small),
            _run,
            'out',
            'config.json',
        ),
        Verb('train graph', 'runs', 4, _trained('gcn', 'few', **small), _run, 'out', 'config.json'),
        Verb('evaluate', 'runs', 6, _evaluate, _evaluated, 'out', None, _a_run),
        Verb('fit mean_image', 'anomaly', 10, _fitted('mean_image'), _bundle, 'out', 'config.json'),
        Verb('fit ae', 'anomaly', 7, _fitted('ae', epochs=2), _bundle, 'out', 'config.json'),
        Verb('compress', 'anomaly', 6, _compress, _bytes('out.jetz'), 'out.jetz'),
        Verb('decompress', 'anomaly', 6, _decompress, _store, 'out.jets.h5'),
        Verb('scan', 'anomaly', 5, _scan, _scanned, 'out.jets.h5'),
        Verb('export-dense', 'files', 9, _export, _dense, 'out.h5'),
        Verb('save', 'store', 8, _save, _store, 'out.jets.h5'),
        Verb('search', 'anomaly', 4, _search, _searched, 'out'),
        Verb('compare', 'train', 3, _compare, _compared, 'out'),
        Verb('graph cache', 'anomaly', 5, _graphs, _bytes('out.safetensors'), 'out.safetensors'),
    ]
    with contextlib.suppress(ImportError):
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401

        res.append(Verb('simulate', 'files', 0.4, _simulate, _store, 'out.jets.h5'))
    return res  # fmt: skip


def prepare(good):
    "What the verbs read"
    folder = good / 'kills'
    if (folder / '.made').exists():
        return
    import jetbook.data.files  # noqa: F401
    from jetbook.codec.files import compress
    from jetbook.data.store import toy_jets

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    toy_jets(120, 'wqcd').save(folder / 'jets.jets.h5')
    toy_jets(30, 'wqcd').save(folder / 'few.jets.h5')
    toy_jets(2000, 'wqcd', seed=2).save(folder / 'many.jets.h5')
    for v in range(2):
        S.all_columns(toy_jets(60, 'wqcd', seed=8 + v)).to_dense(folder / f'dense{v}.h5')
        toys = toy_jets(100, 'wqcd', seed=v)
        compress(good / 'code' / 'run', toys, folder / f'{v}.jetz', block=20, progress=False)
    (folder / '.made').touch()


# --- undisturbed -----------------------------------------------------------------------------------------


def listing(place):
    "All names below a folder"
    return {p.relative_to(place).as_posix() for p in place.rglob('*')}


def _act_and_look(verb, place, good, v, say):
    begin = time.time()
    events = _watch(place)
    ok = _tell(lambda: verb.act(place, good, v), say)
    say(seconds=time.time() - begin, events=events[0])
    if ok:
        say(parts=S.canon_parts(verb.result(place, good)))


def _tell(fn, say):
    "Call it; say how it ended: 'ok', 'refused' or 'foreign'"
    from jetbook.data.store import JetbookError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            fn()
    except JetbookError as e:
        say(run='refused', text=str(e)[:300], at=pool.where(e), type=type(e).__name__)
        return False
    except Exception as e:
        import traceback

        say(
            run='foreign',
            text=str(e)[:300],
            at=pool.where(e),
            type=type(e).__name__,
            trace=traceback.format_exc()[-3000:],
        )
        return False
    say(run='ok')
    return True


def collect(pid, r, seconds=SECONDS):
    "All that a fork says, in one dict"
    res = {}
    for o in pool.listen(pid, r, seconds):
        res.update(o)
    return res


def reference(verb, good, base):
    "Result, files, seconds and file operations of a run that nothing disturbs, for both variants"
    refs = []
    for v in range(2):
        for _ in range(2 if v == 0 else 1):  # the first time is slower
            place = new_place(base, verb, good)
            r = collect(*pool.fork(_act_and_look, verb, place, good, v, group=True), 10 * SECONDS)
        if 'parts' not in r:
            raise RuntimeError(f'{verb.name} does not run: {r}')
        refs.append(dict(r, names=listing(place)))
        shutil.rmtree(place)
    return refs


def patience(ref):
    "Seconds after which a run is said to hang"
    return max(SECONDS, 8 * ref['seconds'])


def new_place(base, verb, good):
    "An empty folder, or with what is there before the verb runs"
    place = base / 'place'
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if verb.begin:
        verb.begin(place, good)
    return place


# --- the user's own files --------------------------------------------------------------------------------


def _plant(place, verb, rng):
    "Files of the user's beside the output, some of which look like ours"
    out = Path(verb.out).name
    names = [
        'notes.txt', '.mine.tmp', '.tmp', 'checkpoint/mine.bin', 'training/mine.bin', 'models/best.pth',
        f'.jetbook-{out}.elsewhere.99-0.tmp', f'.jetbook-{out}.tmp', f'{out}.tmp', f'{out}.bak',
        'out.part/a.txt', '.jetbook-other.jets.h5.tmp',
    ]  # fmt: skip
    mine = {n: rng.bytes(20) for n in names}
    for n, data in mine.items():
        (place / n).parent.mkdir(parents=True, exist_ok=True)
        (place / n).write_bytes(data)
    return mine


def _plant_inside(place, verb, rng):
    "Files of the user's in a folder that is known to be ours"
    if verb.mark is None or not (place / verb.out / verb.mark).exists():
        return {}
    names = [f'{verb.out}/{n}' for n in ('mine.txt', 'checkpoint/mine.bin', 'training/mine.bin', '.mine.tmp')]
    mine = {n: rng.bytes(20) for n in names}
    for n, data in mine.items():
        (place / n).parent.mkdir(parents=True, exist_ok=True)
        (place / n).write_bytes(data)
    return mine


def _lost_of(place, mine):
    return [n for n, data in mine.items() if not (place / n).is_file() or (place / n).read_bytes() != data]


def _folders(mine):
    return {str(p) for n in mine for p in Path(n).parents if str(p) != '.'}


# --- killing ---------------------------------------------------------------------------------------------

WATCHED = {
    'open',
    'os.rename',
    'os.remove',
    'os.mkdir',
    'os.rmdir',
    'os.truncate',
    'os.link',
    'os.symlink',
    'shutil.rmtree',
}


def _watch(place, kill_at=None):
    "Count this process's file operations below `place`; SIGKILL just before number `kill_at`"
    count = [0]
    begin = str(place)

    def hook(event, args):
        if event not in WATCHED or not args:
            return
        if event == 'open':
            mode, flags = args[1], args[2]
            writes = (
                any(c in mode for c in 'wax+') if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
            )
            if not writes:
                return
        path = args[0]
        if isinstance(path, int) or not str(
            path if not isinstance(path, bytes) else path.decode()
        ).startswith(begin):
            return
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def _act(verb, place, good, v, kill_at, say):
    if kill_at:
        _watch(place, kill_at)
    _tell(lambda: verb.act(place, good, v), say)


def _kill_once(verb, place, good, v, ref, rng, share):
    "Start and kill, in the first `share` of the run; how, or None if it was over before"
    at, seconds = None, rng.uniform(0, share) * ref['seconds']
    if rng.random() < 0.4:
        at = int(rng.integers(1, max(int(ref['events'] * share), 1) + 1))
    pid, r = pool.fork(_act, verb, place, good, v, at, group=True)
    if at is None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = collect(pid, r, patience(ref))
    how = f'after {seconds:.3f} s' if at is None else f'before file operation {at}'
    if _group_left(pid, patience(ref) / 2):
        return f'orphans {how}'
    return how if end['end'] == signal.SIGKILL else None


def _group_left(pid, seconds):
    "Do processes of a killed process's group go on?"
    until = time.time() + seconds
    while True:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return None
        if time.time() > until:
            os.killpg(pid, signal.SIGKILL)
            return 'orphans'
        time.sleep(0.05)


def _look(verb, place, good, say):
    say(parts=S.canon_parts(verb.result(place, good)))


def _half(verb, place, good, refs, old):
    "Does something half-written lie under the final name of a file?"
    out = place / verb.out
    if out.is_dir() or not out.exists():
        return False
    if old is not None and out.read_bytes() == old:
        return False
    r = collect(*pool.fork(_look, verb, place, good))
    if verb.name == 'scan':  # the picture comes after the store
        return 'parts' not in r and not (place / 'out.jets.h5').exists()
    return r.get('parts') not in [ref['parts'] for ref in refs]


def run_kill(verb, seed, index, good, base, refs):
    "Kill, run again, look: a record"
    rng = np.random.default_rng([seed, ord('k'), index])
    rec = dict(id=f'k{seed}-{index}', subject=verb.name, owner=verb.owner)
    if rng.random() < 0.12:
        return dict(rec, **_rivals(verb, good, base, refs, rng))
    for share in (1, 0.6, 0.3, 0.1):  # until a kill comes before the end
        end = _kill_and_look(verb, good, base, refs, rng, share)
        if end['kills']:
            break
    return dict(rec, **end)


def _kill_and_look(verb, good, base, refs, rng, share):
    "One to three kills, each in the run that follows, and then the run that may end"
    place = new_place(base, verb, good)
    mine = _plant(place, verb, rng)
    v = 0
    ref = refs[v]
    old = None
    if verb.mark is None and Path(verb.out).suffix and rng.random() < 0.3 and verb.name != 'graph cache':
        old = _older(verb, place, good, ref)
    how = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.75, 0.2, 0.05]))):
        said = _kill_once(verb, place, good, v, ref, rng, share)
        if said is None:
            break
        how.append(said)
        if 'orphans' in said:
            return dict(kills=len(how), how=how, end='orphans')
        if _half(verb, place, good, refs, old):
            return dict(kills=len(how), how=how, end='broken', text=f'{verb.out} is not whole')
        if rng.random() < 0.3:
            mine.update(_plant_inside(place, verb, rng))
    end = _again(verb, place, good, v, ref, mine)
    shutil.rmtree(place)
    return dict(kills=len(how), how=how, over=old is not None, **end)


def _older(verb, place, good, ref):
    "The other variant is there already; its bytes"
    collect(*pool.fork(_act, verb, place, good, 1, None), patience(ref))
    return (place / verb.out).read_bytes()


def _again(verb, place, good, v, ref, mine):
    "Run again: is all well?"
    r = collect(*pool.fork(_act_and_look, verb, place, good, v, group=True), patience(ref))
    more = {k: r[k] for k in ('text', 'at', 'type', 'trace') if k in r}
    if r.get('end') == 'hang':
        return dict(end='hang')
    if r.get('run') == 'refused':
        return dict(more, end='stuck')
    if r.get('run') != 'ok':
        return dict(more, end='foreign', signal=r.get('end'))
    if lost := _lost_of(place, mine):
        return dict(end='touched', text=', '.join(lost[:5]))
    if 'parts' not in r:
        return dict(end='lost', text=f'{r.get("error")}: {r.get("text")}')
    differs = [k for k, p in ref['parts'].items() if r['parts'].get(k) != p]
    if differs or set(r['parts']) != set(ref['parts']):
        return dict(end='lost', text='other ' + ', '.join(differs or sorted(r['parts'])))
    names = listing(place)
    if left := names - ref['names'] - set(mine) - _folders(mine):
        return dict(end='left', text=', '.join(sorted(left)[:5]))
    missing = ref['names'] - names
    if missing and all(n.endswith('.png') for n in missing):
        return dict(end='bare', text=', '.join(sorted(missing)))
    if missing:
        return dict(end='lost', text='not there: ' + ', '.join(sorted(missing)[:5]))
    return dict(end='whole')


# --- two at once -----------------------------------------------------------------------------------------


def _rivals(verb, good, base, refs, rng):
    "Two different runs into one place: one wins, and the other says so; files may be replaced as a whole"
    place = new_place(base, verb, good)
    mine = _plant(place, verb, rng)
    started = []
    for v in range(2):
        started.append(pool.fork(_act, verb, place, good, v, None, group=True))
        time.sleep(rng.uniform(0, 0.3) * refs[0]['seconds'] * (v == 0))
    ends = [collect(*s, patience(refs[0])) for s in started]
    runs = [e.get('run') for e in ends]
    how = ['two at once', str(runs)]
    res = dict(kills=0, how=how, rivals=True)
    for e in ends:
        if e.get('run') not in ('ok', 'refused'):
            more = {k: e[k] for k in ('text', 'at', 'type', 'trace') if k in e}
            return dict(res, **{**more, 'end': 'hang' if e['end'] == 'hang' else 'foreign'})
    if runs == ['refused', 'refused']:
        return dict(res, end='stuck', text='both refused: ' + ends[0]['text'][:150])
    if verb.mark and runs == ['ok', 'ok']:
        return dict(res, end='both', text='two different runs into one folder, and both end well')
    if lost := _lost_of(place, mine):
        return dict(res, end='touched', text=', '.join(lost[:5]))
    r = collect(*pool.fork(_look, verb, place, good))
    if verb.name == 'evaluate':  # both parts may be there
        good_parts = {k: p for ref in refs for k, p in ref['parts'].items()}
        fits = r.get('parts') and all(good_parts.get(k) == p for k, p in r['parts'].items())
        fits = fits and len(r['parts']) == runs.count('ok')
    elif verb.name in ('search', 'compare'):  # folders of fits, some of which both share
        fits = 'parts' in r
    else:
        winners = [ref['parts'] for ref, end in zip(refs, runs) if end == 'ok']
        fits = r.get('parts') in winners
    if not fits:
        return dict(res, end='lost', text=f'{r.get("error") or "a mixture"}: {str(r.get("text"))[:200]}')
    left = listing(place) - refs[0]['names'] - refs[1]['names'] - set(mine) - _folders(mine)
    if left:
        return dict(res, end='left', text=', '.join(sorted(left)[:5]))
    return dict(res, end='whole')
