"`against`: files that differ from a sample in one way, odd files, and the recorded jets"
import json, os, warnings
from pathlib import Path

import h5py, numpy as np, pytest
from jetbook.data.against import against, match_channels, ERROR_PARTS
from jetbook.data.files import some_jets
from jetbook.data.files import from_images, pack
from jetbook.data.hdf5 import sample
from jetbook.data.store import ConfigError, DataError, JetStore, LAYOUTS, toy_jets
from jetbook.cli import main

REAL = next((p for p in (Path(os.environ.get('JETBOOK_REAL') or '-')/'cms2012_recorded.h5', Path('../shared/real/cms2012_recorded.h5'),
                         Path(__file__).resolve().parents[2]/'shared'/'real'/'cms2012_recorded.h5') if p.is_file()), None)

@pytest.fixture(scope='module')
def qg(): return sample('qg')

@pytest.fixture(scope='module')
def ref(qg): return qg[::20] # 1,000 jets

@pytest.fixture(scope='module')
def jets(qg): return qg[1::20]

def verdict(*args, **kwargs): return '\n'.join(against(*args, **kwargs).verdict)

def columns(store, drop=(), **new): return store._replace(columns={k:v for k,v in {**store.columns, **new}.items() if k not in drop})

def values(store, f): return store._replace(entries={k: (o, p, f(k, v, np.diff(o)).astype('f4')) for k,(o,p,v) in store.entries.items()})

def dense(path, x, **cols):
    with h5py.File(path, 'w') as f:
        f['X_jets'] = x
        for k,v in cols.items(): f[k] = v
    return path

def test_samples_against_themselves(qg, ref):
    for i in range(1, 6): # other jets of the sample: no difference is claimed, whichever they are
        said = against(qg[i::20], ref)
        assert [s for s in said.verdict if 'figures differ' not in s and not s.startswith('alike')]==[]
        assert (said.table['beyond noise'] & said.table['beyond 10%']).sum()<=1
    assert against('sample:wqcd', 'wqcd').verdict[0].startswith('alike')
    assert (against(ref, ref).table.ratio==1).all()

@pytest.mark.parametrize('factor,says', [(100, 'values are in GeV'), (1e5, 'values are in MeV'), (7, 'values are larger by a factor of'), (.1, 'values are smaller by a factor of')])
def test_units(jets, ref, factor, says):
    said = verdict(values(jets, lambda k,v,n: v*factor), ref)
    assert says in said and 'HCAL' not in said.split('figures differ')[0].rsplit('\n', 1)[0]

def test_hcal_divided_twice(jets, ref): assert 'HCAL is divided by 25 twice' in verdict(values(jets, lambda k,v,n: v/25 if k=='HCAL' else v), ref)

def test_no_labels(jets, ref):
    r = against(columns(jets, ['y']), ref)
    assert 'no labels: there is no column y or signal' in r.verdict
    assert 'lit pixels, Tracks, gluon' not in r.table.index and 'lit pixels, Tracks' in r.table.index
    assert 'labels' not in verdict(jets, columns(ref, ['y'])) # the sample has none: nothing to say

def test_one_class(jets, ref):
    said = verdict(jets.select(jets.columns['y']==1), ref)
    assert 'one class: all labels are 1, quark' in said and 'of the jets are' not in said and 'swapped' not in said

def test_shares_and_labels_that_say_nothing(qg, ref):
    y = qg.columns['y']
    mixed = qg.select(np.concatenate([np.flatnonzero(y==1)[:900], np.flatnonzero(y==0)[:300]]))
    assert '75% of the jets are quark jets' in verdict(mixed, ref)
    some = qg[1::10]
    said = verdict(columns(some, y=np.random.default_rng(0).permutation(some.columns['y'])), qg)
    assert 'labels say nothing' in said and 'swapped' not in said

def test_other_channels(jets, ref):
    assert 'other channels: there is no HCAL, but Tracks, ECAL' in verdict(jets.select(channels=['Tracks', 'ECAL']), ref)
    said = verdict(jets.select(channels=['HCAL', 'Tracks', 'ECAL']), ref) # the names are right, the order is not
    assert 'channels are in another order: Tracks, ECAL, HCAL are channels 1, 2, 0' in said and 'otherwise alike' in said
    assert 'other channels' in verdict('sample:wqcd', ref) and 'other kind of jets' in verdict('sample:wqcd', ref)

