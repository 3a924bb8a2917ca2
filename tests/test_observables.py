"""Observables of jets: empty jets, symmetries, odd input."""
import numpy as np, pytest
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails
from jetbook.data.hdf5 import sample
from jetbook.data.observables import (eccentricity, girth, jet_mass, jet_profile, jet_pt, kt_axes, leading_share, multiplicity,
    nsubjettiness, observables, particles, ptd, share_outside)
from jetbook.data.store import JetStore, Ragged, toy_jets

shapes = (multiplicity, girth, ptd, leading_share, share_outside, eccentricity)


@pytest.fixture(scope='module')
def wqcd(): return sample('wqcd').select(np.arange(300))


@pytest.fixture(scope='module')
def qg(): return sample('qg').select(np.arange(400))


@pytest.fixture
def cross():
    return Ragged([0, 4, 6, 8], pt=np.array([1., 1, 1, 1, 2, 2, 3, 1]), eta=np.array([.5, -.5, 0, 0, .7, -.7, 0, 1.]),
                  phi=np.array([0, 0, .5, -.5, .7, -.7, 0, 0]))


@pytest.fixture
def gaps():
    "jets of 0, 1, 0, 2 and 0 constituents"
    return Ragged([0, 0, 1, 1, 3, 3], pt=np.ones(3), eta=np.zeros(3), phi=np.zeros(3))


def test_particles_of_stores_and_images():
    jets = toy_jets(16)
    a, b = particles(jets), particles(jets.images(), cell=jets.cell)
    close(a.sum(a.pt), b.sum(b.pt), eps=1e-4)
    assert particles(jets, [4], threshold=.02).pt.min() > .02
    eq(np.diff(particles(jets, threshold=1e9).offsets), np.zeros(16))
    eq(len(particles(jets, []).offsets), 1)
    assert particles(-jets.images([1]), cell=1.).pt.max() < 0
    fails(lambda: particles(jets.images()), contains='cell=0.1')
    fails(lambda: particles(jets.images()[0], cell=1.), contains='four dimensions')


def test_jets_without_constituents(gaps):
    eq(jet_pt(gaps), [0, 1, 0, 2, 0])
    close(jet_mass(gaps), np.zeros(5), eps=1e-7)
    eq(jet_pt(Ragged(np.zeros(1, int), pt=np.zeros(0), eta=np.zeros(0), phi=np.zeros(0))).shape, (0,))
    for f in shapes[1:]: eq(f(gaps)[[0, 2, 4]], [0, 0, 0])
    eq(nsubjettiness(gaps)[[0, 2, 4]], np.zeros((3, 3)))
    eq(np.isnan(kt_axes(gaps, 3)).all((1, 2)), [True]*5)


def test_shapes_do_not_change_under_a_turn(cross):
    r, a = np.hypot(cross.eta, cross.phi), np.arctan2(cross.phi, cross.eta)+.7
    turned = cross.replace(eta=r*np.cos(a), phi=r*np.sin(a))
    for f in (multiplicity, ptd, leading_share, share_outside): close(f(turned), f(cross), eps=1e-9)
    for f in (girth, eccentricity): close(f(turned), f(cross), eps=.05)  # (eta, phi) is not a plane: the axis moves a little


def test_shapes_across_the_seam_at_pi(cross):
    far = cross.replace(phi=cross.phi+np.pi)
    for f in (girth, eccentricity): close(f(far), f(cross), eps=1e-9)


def test_order_of_constituents_does_not_matter(cross):
    order = np.r_[np.random.default_rng(0).permutation(4), 4:8]
    mixed = cross.replace(**{k: v[order] for k, v in cross.fields.items()})
    for f in shapes: close(f(mixed), f(cross), eps=1e-9)
    pt, eta, phi = np.random.default_rng(0).random((3, 50))
    big = Ragged([0, 50], pt=pt, eta=eta, phi=phi)
    close(nsubjettiness(big.replace(**{k: v[::-1] for k, v in big.fields.items()})), nsubjettiness(big), eps=1e-9)


def test_a_finite_radius_drops_what_lies_far_away():
    pt, eta, phi = np.array([50., 40, 1]), np.array([0, .3, 3.]), np.zeros(3)
    p = Ragged([0, 3], pt=pt, eta=eta, phi=phi)
    eq(np.sort(kt_axes(p, 2, R=1.)[0, :, 0]), [0, .3])  # the soft one goes to the beam
    assert kt_axes(p, 2)[0, :, 0].max() > .4  # merged with the nearer of the hard ones, it pulls the axis


