"Files of particles: every layout, labels, folders, kills, hostile files, and the same store from each"
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import quiet
from jetbook.data.files import info, open_source, verify
from jetbook.data.particles import four_momenta, jet_kinematics, particle_source, preprocess, restore, toy_particles
from jetbook.data.store import DataError, JetbookError, JetStore, join, MissingExtra, Ragged, StoreError

P, Y = toy_particles(60, seed=3)
REAL = Path(os.environ.get('JETBOOK_REAL', '../shared/real'))


@pytest.fixture
def out(tmp_path): return tmp_path/'out.jets.h5'


def refused(text, fn, *args, exc=DataError, **kwargs):
    with pytest.raises(exc) as e: fn(*args, **kwargs)
    assert text in str(e.value), e.value
    return e.value


def own(p=P, y=Y): return particle_source(lambda lo, hi: p.select(np.arange(lo, hi)), len(p), dict(y=y), 'toy')


def padded(p, names, m=80):
    x = np.zeros((len(p), m, len(names)), np.float32)
    at = np.arange(p.offsets[-1])-p.offsets[:-1][p.jet]
    for i, k in enumerate(names): x[p.jet, at, i] = p.fields[k]
    return x


def flat_file(path, p=P, y=Y, **more):
    with h5py.File(path, 'w') as f:
        f['pxpypz'] = np.stack([p.px, p.py, p.pz], 1)
        f['offsets'] = p.offsets
        f['is_signal_new'] = y
        for k, v in more.items(): f[k] = v
    return path


def pandas_file(path, m=80, **kwargs):
    pd, _ = pytest.importorskip('pandas'), pytest.importorskip('tables')
    x = padded(P, ('energy', 'px', 'py', 'pz'), m)
    names = [f'{k}_{i}' for i in range(m) for k in ('E', 'PX', 'PY', 'PZ')]
    df = pd.DataFrame(x.reshape(len(P), -1), columns=names)
    df = df.assign(truthE=np.float32(1), truthPX=np.float32(2), truthPY=np.float32(3), truthPZ=np.float32(4))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        df = df.assign(ttv=0, is_signal_new=Y)
        df.to_hdf(path, key='table', mode='w', format='table', **kwargs)
    return path


# --- top tagging ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', [{}, dict(complevel=5, complib='blosc'), dict(complevel=5, complib='zlib')])
def test_what_pandas_wrote(tmp_path, out, how):
    s = quiet(pandas_file(tmp_path/'train.h5', **how), out)
    for k in ('energy', 'px', 'py', 'pz'): assert np.array_equal(s.particles.fields[k], P.fields[k])
    assert np.array_equal(s.columns['y'], Y) and s.classes==('QCD', 'top')
    assert set(s.columns['truthPZ'])=={4} and set(s.columns['ttv'])=={0}
    assert verify(s, tmp_path/'train.h5', progress=False)['identical']


def test_a_pickle_in_a_table_is_not_loaded(tmp_path, out):
    "PyTables unpickles attributes: such a file would run its code there"
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    path = pandas_file(tmp_path/'train.h5')
    with h5py.File(path, 'r+') as f:
        for k in ('TITLE', 'values_block_0_meta', 'values_block_1_meta', 'evil'):
            f['table/table'].attrs[k] = np.bytes_(pickle.dumps(Evil(), 0))
    assert len(quiet(path, out))==60 and not (tmp_path/'ran').exists()


def test_other_columns_are_refused(tmp_path, out):
    path = pandas_file(tmp_path/'train.h5', m=80)
    with h5py.File(path, 'r+') as f:
        a = f['table/table'].attrs
        a['values_block_0_kind'] = np.bytes_(bytes(a['values_block_0_kind']).replace(b'VPX_1\n', b'VPT_1\n'))
    refused('has other columns', quiet, path, out)


