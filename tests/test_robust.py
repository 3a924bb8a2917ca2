"Shifts, temperatures, uncertainties and planing: what is not asked of them, and what they must not change"
import numpy as np
import pytest

from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.taggers.robust import (
    at_temperature, drop_entries, fit_temperature, planed, raise_thresholds, scale_energy, score_uncertainty, shift_table,
)


@pytest.fixture(scope='module')
def toys():
    return toy_jets(300, 'qg')


def test_a_shift_leaves_the_store_it_was_given_alone(toys):
    before = {k: [a.copy() for a in e] for k, e in toys.entries.items()}
    for shifted in (scale_energy(toys, 2), drop_entries(toys, 0.5), raise_thresholds(toys, 3)):
        assert len(shifted) == len(toys)
    for k, e in toys.entries.items():
        assert all(np.array_equal(a, b) for a, b in zip(e, before[k]))


def test_energies_and_columns_scale_together(toys):
    twice = scale_energy(toys, 2, channels=toys.channels)
    assert np.array_equal(twice.images([3]).numpy(), 2 * toys.images([3]).numpy())
    assert np.allclose(twice.columns['pt'], 2 * toys.columns['pt'])
    assert np.array_equal(twice.columns['y'], toys.columns['y'])


def test_all_or_nothing_can_be_lost(toys):
    assert len(drop_entries(toys, 1).entries['ECAL'][2]) == 0
    assert np.array_equal(drop_entries(toys, 0).entries['ECAL'][2], toys.entries['ECAL'][2])


def test_the_same_seed_loses_the_same_entries(toys):
    a, b, c = (drop_entries(toys, 0.3, seed=s).entries['ECAL'][1] for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize('shift, says', [
    (lambda s: scale_energy(s, -1), 'positive'),
    (lambda s: scale_energy(s, np.nan), 'positive'),
    (lambda s: drop_entries(s, 1.5), 'between 0 and 1'),
    (lambda s: drop_entries(s, np.nan), 'between 0 and 1'),
    (lambda s: raise_thresholds(s, 0.5), 'threshold'),
    (lambda s: raise_thresholds(s, np.nan), 'threshold'),
    (lambda s: drop_entries(s, 0.1, 'Muons'), 'No channel'),
])
def test_shifts_that_mean_nothing_are_refused(toys, shift, says):
    with pytest.raises((ConfigError, DataError), match=says):
        shift(toys)


def test_a_calibrated_score_keeps_its_temperature():
    rng = np.random.default_rng(1)
    p = rng.random(30_000)
    y = rng.random(30_000) < p
    assert abs(fit_temperature(y, p) - 1) < 0.05
    assert np.allclose(at_temperature(p, 1), p)


def test_disagreement_is_the_mutual_information():
    u = score_uncertainty([[0.0, 0.5], [1.0, 0.5]])
    assert np.allclose(u.epistemic, [1, 0]) and np.allclose(u.aleatoric, [0, 1])
    with pytest.raises(DataError, match='two trainings'):
        score_uncertainty([0.1, 0.2])


def test_planing_wants_a_column_that_is_there(toys):
    with pytest.raises(DataError, match='column nothing'):
        planed(toys, range(300), 'nothing')
    kept = planed(toys, range(300), 'pt', bins=5)
    y, pt = toys.columns['y'][kept], toys.columns['pt'][kept]
    assert (y == 0).sum() == (y == 1).sum() > 50
    assert abs(np.mean(pt[y == 1]) - np.mean(pt[y == 0])) < 5 * np.std(pt) / np.sqrt(len(pt))


def test_a_shift_that_is_a_store_is_scored_as_it_is(toys, tmp_path):
    from jetbook.train.recipes import recipe
    from jetbook.train.runs import train
    from jetbook.train.training import toy_learner

    @recipe('robust_toy', epochs=1, lr_max=0.02)
    def _toy(store, split=None, *, width: int = 4):
        return toy_learner(store, split, width=width)

    run = train('robust_toy', toy_jets(200, 'wqcd'), tmp_path / 'run', progress=False)
    others = toy_jets(100, 'wqcd', seed=5)
    table = shift_table([run], others, {'same': lambda s: s, 'others': toy_jets(80, 'wqcd', seed=6)})
    assert list(table.index.get_level_values('shift')) == ['same', 'others']
    assert table.change.iloc[0] == 0


def test_a_threshold_is_of_the_size_of_an_entry():
    from jetbook.data.hdf5 import sample
    shower = sample('egamma').select(range(200))
    before, after = (np.abs(s.entries['time'][2]) for s in (shower, raise_thresholds(shower, 2)))
    assert shower.entries['time'][2].min() < 0 # times may be negative
    assert 0 < len(after) < len(before) and after.min() >= 2 * np.quantile(before, 0.001) * (1 - 1e-6)


def test_a_store_of_particles_is_not_shifted_in_silence(tmp_path):
    from conftest import quiet
    from jetbook.data.particles import particle_source, toy_particles
    p, y = toy_particles(20)
    jets = quiet(particle_source(lambda lo, hi: p.select(np.arange(lo, hi)), 20, dict(y=y), 'toy'), tmp_path / 'a.jets.h5')
    with pytest.raises(DataError, match='particles'):
        drop_entries(jets, 0.1)
    assert len(drop_entries(jets.to_images(), 0.1)) == 20


def test_a_shift_keeps_what_networks_are_trained_for(toys):
    from jetbook.data.store import Target
    aimed = toys.select(range(20))
    aimed.target = target = Target('m0')
    assert scale_energy(aimed, 1.1).target is target
