"Sound inputs of every kind jetbook reads, what reads them, and what comes out"

import hashlib
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np

Op = namedtuple('Op', 'name call share', defaults=[1.0])  # share: in how many cases it is called
Subject = namedtuple('Subject', 'name owner weight make ops targets expect checks', defaults=[None, None, ()])
Subject.__doc__ = """make(folder, good) writes it; ops read it; targets: names of files to damage, with
weights, default all alike; expect(folder): what another reader finds in it; checks: ops that find damage"""

# --- what came out, as text that can be compared ---------------------------------------------------------


def canon(o):
    "A digest of any result"
    if hasattr(o, 'detach'):
        o = o.detach().cpu().numpy()
    if hasattr(o, 'to_csv'):
        o = dict(table=o.to_csv())
    if isinstance(o, np.ndarray):
        data = np.ascontiguousarray(o)
        body = repr(o.tolist()).encode() if o.dtype.kind == 'O' else data.tobytes()
        return hashlib.sha256(f'{o.dtype.str} {o.shape} '.encode() + body).hexdigest()[:16]
    if isinstance(o, dict):
        return hashlib.sha256(repr([(str(k), canon(v)) for k, v in o.items()]).encode()).hexdigest()[:16]
    if isinstance(o, (list, tuple)):
        return hashlib.sha256(repr([canon(v) for v in o]).encode()).hexdigest()[:16]
    if isinstance(o, np.generic):
        o = o.item()
    return hashlib.sha256(f'{type(o).__name__} {o!r}'.encode()).hexdigest()[:16]


def canon_parts(o):
    "Digests by name, so that a difference has one"
    return {str(k): canon(v) for k, v in o.items()} if isinstance(o, dict) else {'result': canon(o)}


def of_store(s):
    "All that a store holds"
    return dict(
        geometry=(s.height, s.width, tuple(s.channels), dict(s.upsample), s.layout, getattr(s, 'cell', None)),
        source=s.source,
        columns=[(k, np.asarray(v)) for k, v in sorted(s.columns.items())],
        images=s.images(),
    )


def steady(o, leave=('seconds', 'date', 'test_reads')):
    "Without what differs from one run to the next"
    if isinstance(o, dict):
        return {k: steady(v, leave) for k, v in o.items() if k not in leave}
    return [steady(v, leave) for v in o] if isinstance(o, (list, tuple)) else o


# --- stores ----------------------------------------------------------------------------------------------


def _one(folder, pattern):
    "The file of a case, damaged or not; it may be gone"
    found = sorted(folder.glob(pattern))
    return found[0] if found else folder / pattern.replace('*', 'gone')


def _store_ops(pattern, mmap):
    from jetbook.data.files import info, pack, verify
    from jetbook.data.store import JetStore

    def opened(folder, good):
        return of_store(JetStore(_one(folder, pattern), mmap=mmap))

    def verified(folder, good):
        return verify(_one(folder, pattern), progress=False)

    def looked(folder, good):
        r = info(_one(folder, pattern))
        return dict(numbers=[r[k] for k in ('jets', 'shape', 'lit_fraction')], columns=r['columns'])

    def packed(folder, good):
        return of_store(pack(_one(folder, pattern), folder / 'out.jets.h5', progress=False))

    def exported(folder, good):
        JetStore(_one(folder, pattern), mmap=mmap).to_dense(folder / 'out.h5')
        return read_dense(folder / 'out.h5')

    return [
        Op('open', opened),
        Op('verify', verified),
        Op('info', looked, 0.5),
        Op('export', exported, 0.2),
        Op('pack', packed, 0.1),
    ]


def _scored_store_ops(pattern):
    from jetbook.anomaly.methods import scan
    from jetbook.train.runs import predict

    def predicted(folder, good):
        return predict(good / 'classifier' / 'run', _one(folder, pattern))

    def scanned(folder, good):
        return scan(good / 'mean_image' / 'bundle', _one(folder, pattern)).reset_index()

    return [Op('predict', predicted, 0.3), Op('scan', scanned, 0.3)]