def test_arrays(jets, ref):
    x,y = jets.images(range(300)).permute(0, 2, 3, 1).numpy(), jets.columns['y'][:300]
    array = from_images(x, dict(y=y))
    assert array.channels==('c0', 'c1', 'c2') and match_channels(array, ref)==dict(Tracks='c0', ECAL='c1', HCAL='c2')
    assert 'order' not in verdict(array, ref)
    assert 'Tracks, ECAL, HCAL seem to be 1, 2, 0' in verdict(from_images(x[..., [2,0,1]], dict(y=y)), ref)
    assert 'no labels' in verdict(x, ref)

def test_permutations_are_found_without_towers(qg, ref):
    some = qg[1:400:2]
    x = some.images().permute(0, 2, 3, 1).numpy().copy()
    x[..., 2] += np.random.default_rng(0).uniform(0, 1e-6, x.shape[:3]).astype('f4')*(x[..., 2]>0) # HCAL is not made of towers
    for order in ([0,1,2], [1,0,2], [0,2,1], [2,1,0], [1,2,0]):
        s = from_images(x[..., order], some.columns, LAYOUTS['cms'].channels, 'cms')
        assert max(s.upsample.values())==1
        assert list(match_channels(s, ref).values())==[('Tracks', 'ECAL', 'HCAL')[order.index(i)] for i in range(3)]

def test_other_size(jets, ref):
    x = jets.images(range(100)).permute(0, 2, 3, 1).numpy()[:, 2:122, 2:122].reshape(100, 60, 2, 60, 2, 3).sum((2, 4))
    said = verdict(from_images(x, dict(y=jets.columns['y'][:100]), LAYOUTS['cms'].channels), ref)
    assert "other size of images: 60x60, the sample's are 125x125" in said

def test_normalised_negative_and_empty(jets, ref):
    x = jets.images(range(200)).permute(0, 2, 3, 1).numpy()
    names = LAYOUTS['cms'].channels
    own = lambda x: verdict(from_images(x, dict(y=jets.columns['y'][:200]), names, negative='keep'), ref)
    assert 'normalised one by one (largest pixel 1 in every channel of every image)' in own(x/x.max((1, 2), keepdims=True))
    assert 'normalised one by one (sum of pixels 1 in every image)' in own(x/x.sum((1, 2, 3), keepdims=True))
    assert 'values are' not in own(x/x.sum((1, 2, 3), keepdims=True))
    said = own(x-1e-4)
    assert 'negative values' in said and 'were the images smoothed' in said
    x[:50] = 0
    assert 'empty images: 50 of 200' in own(x)

def test_tracks_cut(jets, ref):
    o,p,v = jets.entries['Tracks']
    keep = v>.0075
    cut = jets._replace(entries={**jets.entries, 'Tracks': (np.concatenate([[0], np.cumsum(keep)])[o], p[keep], v[keep])})
    said = verdict(cut, ref)
    assert 'are tracks cut at a higher pT? (they start at 0.7' in said and 'pile-up' not in said
    assert 'are tracks cut at a higher pT? (they start at 0.7' in verdict(values(cut, lambda k,v,n: v*100), ref) # in GeV, too

def test_transverse_energy(jets, ref):
    eta = np.random.default_rng(0).uniform(-1.4, 1.4, len(jets))
    flat = columns(jets, eta=eta)
    assert 'transverse energy instead of energy' in verdict(flat, ref)
    energy = values(flat, lambda k,v,n: v*np.repeat(np.cosh(eta), n))
    assert 'transverse' not in verdict(energy, ref)
    assert 'transverse' not in verdict(jets, ref) # no eta: it cannot be told

def test_columns(jets, ref):
    assert 'pt is in MeV' in verdict(columns(jets, pt=1000*jets.columns['pt']), ref)
    assert 'no column m0' in verdict(columns(jets, ['m0']), ref)
    assert 'another range of pt: 58' in verdict(columns(jets, pt=jets.columns['pt']/2), ref)