def test_the_compact_form(tmp_path, out):
    s = quiet(flat_file(tmp_path/'a.h5'), out)
    assert np.array_equal(s.particles.pz, P.pz) and np.array_equal(s.columns['y'], Y)
    assert 'energy' not in s.particles.fields  # massless
    np.testing.assert_allclose(s.columns['jet_mass'], jet_kinematics(P)['jet_mass'], rtol=1e-3, atol=.3)
    for wrong in ([0, 5], P.offsets[::-1].copy(), P.offsets+1):
        path = flat_file(tmp_path/'b.h5')
        with h5py.File(path, 'r+') as f:
            del f['offsets']
            f['offsets'] = wrong
        refused('offsets do not divide', quiet, path, out)


@pytest.mark.skipif(not (REAL.parent/'toptag').exists(), reason='no top tagging file beside JETBOOK_REAL')
def test_the_top_tagging_file(out):
    path = REAL.parent/'toptag'/'top_tagging_75000.h5'
    src = open_source(path)
    with h5py.File(path) as f:
        x = f['pxpypz'][:f['offsets'][3000]]
        assert np.array_equal(src.particles.read(0, 3000).px, x[:, 0])
        assert np.array_equal(src.columns['y'], f['is_signal_new'][:])
    i = info(path, 500)
    assert i['layout']=='toptag' and i['jets']==75000 and 550 < i['columns'].get('jet_pt', dict(mean=600))['mean'] < 650


# --- ROOT -------------------------------------------------------------------------------------------------------------

def root_file(path, branches, tree='tree'):
    uproot = pytest.importorskip('uproot')
    with uproot.recreate(path) as f: f.mktree(tree, branches)
    return path


def jetclass(p=P, y=Y):
    ak = pytest.importorskip('awkward')
    b = {f'part_{k}':ak.unflatten(p.fields[k], p.counts) for k in ('px', 'py', 'pz', 'energy', 'charge')}
    kinds = dict(isChargedHadron=p.charge>0, isNeutralHadron=p.charge==0, isPhoton=p.charge>9, isElectron=p.charge<0)
    b |= {f'part_{k}':ak.unflatten(v, p.counts) for k, v in kinds.items()}
    b |= {f'part_{k}':ak.unflatten(p.px*0+np.float32(2), p.counts) for k in ('d0val', 'd0err', 'dzval', 'dzerr', 'deta', 'dphi')}
    b |= {f'jet_{k}':np.ones(len(p), 'f4') for k in ('pt', 'eta', 'phi', 'energy', 'nparticles', 'sdmass', 'tau1')}
    return b | {f'label_{k}':(y==i).astype(bool) for i, k in enumerate(('QCD', 'Hbb'))}


def test_jetclass(tmp_path, out):
    path = root_file(tmp_path/'a.root', jetclass())
    s = quiet(path, out, label='label_Hbb')
    for k in ('energy', 'px', 'py', 'pz', 'charge'): assert np.array_equal(s.particles.fields[k], P.fields[k])
    assert np.array_equal(s.columns['y'], Y) and np.array_equal(s.columns['jet_class'], Y)
    assert {'is_electron', 'd0', 'dz_err'} <= set(s.particles.fields) and s.channels==('charged', 'neutral')
    assert np.array_equal(s.particles.channel, P.charge==0)
    f = s.clouds().feature
    assert f[:, 0].tolist()==P.charge.tolist() and np.allclose(f[:, 6], np.tanh(2)) and (f[:, 7]==1).all()
    assert s.columns['jet_sdmass'].tolist()==[1]*60 and verify(s, path, label='label_Hbb', progress=False)['identical']


def test_many_files_of_which_one_is_empty_or_another(tmp_path, out):
    d = tmp_path/'d'
    d.mkdir()
    for i in range(4): root_file(d/f'{i}.root', jetclass(P.select(np.arange(i*15, i*15+15)), Y[i*15:i*15+15]))
    assert np.array_equal(quiet(d, out).particles.px, P.px)
    assert len(quiet(str(d/'[12].root'), out))==30
    refused('No file fits the pattern', quiet, str(d/'x*.root'), out)
    root_file(d/'z.root', {k:v for k, v in jetclass().items() if k != 'part_d0val'})
    refused('do not fit together', quiet, d, out)