def test_energy_makes_axes_of_massive_particles():
    p = Ragged([0, 1], pt=np.array([1.]), eta=np.array([1.]), phi=np.zeros(1), energy=np.array([5.]))
    close(kt_axes(p, 1, pseudo=True)[0, 0, 0], 1., eps=1e-9)
    close(kt_axes(p, 1)[0, 0, 0], np.arctanh(np.sinh(1.)/5), eps=1e-9)


def test_table_of_some_jets(wqcd, qg):
    eq(list(observables(wqcd, [5, 3]).index), [5, 3])
    eq(observables(wqcd, slice(0, 40), chunk=7), observables(wqcd, np.arange(40)))
    eq(len(observables(wqcd, [])), 0)
    eq(len(observables(wqcd, np.arange(len(wqcd))<9)), 9)
    assert all(np.isfinite(observables(o).to_numpy()).all() for o in (wqcd, qg))
    calo = ['ECAL', 'HCAL']
    close(observables(qg, [0], channels=calo).pt, jet_pt(particles(qg.select(channels=calo), [0])))
    assert not observables(qg.select([3], channels='ECAL')).columns.str.startswith('n_').any()


def test_own_columns_have_one_name(wqcd, qg):
    eq(observables(qg, own=True).jet_mass.values, qg.columns['m0'])
    eq(observables(wqcd, [7, 3], own=True).jet_pt.values, wqcd.columns['jet_pt'][[7, 3]])
    bare = qg.select([0, 1])
    bare.columns.pop('m0')
    res = observables(bare, own=True)
    assert 'jet_mass' not in res and 'jet_pt' in res


def test_profile(qg):
    profile = jet_profile(qg)
    for k in qg.channels:
        cells = profile[[f'{k} cells_from_{r}' for r in ('0', '0.05', '0.1', '0.2', '0.3', '0.5')]].sum(axis=1)
        eq(cells.values, np.diff(qg.entries[k][0]).astype(float))
        assert (profile[f'{k} hardest'] <= profile[f'{k} share']+1e-12).all()
    one = jet_profile(qg.select(channels=['Tracks']))  # one channel: its own pTD is the jet's
    close(one['Tracks ptd'], one['ptd'], 1e-3)


def test_profile_of_dark_jets():
    dark = JetStore.from_entries({'a': (np.zeros(3, int), np.zeros(0, int), np.zeros(0))}, 25, 25, cell=0.1)
    profile = jet_profile(dark)
    assert np.isfinite(profile.values).all() and (profile.filter(like='a ') == 0).all(axis=None)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_axes_beside_jets_of_odd_numbers(bad):
    rng = np.random.default_rng(0)
    pt,eta,phi = rng.random((3,130))
    p = Ragged([0,10,70,130], pt=pt, eta=eta, phi=phi)
    for k in ('pt','eta','phi'):
        v = p.fields[k].copy()
        v[10:70:7] = bad
        res = kt_axes(p.replace(**{k: v}), 3)  # it ends, and the other jets are as they were
        eq(res[[0,2]], kt_axes(p, 3)[[0,2]])


def test_axes_of_many_constituents_by_hand():
    rng = np.random.default_rng(1)
    pt,eta,phi = rng.exponential(size=300), rng.normal(size=300), rng.uniform(-np.pi, np.pi, 300)
    four = np.stack([pt*np.cos(phi), pt*np.sin(phi), pt*np.sinh(eta), pt*np.cosh(eta)])
    while four.shape[1]>3:  # all pairs, as the algorithm is defined
        px,py,pz,e = four
        y,f,k = np.arctanh(pz/e), np.arctan2(py, px), px**2+py**2
        df = np.abs(f[:,None]-f)
        d = np.minimum(k[:,None], k)*((y[:,None]-y)**2+np.minimum(df, 2*np.pi-df)**2)
        i,j = np.unravel_index(np.argmin(np.where(np.eye(len(k), dtype=bool), np.inf, d)), d.shape)
        four = np.concatenate([np.delete(four, [i,j], 1), four[:,[i]]+four[:,[j]]], 1)
    want = np.stack([np.arctanh(four[2]/four[3]), np.arctan2(four[1], four[0])], 1)
    ours = kt_axes(Ragged([0,300], pt=pt, eta=eta, phi=phi), 3)[0]
    close(ours[np.argsort(ours[:,0])], want[np.argsort(want[:,0])], eps=1e-9)
