"""The simulation: requests that cannot be met, and the order of a sample. Needs `pip install 'jetbook[sim]'`."""
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest
from fastcore.test import test_eq as eq, test_fail as fails, test_ne as ne
pytest.importorskip('pythia8mc')
pytest.importorskip('fastjet')
from jetbook.data.observables import wrap_phi
from jetbook.simulate.events import Events
from jetbook.data.store import DataError
from jetbook.simulate import pileup
from jetbook.simulate.jets import clean, flip, KINDS, make_detector, simulate, wqcd_steps


def test_requests_that_cannot_be_met():
    fails(lambda: simulate('top', 10), contains=' or '.join(KINDS))
    fails(lambda: simulate('qg', 1), contains='2 or more')
    fails(lambda: simulate('qg', 10, seed=-1), contains='seed')
    fails(lambda: simulate('qg', 10, workers=0), contains='1 or more')
    fails(lambda: simulate('qg', 10, filed=1.), contains='field')
    fails(lambda: make_detector(field=-1), contains='0 or more')
    fails(lambda: wqcd_steps(5, process='top'), contains='W or QCD')
    fails(lambda: Events('top'), contains='gluon or quark')
    fails(lambda: simulate('dark', 10, pileup=0.), contains='dark jets pass no detector')
    for tune in (0, 41, 5., True, '5'): fails(lambda: simulate('wqcd', 10, tune=tune), contains='No such tune')


def test_a_small_sample():
    jets = simulate('qg', 40, seed=5, workers=1, progress=False)
    eq((jets.channels, jets.upsample['HCAL'], jets.columns['y'].sum()), (('Tracks', 'ECAL', 'HCAL'), 5, 20))
    assert 3 < jets.columns['y'][:20].sum() < 17  # the classes are mixed
    ne(simulate('qg', 6, seed=8, workers=1, progress=False).columns['pt'], simulate('qg', 6, seed=7, workers=1, progress=False).columns['pt'])


def test_columns_of_w_and_qcd_jets():
    jets = simulate('wqcd', 4, seed=5, workers=1, progress=False)
    eq(list(jets.columns)[:11], 'signal jet_pt jet_eta jet_phi jet_mass jet_delta_R tau_1 tau_2 tau_3 tau_21 tau_32'.split())


@pytest.mark.parametrize('kind, channels, side', [('tau', ('Tracks', 'ECAL', 'HCAL'), 125), ('egamma', ('energy', 'time'), 32), ('dark', ('pT',), 25)])
def test_other_kinds(kind, channels, side):
    jets = simulate(kind, 6, seed=5, workers=1, progress=False)
    eq((len(jets), jets.channels, jets.columns['y'].sum(), jets.layout, jets.cell), (6, channels, 3, kind, .1 if kind == 'dark' else .0174))
    x = jets.images().numpy()
    eq(x.shape, (6, len(channels), side, side))
    assert np.isfinite(x).all() and (x[:, 0] >= 0).all() and (x[:, 0].max((1, 2)) > 0).all()
    for v in jets.columns.values(): assert np.isfinite(v).all()
    if kind == 'tau': assert (jets.columns['pt'] > 20).all() and (jets.columns['pt'] < 100).all() and jets.upsample['HCAL'] == 5
    if kind == 'egamma':
        eq(x[:, 0].reshape(6, -1).argmax(1), np.full(6, 16*32+16))  # about the hottest crystal
        eq(x[:, 1] != 0, x[:, 0] > 0)  # a hit has a time
        assert (np.abs(59*x[:, 0].sum((1, 2))-75) < 50).all()  # GeV, 50 to 99 of the particle
    if kind == 'dark': assert (np.abs(jets.columns['jet_mass']-80) < 20).all() and (np.abs(jets.columns['jet_pt']-275) < 25).all()