@pytest.mark.parametrize('n', [1, 2, 5, ERROR_PARTS-1, ERROR_PARTS])
def test_tiny_files(qg, ref, n):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = against(qg[1:n+1], ref)
    assert ('fewer than 20 jets' in r.verdict[0])==(n<ERROR_PARTS)
    assert 'pile-up' not in '\n'.join(r.verdict) and 'swapped' not in '\n'.join(r.verdict)
    assert repr(r) and r._repr_html_() and r.plot()
    assert 'values are in GeV' in verdict(values(qg[1:n+1], lambda k,v,m: v*100), ref) # a unit shows in one jet

def test_nothing_to_compare(qg, ref, tmp_path):
    for f,error,says in ((lambda: against(qg[:0], ref), DataError, 'No jets to compare'), (lambda: against(ref, n=0), ConfigError, '1 or more'),
                         (lambda: against(ref, 'higgs'), ConfigError, 'No such sample'), (lambda: against(tmp_path/'none.h5'), DataError, 'No such file'),
                         (lambda: against('none.h5'), DataError, 'No such file')):
        with pytest.raises(error, match=says): f()

def test_a_file_without_lit_pixels(ref):
    assert 'empty images: 30 of 30' in verdict(np.zeros((30, 125, 125, 3), 'f4'), ref)

def test_jets_are_taken_from_the_whole_file(qg, tmp_path):
    y = qg.columns['y']
    first = qg.select(np.concatenate([np.flatnonzero(y==c)[:100] for c in (0, 1)])) # sorted by class
    x = first.images().permute(0, 2, 3, 1).numpy()
    plain = dense(tmp_path/'a.h5', x, **first.columns)
    with h5py.File(tmp_path/'b.h5', 'w') as f:
        f.create_dataset('X_jets', data=x, chunks=(7, 125, 125, 3), compression='gzip')
        for k,v in first.columns.items(): f[k] = v
    for path in (plain, tmp_path/'b.h5', pack(plain, tmp_path/'a.jets.h5', progress=False).path):
        few,total = some_jets(path, 50)
        assert total==200 and len(few)==50 and few.columns['y'].sum()==25
        at = [int(np.flatnonzero(first.columns['pt']==pt)[0]) for pt in few.columns['pt']]
        assert len(set(at))==50 and max(at)>=190 and at==sorted(at)
        assert (few.images()==first.images(at)).all() # images and columns of the same jets
    assert len(some_jets(plain, 10**9)[0])==200 and len(some_jets(plain, 1)[0])==1

def test_the_command(qg, tmp_path, capsys):
    s = values(qg[1:1000:2], lambda k,v,n: v*25 if k=='HCAL' else v)
    s.save(tmp_path/'s.jets.h5')
    assert main(['info', str(tmp_path/'s.jets.h5'), '--against', 'qg', '-n', '500'])==0
    out = capsys.readouterr().out
    assert '- HCAL is not divided by 25' in out and 'lit pixels, Tracks, gluon' in out and '500 of 20,000 jets' in out
    assert main(['info', str(tmp_path/'s.jets.h5'), '--against', str(tmp_path/'s.jets.h5'), '--json'])==0
    r = json.loads(capsys.readouterr().out)['against']
    assert r['verdict']==['alike: every figure within 10%, or within four standard errors']
    assert r['table']['pt, mean']['ratio']==1 and r['table']['pt, mean']['beyond noise'] is False
    assert main(['info', str(tmp_path/'s.jets.h5'), '--against', 'higgs'])==1
    assert 'No such sample' in capsys.readouterr().err
    assert main(['info', 'sample:qg', '--json'])==0 and 'against' not in json.loads(capsys.readouterr().out)

def test_names_of_a_file_are_escaped(jets, ref):
    r = against(jets._replace(source='<b>x</b>'), ref)
    assert '<b>' not in r._repr_html_()

@pytest.mark.skipif(REAL is None, reason='the recorded jets are not here: set JETBOOK_REAL to their folder')
def test_recorded_jets():
    with h5py.File(REAL) as f: x,cols = f['X_jets'][:], {k: f[k][:] for k in ('pt', 'm0', 'eta')}
    said = verdict(from_images(x, cols, LAYOUTS['cms'].channels, 'cms'))
    for s in ('half the tracks of the sample: are tracks cut at a higher pT? (they start at 0.75 GeV', 'no labels', 'another range of pt: 55'): assert s in said
    for s in ('order', 'values are', 'divided', 'pile-up', 'transverse', 'normalised'): assert s not in said
    assert verdict(REAL)