def _cut_in_use(folder, good):
    "A mapped store that gets shorter while it is in use"
    from jetbook.data.store import JetStore

    path = _one(folder, '*.jets.h5')
    s = JetStore(path, mmap=True)
    os.truncate(path, path.stat().st_size // 3)
    return s.images()


def _save_corrected(folder, good):
    "A store with a tower whose pixels differ in one jet"
    from jetbook.data.store import toy_jets

    s = toy_jets(8, 'qg', seed=2)
    pixels = np.flatnonzero(s.images([3])[0, 2].numpy().ravel())[:25]
    fix = (np.repeat([0, len(pixels)], [4, 5]), pixels.astype('u2'), np.linspace(0, 1, len(pixels), dtype='f4'))
    s._replace(corrections=dict(HCAL=fix)).save(folder / 'toy.jets.h5')


def _save(kind, n, name, seed):
    def make(folder, good):
        from jetbook.data.store import toy_jets

        toy_jets(n, kind, seed=seed).save(folder / name)

    return make


# --- files of other people -------------------------------------------------------------------------------


def read_dense(path):
    "What h5py finds in a dense file"
    import h5py

    with h5py.File(path) as f:
        key = next(k for k in ('X_jets', 'image', 'X') if k in f)
        x = f[key][()]
        cols = {k: f[k][()] for k in f if isinstance(f[k], h5py.Dataset) and k != key}
    return x, {k: v.reshape(-1) for k, v in cols.items() if v.dtype.kind in 'fiub' and v.size == len(x)}


def read_parquet(path):
    "What pyarrow finds in a parquet file"
    import pyarrow.parquet as pq

    t = pq.read_table(path)
    x = np.array(t['X_jets'].to_pylist(), dtype='f4')
    cols = {k: np.array(t[k].to_pylist()) for k in t.column_names if k != 'X_jets'}
    return x, {k: v for k, v in cols.items() if v.dtype.kind in 'fiub' and v.shape == (len(x),)}


def _packed(pattern):
    def packed(folder, good):
        from jetbook.data.files import pack

        s = pack(_one(folder, pattern), folder / 'out.jets.h5', progress=False)
        return dict(images=s.images(), columns=[(k, np.asarray(v)) for k, v in sorted(s.columns.items())])

    return packed


def _foreign_ops(pattern):
    from jetbook.data.files import info, open_source

    return [
        Op('pack', _packed(pattern)),
        Op('info', lambda folder, good: info(_one(folder, pattern)) and None, 0.5),
        Op('source', lambda folder, good: open_source(_one(folder, pattern)) and None, 0.3),
    ]


def as_read(pattern):
    "Does the packed store hold what another reader finds? None if none can read the file"

    def expect(folder, out):
        from jetbook.data.store import JetStore

        s = JetStore(out)
        path = _one(folder, pattern)
        with open(path, 'rb') as f:
            reader = read_parquet if f.read(4) == b'PAR1' else read_dense  # whatever its name says
        try:
            x, cols = reader(path)
        except Exception:
            return None
        got = s.images().numpy()
        with np.errstate(all='ignore'):
            x = np.asarray(x, 'f4')
        ways = [x[:, None]] if x.ndim == 3 else [x, x.transpose(0, 3, 1, 2)]
        same = any(
            w.shape == got.shape and (w.view('u4') == got.view('u4')).all() for w in ways if w.dtype == 'f4'
        )
        same = same or any(w.shape == got.shape and (w == got).all() for w in ways)
        return same and all(k in cols and np.array_equal(cols[k], v) for k, v in s.columns.items())

    return expect


def all_columns(s):
    "Toy jets with every column that files of their layout have"
    from jetbook.data.store import LAYOUTS

    rng = np.random.default_rng(0)
    more = {k: rng.uniform(0, 1, len(s)) for k in LAYOUTS[s.layout].columns if k not in s.columns}
    return s._replace(columns={**s.columns, **more})


def _make_dense(kind, **how):
    def make(folder, good):
        import jetbook.data.files  # noqa: F401  (gives stores `to_dense`)
        from jetbook.data.store import toy_jets

        jets = toy_jets(12 if kind == 'wqcd' else 3, kind, seed=5)
        all_columns(jets).to_dense(folder / 'jets.h5', **how)

    return make


def _make_parquet(folder, good):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from jetbook.data.store import toy_jets

    s = toy_jets(4, seed=6)
    x = [i.tolist() for i in s.images().numpy()[:, :, ::5, ::5]]
    cols = dict(y=s.columns['y'].astype(float), pt=s.columns['pt'], m0=s.columns['m0'])
    pq.write_table(pa.table(dict(X_jets=x, **cols)), folder / 'jets.parquet', row_group_size=2)


# --- runs ------------------------------------------------------------------------------------------------

TRAINED = dict(
    classifier=('pfn_quick', dict(epochs=1)),
    autoencoder=('latent_ae', dict(epochs=1, width=16)),
    graph=('sage', dict(epochs=1)),
    code=('pixel_code', dict(epochs=1, bs=32, steps=[0.001, 0.5], step=0.01, hidden=8)),
)


def _train(name, out, store, **kwargs):
    from jetbook.train.runs import train

    recipe, settings = TRAINED[name]
    return train(recipe, store, out, progress=False, **{**settings, **kwargs})


def _jets(good):
    from jetbook.data.store import JetStore

    return JetStore(good / 'shared' / 'jets.jets.h5')


def _others(good):
    from jetbook.data.store import JetStore

    return JetStore(good / 'shared' / 'others.jets.h5')


def _make_run(name):
    def make(folder, good):
        from jetbook.train.runs import evaluate

        for sub, seed in (('run', 0), ('twin', 1)):
            run = _train(name, folder / sub, _jets(good), seed=seed)
            if name != 'code':
                evaluate(run, _jets(good), 'valid')
            for p in run.path.glob('*.png'):
                p.unlink()

    return make


def _run_ops(name):
    from jetbook.train.runs import Run, compare, evaluate, predict

    def opened(folder, good):
        r = Run(folder / 'run')
        return dict(recipe=r.recipe.name, settings=r.config.get('settings'))

    def noted(folder, good):
        r = Run(folder / 'run')
        return dict(history=steady_table(r.history), metrics=steady(r.metrics))

    def scores(folder, good):
        return Run(folder / 'run').scores('valid')

    def parts(folder, good):
        sp = Run(folder / 'run').split(_jets(good))
        return [sp.train, sp.valid, sp.test]

    def predicted(folder, good):
        return predict(folder / 'run', _others(good))

    def weights(folder, good):
        return dict(Run(folder / 'run').model().state_dict())

    def evaluated(folder, good):
        return evaluate(folder / 'run', _jets(good), 'valid')

    def compared(folder, good):
        t = compare(folder / 'run', good / name / 'twin', part='valid')
        return t.drop(columns='seconds', errors='ignore')

    def again(folder, good):
        return _train(name, folder / 'run', _jets(good), seed=0).complete

    ops = [Op('open', opened), Op('notes', noted), Op('split', parts, 0.5)]
    resume = Op('resume', again, 0.4)  # last: where the weights are lost, it trains anew
    if name == 'code':
        return [*ops, Op('weights', weights), resume]
    return ops + [
        Op('predict', predicted),
        Op('scores', scores),
        Op('evaluate', evaluated, 0.3),
        Op('compare', compared, 0.3),
        resume,
    ]


def steady_table(t):
    return t.drop(columns='seconds', errors='ignore')


class Stop(BaseException):
    "Ends a training, as a kill would, but in this very process"


def _make_unfinished(folder, good):
    from fastai.callback.core import Callback

    class Stopper(Callback):
        def before_batch(self):
            if self.epoch == 1:
                raise Stop

    try:
        _train('classifier', folder / 'run', _jets(good), epochs=2, cbs=[Stopper()])
    except Stop:
        pass


def _unfinished_ops():
    from jetbook.train.runs import Run

    def resumed(folder, good):
        r = _train('classifier', folder / 'run', _jets(good), epochs=2)
        return dict(weights=dict(r.model().state_dict()), rows=len(r.history))

    return [Op('open', lambda folder, good: repr(Run(folder / 'run').recipe.name)), Op('resume', resumed)]


# --- detectors -------------------------------------------------------------------------------------------

FITTED = dict(
    mean_image=('mean_image', {}),
    pipeline=('mahalanobis_observables', {}),
    forest=('isolation_forest', dict(n_estimators=10)),
    network=('ae', dict(epochs=1)),
    surrogates=('surrogates', {}),
)


def _fit(name, out, store, **kwargs):
    from jetbook.anomaly.methods import fit_background

    method, settings = FITTED[name]
    return fit_background(method, store, 'QCD', out=out, **{**settings, **kwargs})


def _make_fit(name):
    def make(folder, good):
        _fit(name, folder / 'bundle', _jets(good))
        _fit(name, folder / 'twin', _jets(good).select(np.arange(100)))
        for p in folder.rglob('*.png'):
            p.unlink()

    return make


def _fit_ops(name):
    from jetbook.anomaly.methods import anomaly_score, load_method, p_values, scan

    def scored(folder, good):
        m = load_method(folder / 'bundle')
        s = anomaly_score(m, _others(good))
        return dict(score=s, p=p_values(m, s))

    def scanned(folder, good):
        return scan(folder / 'bundle', _others(good)).reset_index()

    def again(folder, good):
        return anomaly_score(_fit(name, folder / 'bundle', _jets(good)), _others(good))

    return [Op('load', scored), Op('scan', scanned, 0.3), Op('fit again', again, 0.3)]


# --- compressed jets, graphs, half a pack ----------------------------------------------------------------


def _make_jetz(run):
    def make(folder, good):
        from jetbook.codec.files import compress

        compress(good / run / 'run', _others(good), folder / 'jets.jetz', block=10, progress=False)

    return make


def _jetz_ops(run):
    from jetbook.codec.files import decompress

    def unpacked(folder, good):
        return of_store(decompress(_one(folder, '*.jetz'), good / run / 'run', progress=False))

    return [Op('decompress', unpacked)]


def _make_graphs(folder, good):
    from jetbook.graphs.batches import cache_graphs

    cache_graphs(_others(good), folder / 'graphs.safetensors')


def _graph_ops():
    from jetbook.graphs.batches import cache_graphs

    def numbers(g):
        return {k: g[k] for k in sorted(g.keys()) if hasattr(g[k], 'numpy')}

    def read(folder, good):
        c = cache_graphs(_others(good), folder / 'graphs.safetensors')
        return numbers(c.graphs(np.arange(10)))

    def padded(folder, good):
        return list(cache_graphs(_others(good), folder / 'graphs.safetensors').padded(np.arange(10)))

    return [Op('graphs', read), Op('padded', padded, 0.3)]


def small_steps():
    "Let `pack` do a few jets at a time"
    import jetbook.data.files as files

    files.STEP_BYTES = 4 * 25 * 25 * 4


def _make_part(folder, good):
    "Half a pack, as a kill leaves it"
    pid = os.fork()
    if not pid:
        try:
            import jetbook.data.files as files

            small_steps()
            commit = files._Spool.commit

            def last(self, done):
                commit(self, done)
                if done >= 8:
                    os.kill(os.getpid(), signal.SIGKILL)

            files._Spool.commit = last
            files.pack(good / 'shared' / 'dense.h5', folder / 'out.jets.h5', progress=False)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _part_ops():
    from jetbook.data.files import pack

    def finished(folder, good):
        s = pack(good / 'shared' / 'dense.h5', folder / 'out.jets.h5', progress=False)
        return of_store(s)

    return [Op('pack', finished)]


# --- all of them -----------------------------------------------------------------------------------------


def make_shared(folder):
    "Jets that others are made of, never damaged"
    import jetbook.data.files  # noqa: F401
    from jetbook.data.store import toy_jets

    folder.mkdir(parents=True, exist_ok=True)
    toy_jets(120, 'wqcd').save(folder / 'jets.jets.h5')
    toy_jets(24, 'wqcd', seed=3).save(folder / 'others.jets.h5')
    all_columns(toy_jets(24, 'wqcd', seed=4)).to_dense(folder / 'dense.h5')


NEEDED = ('classifier', 'mean_image', 'code', 'autoencoder')  # subjects that others are read with
LOADS = ('predict', 'weights')  # what loads a run, and is there to refuse a damaged one


def _runs():
    files = {
        'run/config.json': 4,
        'run/model.safetensors': 5,
        'run/history.csv': 1.5,
        'run/metrics.json': 1.5,
        'run/scores-valid.safetensors': 2,
    }
    weights = dict(classifier=10, code=2, autoencoder=6, graph=6)
    return [
        Subject(name, 'runs', w, _make_run(name), _run_ops(name), files, checks=LOADS)
        for name, w in weights.items()
    ]


def _stores():
    jets = '*.jets.h5'
    small = _save('wqcd', 24, 'toy.jets.h5', 1)
    cms = _save('qg', 8, 'toy.jets.h5', 2)
    more = _save('qg', 40, 'toy.jets.h5', 2)
    checks = dict(checks=('verify',))
    return [
        Subject('store', 'store', 14, small, _store_ops(jets, False) + _scored_store_ops(jets), **checks),
        Subject('store, CMS', 'store', 8, cms, _store_ops(jets, False), **checks),
        Subject('store, mapped', 'store', 8, small, _store_ops(jets, True), **checks),
        Subject('store, corrected', 'store', 4, _save_corrected, _store_ops(jets, True), **checks),
        Subject('store, cut in use', 'store', 0.3, more, [Op('images', _cut_in_use)]),
    ]


def _others_files():
    dense = dict(ops=_foreign_ops('jets.*'), expect=as_read('jets.*'))
    parquet = dict(ops=_foreign_ops('jets.*'), expect=as_read('jets.*'))
    ways = {
        'contiguous': (5, 'wqcd', {}),
        'chunked': (5, 'wqcd', dict(chunks=(4, 25, 25))),
        'gzip': (5, 'wqcd', dict(chunks=(4, 25, 25), compression='gzip')),
        'CMS gzip': (3, 'qg', dict(chunks=(1, 125, 125, 3), compression='gzip')),
    }
    return [
        *(
            Subject(f'dense, {k}', 'files', weight, _make_dense(kind, **how), **dense)
            for k, (weight, kind, how) in ways.items()
        ),
        Subject('parquet', 'files', 6, _make_parquet, **parquet),
        Subject('half a pack', 'files', 5, _make_part, _part_ops()),
    ]


def subjects():
    "All subjects; those that others need come first"
    fits = dict(mean_image=4, pipeline=4, forest=2, network=4, surrogates=1)
    return [
        *_runs(),
        Subject('unfinished run', 'runs', 3, _make_unfinished, _unfinished_ops()),
        *(Subject(name, 'anomaly', w, _make_fit(name), _fit_ops(name)) for name, w in fits.items()),
        *_stores(),
        *_others_files(),
        Subject('jetz', 'anomaly', 5, _make_jetz('code'), _jetz_ops('code')),
        Subject('jetz, latent', 'anomaly', 3, _make_jetz('autoencoder'), _jetz_ops('autoencoder')),
        Subject('graph cache', 'anomaly', 5, _make_graphs, _graph_ops()),
    ]


def prepare(good, wanted, say=lambda text: None):
    "Make the inputs that are not there yet, in the folder `good`"
    if not (good / 'shared' / 'dense.h5').exists():
        make_shared(good / 'shared')
    for s in wanted:
        folder = good / s.name
        if (folder / '.made').exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say(f'making: {s.name}')
        s.make(folder, good)
        (folder / '.made').touch()


def files_of(folder):
    "Files of a case that may be damaged, by their paths inside"
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob('*')) if p.is_file())
    return [n for n in names if not n.startswith(('.made', 'twin/')) and not Path(n).name.startswith('.')]
