"Shower shapes and tau observables: known showers, symmetries, jets that are empty; efficiencies that can be counted by hand"
import numpy as np, pandas as pd, pytest
from sklearn.metrics import roc_auc_score

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, JetStore
from jetbook.taggers.showers import efficiency_by, shower_shapes, table_baselines, tau_observables

@pytest.fixture(scope='module')
def egamma(): return sample('egamma').select(np.arange(300))

@pytest.fixture(scope='module')
def tau(): return sample('tau').select(np.arange(300))

def store_of(images, channels=('energy','time'), cell=.0174):
    entries = {}
    for c,k in enumerate(channels):
        jet,pixel = images[:,c].reshape(len(images), -1).nonzero()
        entries[k] = (np.searchsorted(jet, np.arange(len(images)+1)), pixel, images[:,c].reshape(len(images), -1)[jet,pixel])
    return JetStore.from_entries(entries, *images.shape[2:], {}, {}, 'images', 'egamma', cell)

def test_two_crystals_side_by_side():
    x = np.zeros((2,2,32,32), 'f4')
    x[0,0,16,16:18] = 1       # along phi
    x[1,0,16:18,16] = 1       # along eta
    a,b = (shower_shapes(store_of(x)).iloc[i] for i in (0,1))
    assert a.sigma_iphi_iphi==pytest.approx(.5) and a.sigma_ieta_ieta==0 and b.sigma_ieta_ieta==pytest.approx(.5) and b.sigma_iphi_iphi==0
    assert a.phi_side==pytest.approx(.5) and b.phi_side==0 and a.r9==b.r9==1 and a.e_max==.5 and a.crystals==2

def test_an_empty_image_and_one_at_the_edge_are_finite():
    x = np.zeros((2,2,32,32), 'f4')
    x[1,0,0,31] = 2; x[1,1,0,31] = -.5
    s = shower_shapes(store_of(x))
    assert np.isfinite(s.values).all() and s.time[1]==-.5 and s.time_mean[1]==pytest.approx(-.5)

def test_rows_are_those_asked_for(egamma, tau):
    whole = shower_shapes(egamma, bs=64)
    pd.testing.assert_frame_equal(whole.loc[[5,3]], shower_shapes(egamma, [5,3]))
    pd.testing.assert_frame_equal(tau_observables(tau).loc[[5,3]], tau_observables(tau, [5,3]))

def test_a_tau_without_tracks_or_cells_is_finite(tau):
    images = tau.images(range(3)).numpy().copy()
    images[0] = 0; images[1,0] = 0
    entries = {}
    for c,k in enumerate(tau.channels):
        v = images[:,c].reshape(3, -1); jet,pixel = v.nonzero()
        entries[k] = (np.searchsorted(jet, np.arange(4)), pixel, v[jet,pixel])
    bare = JetStore.from_entries(entries, 125, 125, {}, {}, 'images', 'cms', tau.cell)
    o = tau_observables(bare)
    assert np.isfinite(o.values).all() and o.tracks[0]==o.tracks[1]==0 and o.lead_share[1]==0 and o.core_energy[0]==pytest.approx(1e-9)

def test_trees_learn_from_the_training_part_alone(egamma):
    sp,table = split(egamma, .3, .2),shower_shapes(egamma)
    a, = table_baselines(table, egamma, sp, 'valid', name='x')['x']
    spoilt = table.copy(); spoilt.loc[sp.test] = 1e6
    b, = table_baselines(spoilt, egamma, sp, 'valid', name='x')['x']
    assert np.array_equal(a['score'], b['score']) and np.array_equal(a['jet'], sp.valid) and np.array_equal(a['y'], egamma.labels()[sp.valid])
    with pytest.raises(DataError, match='other jets'): table_baselines(table[:10], egamma, sp)

def test_efficiencies_counted_by_hand():
    y = np.array([1,1,1,1,0,0,0,0])
    s = dict(jet=np.arange(8)[::-1], y=y, score=np.array([.9,.8,.7,.1,.6,.5,.4,.75]))
    t = efficiency_by(s, np.array([1,1,1,1,0,0,0,0]), [0,1,2,3], fake_rate=.25)  # values of jets 7..0: signal in the bin from 0
    assert list(t.jets)==[4,4,0] and t.efficiency.iloc[0]==.75 and t.fake_rate.iloc[1]==.25 and np.isnan(t.efficiency.iloc[1:]).all() and np.isnan(t.auc).all()
    whole = efficiency_by(s, np.zeros(8), [0,1], fake_rate=.25)
    assert whole.auc.iloc[0]==pytest.approx(roc_auc_score(y, s['score']))
    with pytest.raises(ConfigError, match='share'): efficiency_by(s, np.zeros(8), [0,1], fake_rate=0)