def test_pileup_and_tune_are_settings():
    lit, source = {}, {}
    for name, settings in dict(as_it_is={}, alone=dict(pileup=0.), tuned=dict(tune=5)).items():
        jets = simulate('qg', 12, seed=7, workers=1, progress=False, **settings)
        lit[name] = {k: len(e[2])/12 for k, e in jets.entries.items()}
        source[name] = jets.source
    for k, factor in dict(Tracks=2, ECAL=1.1, HCAL=1.1).items(): assert lit['as_it_is'][k] > factor*lit['alone'][k], (k, lit)
    ne(lit['tuned'], lit['as_it_is'])
    assert '20 collisions per crossing (seed 7)' in source['as_it_is']
    assert '0 collisions per crossing (seed 7, pileup=0.0)' in source['alone'] and 'tune=5' in source['tuned']


@pytest.mark.parametrize('kind', ['tau', 'egamma', 'dark'])
def test_the_same_bytes_with_two_workers(tmp_path, kind):
    for i in (1, 2): simulate(kind, 2, seed=3, workers=i, dest=tmp_path/f'{i}.jets.h5', progress=False)
    eq((tmp_path/'1.jets.h5').read_bytes(), (tmp_path/'2.jets.h5').read_bytes())


@pytest.fixture
def small_pool(tmp_path, monkeypatch):
    "A cache of its own, with a pool of 2,500 events that hold three particles"
    from jetbook.data.store import Ragged
    made = Ragged(np.minimum(np.arange(2501), 3), **{k: np.arange(3).astype(t) for k, t in pileup._FIELDS.items()})
    calls = []
    monkeypatch.setenv('JETBOOK_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(pileup, 'make_pool', lambda n, workers=1: calls.append(n) or made)
    pileup._read_pool.cache_clear()
    yield tmp_path/'cache'/'minbias-8TeV-2500.npz', calls
    pileup._read_pool.cache_clear()


def _pool():
    pileup._read_pool.cache_clear()
    return pileup.pool(2500)


def test_the_pool_is_made_once(small_pool):
    path, calls = small_pool
    eq(_pool().offsets, _pool().offsets)
    eq((calls, [p.name for p in path.parent.iterdir()]), ([2500], [path.name]))


@pytest.mark.parametrize('damage', ['empty', 'cut', 'text', 'bytes', 'fields', 'pickle', 'types', 'lengths', 'other'])
def test_a_damaged_pool_is_an_error_that_names_it(small_pool, damage):
    path, calls = small_pool
    whole = _pool()
    data = path.read_bytes()
    if damage == 'empty': path.write_bytes(b'')
    if damage == 'cut': path.write_bytes(data[:len(data)//2])
    if damage == 'text': path.write_text('no pool')
    if damage == 'bytes': path.write_bytes(data[:200]+bytes(60)+data[260:])
    if damage == 'fields': np.savez(path, offsets=whole.offsets, pt=whole.pt)
    if damage == 'pickle': np.savez(path, offsets=whole.offsets, **{**whole.fields, 'pt': np.array([{}], object)})
    if damage == 'types': np.savez(path, offsets=whole.offsets, **{**whole.fields, 'pt': whole.pt.astype('f8')})
    if damage == 'lengths': np.savez(path, offsets=whole.offsets, **{**whole.fields, 'pt': whole.pt[:2]})
    if damage == 'other': np.savez(path, offsets=whole.offsets[:9], **whole.fields)  # a pool of another size
    with pytest.raises(DataError) as e: _pool()
    assert path.name in str(e.value) and 'delete it' in str(e.value)
    path.unlink()
    eq(_pool().pt, whole.pt)
    eq(calls, [2500, 2500])


def test_pools_and_crossings_that_cannot_be():
    for n in (0, -2500, 501): fails(lambda: pileup.make_pool(n), contains='a multiple of 2500')
    from jetbook.data.store import Ragged
    some = Ragged([0, 2, 3], pt=np.arange(3.), eta=np.zeros(3), phi=np.zeros(3))
    eq(pileup.crossings(some, 4, 0, np.random.default_rng(0)).counts, [0, 0, 0, 0])
    many = pileup.crossings(some, 300, 20, np.random.default_rng(0))
    assert abs(many.counts.mean()-20*1.5) < 2 and (np.abs(many.phi) <= np.pi).all() and abs(many.z.std()-.05) < .01


def test_wrap_phi_of_many_turns():
    eq(wrap_phi(np.array([7.]))[0], 7-2*np.pi)


def test_flip_is_its_own_limit():
    x = np.random.default_rng(0).random((20, 25, 25))
    eq(flip(flip(x)), flip(x))
    eq(flip(x[:, :, ::-1].copy()), flip(x))
    eq(clean(np.array([[[5e-4, 2e-3]]])), [[[0, 2e-3]]])


def test_more_jets_than_memory_holds():
    fails(lambda: simulate('qg', 10**14), contains='do not fit in memory')


def test_the_output_is_refused_before_anything_is_simulated(tmp_path, monkeypatch):
    import jetbook.simulate.jets as module
    monkeypatch.setattr(module, 'make_block', lambda *args: pytest.fail('simulated'))
    (tmp_path/'mine.h5').write_text('mine')
    (tmp_path/'link.h5').symlink_to(tmp_path/'mine.h5')
    for name, why in (('', 'No name'), ('mine.h5', 'already exists'), ('link.h5', 'is a link'), ('.', 'is a folder')):
        fails(lambda: simulate('qg', 10, dest=name and tmp_path/name, overwrite=False, progress=False), contains=why)
    eq((tmp_path/'mine.h5').read_text(), 'mine')


CODE = """
from jetbook.simulate.jets import simulate
if __name__ == '__main__': simulate('wqcd', 600, 3, 2, {!r}, progress=False)
"""


def _children(pid):
    "Processes below `pid`, by their own account"
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try: ppid = int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])
        except (OSError, IndexError): continue
        if ppid == pid: found += [int(p.name), *_children(int(p.name))]
    return found


def _running(pid):
    try: return (Path('/proc')/str(pid)/'stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
@pytest.mark.parametrize('wait', [0., 1.5])
def test_killed_with_two_workers(tmp_path, wait):
    "SIGKILL of the parent while its workers start, or while they work: they end too, nothing is left, another run does it all"
    (tmp_path/'s.py').write_text(CODE.format(str(tmp_path/'s.jets.h5')))
    p = subprocess.Popen([sys.executable, tmp_path/'s.py'], stderr=subprocess.DEVNULL)
    end = time.time()+60
    while len(_children(p.pid)) < 3 and time.time() < end: time.sleep(.02)  # two workers and a tracker of resources
    time.sleep(wait)
    workers = _children(p.pid)
    assert len(workers) >= 3 and p.poll() is None
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    end = time.time()+30
    while any(map(_running, workers)) and time.time() < end: time.sleep(.05)
    assert not any(map(_running, workers))
    eq([q.name for q in tmp_path.iterdir()], ['s.py'])


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_a_worker_that_is_killed(tmp_path):
    "As by a machine short of memory: an error that says so, not a wait without end"
    code = CODE.format(str(tmp_path/'s.jets.h5')).replace("simulate('wqcd'", "tell('wqcd'").replace('if __name', """
def tell(*args, **kwargs):
    try: simulate(*args, **kwargs)
    except Exception as e: print(type(e).__name__, e)
if __name""", 1)
    (tmp_path/'s.py').write_text(code)
    p = subprocess.Popen([sys.executable, tmp_path/'s.py'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    end = time.time()+60
    spawned = []
    while len(spawned) < 2 and time.time() < end:
        time.sleep(.05)
        spawned = [c for c in _children(p.pid) if 'spawn_main' in (Path('/proc')/str(c)/'cmdline').read_text()]
    os.kill(spawned[0], signal.SIGKILL)
    said = p.communicate(timeout=60)[0]
    assert said.startswith('SimulationError A worker process ended') and 'workers=1' in said, said
    eq([q.name for q in tmp_path.iterdir()], ['s.py'])
