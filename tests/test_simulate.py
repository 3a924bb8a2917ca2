"""The simulation: requests that cannot be met, and the order of a sample. Needs `pip install 'jetbook[sim]'`."""
import numpy as np, pytest
from fastcore.test import test_eq as eq, test_fail as fails, test_ne as ne
pytest.importorskip('pythia8mc')
pytest.importorskip('fastjet')
from jetbook.data.observables import wrap_phi
from jetbook.simulate.events import Events
from jetbook.simulate.jets import clean, flip, make_detector, simulate, wqcd_steps


def test_requests_that_cannot_be_met():
    fails(lambda: simulate('top', 10), contains='qg or wqcd')
    fails(lambda: simulate('qg', 1), contains='2 or more')
    fails(lambda: simulate('qg', 10, seed=-1), contains='seed')
    fails(lambda: simulate('qg', 10, workers=0), contains='1 or more')
    fails(lambda: simulate('qg', 10, filed=1.), contains='field')
    fails(lambda: make_detector(field=-1), contains='0 or more')
    fails(lambda: wqcd_steps(5, process='top'), contains='W or QCD')
    fails(lambda: Events('top'), contains='gluon or quark or QCD or W')


def test_a_small_sample():
    jets = simulate('qg', 60, seed=5, workers=1, progress=False)
    eq((jets.channels, jets.upsample['HCAL'], jets.columns['y'].sum()), (('Tracks', 'ECAL', 'HCAL'), 5, 30))
    assert 5 < jets.columns['y'][:30].sum() < 25  # the classes are mixed
    ne(simulate('qg', 24, seed=8, workers=1, progress=False).columns['pt'], simulate('qg', 24, seed=7, workers=1, progress=False).columns['pt'])


def test_columns_of_w_and_qcd_jets():
    jets = simulate('wqcd', 4, seed=5, workers=1, progress=False)
    eq(list(jets.columns)[:11], 'signal jet_pt jet_eta jet_phi jet_mass jet_delta_R tau_1 tau_2 tau_3 tau_21 tau_32'.split())


def test_wrap_phi_of_many_turns():
    eq(wrap_phi(np.array([7.]))[0], 7-2*np.pi)


def test_flip_is_its_own_limit():
    x = np.random.default_rng(0).random((20, 25, 25))
    eq(flip(flip(x)), flip(x))
    eq(flip(x[:, :, ::-1].copy()), flip(x))
    eq(clean(np.array([[[5e-4, 2e-3]]])), [[[0, 2e-3]]])