def test_root_that_is_nothing_known_or_damaged(tmp_path, out):
    path = root_file(tmp_path/'a.root', dict(x=np.arange(5.)))
    e = refused('no layout jetbook knows', quiet, path, out)
    assert 'jetclass' in e.expected and 'uproot' in e.do
    data = root_file(tmp_path/'b.root', jetclass()).read_bytes()
    for cut in (len(data)//3, len(data)//2):
        (tmp_path/'c.root').write_bytes(data[:cut])
        with pytest.raises(JetbookError): quiet(tmp_path/'c.root', out)
    rng = np.random.default_rng(0)
    for _ in range(12):
        bad = bytearray(data)
        for i in rng.integers(0, len(data), 6): bad[i] = rng.integers(256)
        (tmp_path/'c.root').write_bytes(bad)
        try: quiet(tmp_path/'c.root', out)
        except JetbookError: pass


def test_without_uproot(tmp_path, out, monkeypatch):
    path = root_file(tmp_path/'a.root', jetclass())
    import builtins, importlib
    real = importlib.import_module
    def no(name, *a):
        if name=='uproot': raise ImportError('No module named uproot')
        return real(name, *a)
    monkeypatch.setattr(importlib, 'import_module', no)
    refused("pip install 'jetbook[particles]'", quiet, path, out, exc=MissingExtra)


@pytest.mark.skipif(not (REAL/'pfnano.root').exists(), reason='no pfnano.root in JETBOOK_REAL')
@pytest.mark.parametrize('layout,n', [('pfnano', 24), ('pfnano_ak4', 64)])
def test_pfnano(out, layout, n):
    uproot = pytest.importorskip('uproot')
    s = quiet(REAL/'pfnano.root', out, layout=layout)
    assert len(s)==n and s.channels==('charged', 'neutral')
    jets = 'FatJet' if layout=='pfnano' else 'Jet'
    a = uproot.open(REAL/'pfnano.root')['Events'].arrays(library='np')  # once more, jet by jet
    j = 0
    for e in range(10):
        for i in range(len(a[f'{jets}_pt'][e])):
            at = a[f'{jets}PFCands_pFCandsIdx'][e][a[f'{jets}PFCands_jetIdx'][e]==i]
            own = s.particles.select([j])
            for k, branch in dict(pt='pt', pdg='pdgId', d0='d0', charge='charge').items():
                assert np.array_equal(own.fields[k], a[f'PFCands_{branch}'][e][at])
            assert s.columns['jet_pt'][j]==a[f'{jets}_pt'][e][i] and s.columns['event'][j]==a['event'][e]
            j += 1
    parts = open_source(REAL/'pfnano.root', layout).particles.read
    for lo, hi in ((0, 1), (5, 9), (3, 4), (n-2, n)):
        assert np.array_equal(parts(lo, hi).pt, s.particles.select(np.arange(lo, hi)).pt)


def test_links_that_lead_nowhere(tmp_path, out):
    ak = pytest.importorskip('awkward')
    j = lambda *x: ak.Array([list(o) for o in x])
    f = lambda *x: ak.values_astype(j(*x), np.float32)
    good = dict(PFCands_pt=f([1., 2.], [3.]), PFCands_eta=f([0., .1], [0.]), PFCands_phi=f([0., .1], [0.]),
                FatJet_pt=f([3.], [3.]), FatJetPFCands_jetIdx=j([0, 0], [0]), FatJetPFCands_pFCandsIdx=j([0, 1], [0]))
    assert quiet(root_file(tmp_path/'a.root', good, 'Events'), out).particles.pt.tolist()==[1, 2, 3]
    for k, v in dict(FatJetPFCands_jetIdx=j([0, 1], [0]), FatJetPFCands_pFCandsIdx=j([0, 2], [-1])).items():
        refused('points to no jet', quiet, root_file(tmp_path/'b.root', {**good, k:v}, 'Events'), out)


# --- padded arrays ----------------------------------------------------------------------------------------------------

def test_energyflow_and_jetnet(tmp_path, out):
    q, _ = preprocess(P)
    q = q.replace(pdg=np.where(P.charge, 211, 22), mask=np.ones(len(q.pt)))
    np.savez(tmp_path/'qg.npz', X=padded(q, ('pt', 'eta', 'phi', 'pdg')).astype('>f8'), y=Y.astype('f8'))
    s = quiet(tmp_path/'qg.npz', out)
    assert s.classes==('gluon', 'quark') and np.array_equal(s.particles.pt, q.pt.astype('f4'))
    assert set(s.particles.pdg)=={22, 211}
    with h5py.File(tmp_path/'g.h5', 'w') as f:
        f['particle_features'] = padded(q, ('eta', 'phi', 'pt', 'mask'))
        f['jet_features'] = np.arange(240.).reshape(60, 4)
    s = quiet({tmp_path/'g.h5':1}, out)
    assert np.array_equal(s.particles.eta, q.eta.astype('f4')) and set(s.columns['y'])=={1}
    assert s.columns['jet_mass'][1]==6 and s.channels==('pT',)
    with h5py.File(tmp_path/'bad.h5', 'w') as f: f['particle_features'] = np.ones((3, 4))
    refused('particle_features has a wrong shape', quiet, tmp_path/'bad.h5', out)


# --- what is impossible -----------------------------------------------------------------------------------------------

def test_particles_that_are_not_finite(out):
    px = P.px.copy()
    px[P.offsets[7]+1] = np.nan
    bad = P.replace(px=px)
    e = refused('The px of a particle is not finite', quiet, own(bad), out)
    assert 'nan in jet 7' in e.found
    s = quiet(own(bad), out, bad='drop')
    assert len(s)==59 and np.array_equal(s.particles.py, P.select(np.delete(np.arange(60), 7)).py)
    s = quiet(own(bad), out, bad='keep')
    assert len(s)==60 and s.particles.px[P.offsets[7]+1]==0


def test_jets_without_particles(out):
    few = Ragged([0, 0, 2, 2], **{k:v[:2] for k, v in P.fields.items()})
    s = quiet(own(few, np.array([0, 1, 0])), out)
    assert s.columns['jet_pt'][[0, 2]].tolist()==[0, 0] and s.clouds().counts.tolist()==[0, 2, 0]
    back = restore(*preprocess(few))
    np.testing.assert_allclose(back.px, few.px, rtol=1e-4)


@pytest.mark.parametrize('how', ['offsets', 'channel', 'nan', 'fields', 'short', 'bit'])
def test_stores_that_were_tampered_with(out, how):
    s = quiet(own(), out)
    with h5py.File(out, 'r+') as f:
        g = f['particles']
        if how=='offsets': g['offsets'][3] = 10**9
        if how=='channel': g['channel'][5] = 9
        if how=='nan': g['px'][5] = np.nan
        if how=='fields': del g['px']
        if how=='short':
            del g['py']
            g['py'] = np.ones(3, 'f4')
        if how=='bit':
            x = g['pz'][:].view('u4')
            x[9] ^= 1
            g['pz'].write_direct(x.view('f4'))
    if how=='bit': return refused('particles/pz is damaged', verify, out)
    with pytest.raises(JetbookError): JetStore(out)


def test_sizes_in_npz_are_not_trusted(tmp_path, out):
    np.savez_compressed(tmp_path/'a.npz', X=np.ones((50, 9, 4)), y=np.zeros(50))
    with zipfile.ZipFile(tmp_path/'a.npz') as z, zipfile.ZipFile(tmp_path/'b.npz', 'w') as w:
        w.writestr('X.npy', z.read('X.npy').replace(b'(50, 9, 4)', b'(9999999999, 9, 4)'.ljust(18))[:-8])
    with pytest.raises(JetbookError): quiet(tmp_path/'b.npz', out)
    np.savez(tmp_path/'c.npz', X=np.array([dict()]*3, object), y=np.zeros(3))
    refused('objects are pickles', quiet, tmp_path/'c.npz', out)


# --- the store --------------------------------------------------------------------------------------------------------

def test_a_store_of_particles_is_a_store(tmp_path, out):
    s = quiet(own(), out)
    s.save(tmp_path/'again.jets.h5')
    for t in (JetStore(tmp_path/'again.jets.h5'), JetStore(out, mmap=True), pickle.loads(pickle.dumps(s)), join([s[:20], s[20:]])):
        assert np.array_equal(t.clouds().eta, s.clouds().eta) and np.array_equal(t.images().numpy(), s.images().numpy())
    assert s[5:9].particles.px.tolist()==P.select(np.arange(5, 9)).px.tolist()
    assert s._replace(entries=s.entries).particles is None and 'made of particles, 4' in repr(s)
    assert s.to_images(16).particles is None
    np.testing.assert_allclose(s.to_images().images(), s.images(), rtol=1e-6)
    one = s.select(channels='neutral')
    assert one.clouds().channel.max()==0 and len(one.particles.px)==(P.charge==0).sum()


def test_a_kill_costs_one_chunk(tmp_path, out, monkeypatch):
    import jetbook.data.files as files
    monkeypatch.setattr(files, 'STEP_BYTES', 4*64*64*2*10)
    monkeypatch.setattr(files, 'READ_BYTES', 4*64*64*2*5)
    path = flat_file(tmp_path/'a.h5')
    seen, n = [], [0]
    def counted(src):
        read = src.particles.read.read
        def once(lo, hi):
            seen.append(lo)
            if len(seen)==2 and not n[0]:
                n[0] = 1
                raise KeyboardInterrupt
            return read(lo, hi)
        src.particles.read.read = once
        src.particles.read.ahead = 10
        return src
    with pytest.raises(KeyboardInterrupt): quiet(counted(open_source(path)), out)
    assert list(tmp_path.glob('*.part'))
    seen.clear()
    s = quiet(counted(open_source(path)), out)
    assert seen[0]==20 and np.array_equal(s.particles.px, P.px) and not list(tmp_path.glob('*.part'))
    assert verify(s, path, progress=False)['identical']


# --- physics ----------------------------------------------------------------------------------------------------------

def test_observables_agree_with_fastjet(out):
    fastjet = pytest.importorskip('fastjet')
    from jetbook.data.observables import jet_mass, jet_pt, particles
    s = quiet(own(), out)
    p = particles(s)
    px, py, pz, e = four_momenta(P)
    for i in range(0, 60, 7):
        k = slice(P.offsets[i], P.offsets[i+1])
        some = [fastjet.PseudoJet(*map(float, v)) for v in zip(px[k], py[k], pz[k], e[k])]
        merged = fastjet.ClusterSequence(some, fastjet.JetDefinition(fastjet.kt_algorithm, 1.))
        total = merged.exclusive_jets(1)[0]
        assert abs(jet_mass(p)[i]-total.m()) < 1e-3*max(total.m(), 1) and abs(jet_pt(p)[i]/total.pt()-1) < 1e-6
        assert abs(s.columns['jet_eta'][i]-total.eta()) < 1e-5
        turn = (s.columns['jet_phi'][i]-total.phi_std())
        assert abs(np.sin(turn)) < 1e-5


# --- networks ---------------------------------------------------------------------------------------------------------

def test_a_run_knows_that_its_nodes_are_particles(tmp_path, out):
    from jetbook.train.runs import evaluate, predict, train
    s = quiet(own(), out)
    run = train('pfn_quick', s, tmp_path/'run', epochs=1, bs=16, valid=.3, test=.2, progress=False)
    assert 'auc' in evaluate(run, s, 'valid')
    assert len(run.model().scale.x_mean)==4+2+11 and 'charge' in run.config['store']['particles']
    assert len(predict(run, s[:5]))==5
    refused('Other nodes than those', predict, run, s._replace(entries=s.entries))
    moved = s._replace(particles=s.particles.replace(px=s.particles.px+1))
    from jetbook.train.runs import fingerprint
    assert fingerprint(moved)['digest'] != fingerprint(s)['digest']
