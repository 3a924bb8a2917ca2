"Edge cases of the anomaly methods: scikit-learn's own checks, refused settings, tampered bundles, scans, comparisons"
import json
import shutil
import warnings
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tamper
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from jetbook.anomaly.cwola import CWoLa
from jetbook.anomaly.density import (
    DeepSVDD, gmm_latent, gmm_observables, knn_latent, LatentCodes, mahalanobis_latent, MahalanobisDistance,
    NeighbourDistance, PCAError, sphere_net, SphereNet, TowerDL,
)
from jetbook.anomaly.methods import (
    anomaly_method, anomaly_metrics, anomaly_score, AutoencoderRun, calibrate, class_index, fit_background,
    fit_method, JET_SHAPES, JetObservables, load_method, mass_sculpting, MeanImage, most_anomalous, Observable, p_values, save_method,
    scan, scan_notes, significance_improvement, threshold, Towers, towers, unlabelled,
)
from jetbook.anomaly.search import (
    both_directions, compare_methods, comparison_table, confusion_at_cut, plot_gain, plot_mass, supervised, with_seed,
)
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.observables import observables
from jetbook.data.store import ConfigError, DataError, JetStore, toy_jets
from jetbook.train.recipes import recipes
from jetbook.train.runs import evaluate, train

ON_ARRAYS = (
    'mahalanobis_observables', 'gmm_observables', 'knn_observables', 'isolation_forest', 'pca', 'mahalanobis_pca',
)
QUICK = {'pca': dict(n_components=30), 'mean_image': {}, 'observable': {}}
NETWORKS = dict(epochs=1)


@pytest.fixture(scope='module')
def toys():
    return toy_jets(300, 'wqcd')


@pytest.fixture(scope='module')
def ring():
    rng = np.random.RandomState(0)
    angle = rng.uniform(0, 2 * np.pi, 1000)
    return np.c_[np.cos(angle), np.sin(angle)] * rng.normal(1, 0.1, 1000)[:, None]


@pytest.fixture(scope='module')
def qg():
    return sample('qg').select(range(200))


# scikit-learn


@pytest.mark.parametrize('estimator', [MahalanobisDistance(), NeighbourDistance(k=2), PCAError(n_components=1)], ids=repr)
def test_array_estimators_pass_scikit_learns_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        check_estimator(estimator)


@pytest.mark.parametrize('name', recipes('anomaly').index)
def test_every_method_is_found_cloned_and_seeded(name):
    method = anomaly_method(name)
    assert repr(clone(method)) == repr(method) and method.made_by['recipe'] == name
    seeded = with_seed(method, 5)
    assert {v for k, v in seeded.get_params().items() if k.endswith('random_state')} <= {5, None}
    assert seeded.made_by['settings'].get('random_state', 5) == 5


@pytest.mark.parametrize('name', [*ON_ARRAYS, 'mean_image', 'observable', 'surrogates'])
def test_methods_come_back_from_their_bundle_bit_for_bit(name, toys, tmp_path):
    method = calibrate(fit_method(anomaly_method(name, **QUICK.get(name, {})), toys.select(range(200))), toys)
    again = load_method(save_method(method, tmp_path))
    np.testing.assert_array_equal(anomaly_score(again, toys), anomaly_score(method, toys))
    np.testing.assert_array_equal(again.background_scores_, method.background_scores_)
    assert again.held_out_ and again.background_ == method.background_
    np.testing.assert_array_equal(p_values(again, [0.0]), p_values(method, [0.0]))


@pytest.mark.parametrize('name', [*ON_ARRAYS, 'mean_image', 'surrogates', 'gmm_latent'])
def test_no_method_sees_a_label(name, toys):
    turned = toys._replace(columns={**toys.columns, 'signal': 1 - toys.columns['signal']}, path=None)
    settings = NETWORKS if 'latent' in name else QUICK.get(name, {})
    fits = [anomaly_method(name, **settings).fit(s) for s in (toys, turned, unlabelled(toys))]
    scores = [anomaly_score(m, s) for m, s in zip(fits, (toys, turned, toys))]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_allclose(scores[0][[3, 5]], anomaly_score(fits[0], toys, [3, 5]), rtol=1e-4)


def test_scores_do_not_depend_on_the_chunks(toys):
    method = anomaly_method('knn_observables').fit(toys)
    np.testing.assert_allclose(anomaly_score(method, toys, step=7), anomaly_score(method, toys), rtol=1e-12)
    assert anomaly_score(method, toys).dtype == np.float64


def test_outlier_mixin_gives_fit_predict(toys):
    found = MeanImage().fit_predict(toys)
    assert set(found) == {-1, 1} and (found == -1).mean() <= 0.05
    with pytest.raises(ConfigError, match='calibrate'):
        p_values(MeanImage().fit(toys), [1.0])


def test_a_pipeline_of_ones_own_is_a_method_but_has_no_name(toys, tmp_path):
    method = make_pipeline(JetObservables(), StandardScaler(), IsolationForest(random_state=0))
    fitted = fit_background(method, toys, 'QCD')
    assert fitted is method and len(fitted.background_scores_) == 15
    assert list(scan(method, toys))[:2] == ['score', 'p']
    with pytest.raises(ConfigError, match='without a name'):
        save_method(method, tmp_path)
    named = gmm_observables().set_params(gaussianmixture__n_components=2).fit(toys)
    with pytest.raises(ConfigError, match='not with set_params'):
        save_method(named, tmp_path)


# settings and data that are refused


def test_refused_settings_and_data(toys, tmp_path):
    for call, text in (
        (lambda: anomaly_method('oracle'), 'No such recipe'),
        (lambda: anomaly_method('sage'), 'another task'),
        (lambda: anomaly_method('observable', row='mass'), 'column'),
        (lambda: anomaly_method('mean_image', power='two'), 'power'),
        (lambda: Observable('colour').fit(toys), 'tau_21'),
        (lambda: gmm_observables(columns=('spin',)).fit(toys), 'No such observable'),
        (lambda: NeighbourDistance(50).fit(np.zeros((40, 2))), 'a smaller k'),
        (lambda: MeanImage().fit(toys.select(range(5))), 'Too few'),
        (lambda: fit_method(MeanImage(), toys, mixture=toys), 'background alone'),
        (lambda: towers(JetStore.from_entries(dict(pT=([0, 1], [0], [1.0])), 32, 32)), '32x32'),
        (lambda: save_method(MeanImage(), tmp_path), 'not fitted'),
        (lambda: load_method(tmp_path / 'nowhere'), 'config.json'),
        (lambda: threshold(np.arange(10), 5), 'between 0 and 1'),
        (lambda: mass_sculpting([1, 2], [0, 0], 1), 'passes'),
        (lambda: class_index(unlabelled(toys), 'QCD'), 'no labels'),
    ):
        with pytest.raises((ConfigError, DataError, ValueError), match=text):
            call()


def test_features_and_scores_must_be_finite(toys):
    empty = toys._replace(
        entries={k: (np.r_[0, o[1:] * 0], p[:0], v[:0]) for k, (o, p, v) in toys.entries.items()}, path=None
    )

    class Broken(Observable):
        def _score(self, jets):
            return np.full(len(jets), np.nan)

    with pytest.raises(DataError, match='NaN or infinite'):
        Broken().fit(toys)
    with pytest.raises(DataError, match='NaN or infinite|Some features'):
        anomaly_score(type('B', (), dict(score_samples=lambda self, X: np.full(len(X), np.nan)))(), empty)


def test_towers_keep_one_channel_images_and_columns(toys):
    x = toys.images([7])
    torch.testing.assert_close(towers(toys).images([7]), 100 * x / x.sum(), atol=1e-3, rtol=0)
    np.testing.assert_array_equal(towers(toys).columns['signal'], toys.columns['signal'])
    assert unlabelled(toys).label_column is None


# tampered bundles


@pytest.mark.parametrize('change, text', [
    (dict(format='pickle'), 'not a fitted anomaly method'),
    (dict(recipe='os.system'), 'No such recipe'),
    (dict(recipe='sage'), 'another task'),
    (dict(recipe='knn_observables', settings={}), 'another method'),
    (dict(settings=dict(power='x')), 'power'),
    (dict(settings=None), 'no settings'),
    (dict(background=None), 'no background'),
    (dict(version=9), 'another version'),
])
def test_tampered_configs(change, text, toys, tmp_path):
    save_method(MeanImage().fit(toys), tmp_path)
    tamper(tmp_path, **change)
    with pytest.raises((ConfigError, DataError), match=text):
        load_method(tmp_path)


@pytest.mark.parametrize('change', [
    dict(indices=torch.full((10,), 700)),
    dict(indptr=torch.tensor([0, 10**9])),
    dict(data=torch.zeros(3)),
])
def test_tampered_towers(change, toys, tmp_path):
    from jetbook.train.training import load_tensors, save_tensors

    save_method(anomaly_method('pca', n_components=5).fit(toys), tmp_path)
    arrays = load_tensors(tmp_path / 'model.safetensors')[0]
    save_tensors(tmp_path / 'model.safetensors', arrays | {f'state/{k}': v for k, v in change.items()})
    with pytest.raises(DataError):
        load_method(tmp_path)


def test_features_of_another_number_of_observables(toys, tmp_path):
    save_method(anomaly_method('knn_observables', columns=['girth', 'ptd']).fit(toys), tmp_path)
    f = tmp_path / 'config.json'
    c = json.loads(f.read_text())
    assert c['settings'] == dict(columns=['girth', 'ptd'], k=50)
    tamper(tmp_path, settings={})
    with pytest.raises(DataError, match='another method'):
        load_method(tmp_path)


def test_a_bundle_without_weights_is_not_complete(toys, tmp_path):
    fit_background('mean_image', toys, 'QCD', out=tmp_path / 'm')
    weights = tmp_path / 'm/model.safetensors'
    before = weights.read_bytes()
    weights.unlink()  # as if killed before they were written
    with pytest.raises(DataError, match='model.safetensors'):
        load_method(tmp_path / 'm')
    fit_background('mean_image', toys, 'QCD', out=tmp_path / 'm')
    assert weights.read_bytes() == before


# densities


def test_distances_against_scipy(ring):
    z = StandardScaler().fit(ring)
    new = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 3.0]])
    x, points = z.transform(ring), z.transform(new)
    inverse = np.linalg.inv(np.cov(x.T, bias=True))
    want = [mahalanobis(o, x.mean(0), inverse) ** 2 for o in points]
    np.testing.assert_allclose(-MahalanobisDistance().fit(x).score_samples(points), want, rtol=1e-8)
    want = np.sort(cdist(points, x), 1)[:, 6]
    np.testing.assert_allclose(-NeighbourDistance(7).fit(x).score_samples(points), want, rtol=1e-8)


@pytest.mark.parametrize('estimator', [
    MahalanobisDistance(), NeighbourDistance(), GaussianMixture(4, reg_covar=1e-3, random_state=0),
    IsolationForest(n_estimators=200, random_state=0),
], ids=lambda e: type(e).__name__)
def test_what_is_far_is_rare_in_any_unit(estimator, ring):
    new = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 3.0]])
    scores = [
        -make_pipeline(StandardScaler(), clone(estimator)).fit(f(ring)).score_samples(f(new))
        for f in (lambda x: x, lambda x: x, lambda x: x * [1e3, 1e-3] + 5)
    ]
    assert scores[0][2] > scores[0][1]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-3)


def test_known_values_on_observables(toys):
    x = observables(toys)[list(JET_SHAPES)].to_numpy()
    z = (x - x.mean(0)) / x.std(0)
    score = lambda name: anomaly_score(anomaly_method(name).fit(toys), toys)
    np.testing.assert_allclose(score('mahalanobis_observables').mean(), 5, rtol=1e-6)
    want = -GaussianMixture(4, reg_covar=1e-3, random_state=0).fit(z).score(z)
    np.testing.assert_allclose(score('gmm_observables').mean(), want, rtol=1e-6)
    forest = score('isolation_forest')
    assert (0 < forest).all() and (forest < 1).all()
    assert JetObservables(('girth',)).fit_transform(toys).shape == (300, 1)


# networks


def test_latent_methods_share_a_training_and_come_back(toys, tmp_path):
    makers = (mahalanobis_latent, gmm_latent, knn_latent)
    methods = [fit_method(f(**NETWORKS), toys, tmp_path / 'runs') for f in makers]
    assert len({m[0].run_.path for m in methods}) == 1 and len([*(tmp_path / 'runs').iterdir()]) == 1
    scores = [anomaly_score(m, toys) for m in methods]
    assert (scores[0] != scores[1]).all() and (scores[1] != scores[2]).all()
    for i, (m, s) in enumerate(zip(methods, scores)):
        save_method(m, tmp_path / str(i))
    shutil.rmtree(tmp_path / 'runs')  # the bundles stand on their own
    for i, s in enumerate(scores):
        np.testing.assert_array_equal(anomaly_score(load_method(tmp_path / str(i)), toys), s)
    assert LatentCodes(4, **NETWORKS).fit_transform(toys).shape == (300, 4)


def test_another_seed_is_another_training(toys, tmp_path):
    fits = [DeepSVDD(code=4, random_state=i, **NETWORKS).fit(toys, folder=tmp_path) for i in (0, 0, 1)]
    assert fits[0].run_.path == fits[1].run_.path != fits[2].run_.path
    np.testing.assert_array_equal(anomaly_score(fits[0], toys), anomaly_score(fits[1], toys))
    save_method(fits[0], tmp_path / 'kept')
    np.testing.assert_array_equal(anomaly_score(load_method(tmp_path / 'kept'), toys), anomaly_score(fits[0], toys))
    others = toys.select(range(100))
    others = toy_jets(100, 'wqcd', 77)
    found = evaluate(fits[0].run_, towers(others), 'all')['distance']
    np.testing.assert_allclose(found, anomaly_score(fits[0], others).mean(), rtol=1e-5)


def test_the_sphere_network_cannot_collapse_by_a_bias(toys, qg):
    x = towers(toys).images(range(100))
    net = SphereNet().set_center(x)
    c = net.embed(x).mean(0)
    torch.testing.assert_close(net.center[c.abs() >= 0.1], c[c.abs() >= 0.1], atol=1e-5, rtol=0)
    assert (net.center.abs() >= 0.0999).all() and not net.center.requires_grad
    assert SphereNet((625, 64, 3)).set_center(0 * x).center.abs().tolist() == pytest.approx([0.1] * 3)
    assert SphereNet().embed(0 * x).abs().max() == 0 < SphereNet(bias=True).embed(0 * x).abs().max()
    parts = split(towers(toys))
    count = lambda **kw: len([*sphere_net(towers(toys), parts, **kw).model.parameters()])
    assert count(bias=True) == 2 * count()
    with pytest.raises(ConfigError, match='takes other images'):
        sphere_net(qg, split(qg))
    a, b = TowerDL(towers(toys), bs=7).one_batch()
    assert torch.equal(a, b) and torch.equal(a, towers(toys).images(range(7)))


def test_deep_svdd_evaluates_its_validation_part(toys):
    images = towers(toys)
    parts = split(images, valid=0.1, test=0.1)
    learn = sphere_net(images, parts, code=8)
    x = images.images(parts.valid).to(learn.model.center.device)
    assert learn.validate()[0] == pytest.approx(learn.model(x).mean().item(), rel=1e-5)


# figures


def test_significance_improvement():
    d = significance_improvement([0] * 100 + [1] * 100, np.r_[np.arange(100), np.arange(100) + 0.5])
    np.testing.assert_allclose(d.sic, d.eps_s / d.eps_b**0.5)
    np.testing.assert_allclose(d.iloc[-1], [1, 1, 1])
    assert (d.eps_b * 100 >= 9.5).all()


def test_random_cuts_do_not_sculpt():
    rng = np.random.default_rng(1)
    r = mass_sculpting(rng.normal(80, 10, 4000), rng.random(4000), 0.8)
    assert r['distance'] < 1.5 * r['noise'] and 700 < r['passing'] < 900


def test_metrics_and_p_values(toys):
    method = calibrate(Observable('mass').fit(toys), toys)
    s = anomaly_score(method, toys)
    assert (np.diff(p_values(method, np.linspace(0, 200, 50))) <= 0).all()
    m = anomaly_metrics(toys.columns['signal'], s, threshold(s, 0.2))
    assert sum(map(sum, m['confusion_matrix'])) == 300 and m['auc_lo'] < m['auc'] < m['auc_hi']
    assert 'sculpting' not in m


def test_p_values_as_text():
    for p, n, text in (
        (1 / 801, 800, '< 0.0013'), (2 / 801, 800, '0.0025'), (1 / 31, 30, '< 0.033'), (0.1, 9, '< 0.11'), (0.25, 0, '0.25'),
    ):
        df = pd.DataFrame(dict(score=[1.0], p=[p]))
        df.attrs['held_out'] = n
        assert most_anomalous(df).p[0] == text


# fit and scan


def test_all_jets_are_background_where_there_are_no_labels(toys):
    method = fit_background('mean_image', unlabelled(toys))
    assert (method.background_['n'], len(method.background_scores_)) == (270, 30)
    with pytest.raises(DataError, match='no labels'):
        fit_background('mean_image', unlabelled(toys), 'QCD')
    assert scan_notes(scan(method, unlabelled(toys.select(range(100))))) == []
    assert '270 of these very jets' in scan_notes(scan(method, unlabelled(toys)))[0]


def test_a_fit_is_kept_once(toys, tmp_path):
    kept = fit_background('ae', toys, 'QCD', out=tmp_path, **NETWORKS)
    assert not (tmp_path / 'training').exists()
    again = fit_background('ae', toys, 'QCD', out=tmp_path, **NETWORKS)
    np.testing.assert_array_equal(anomaly_score(again, toys), anomaly_score(kept, toys))
    with pytest.raises(ConfigError, match='something else'):
        fit_background('ae', toys, 'QCD', out=tmp_path, epochs=2)
    note = scan_notes(scan(kept, toys))[-1]
    assert f'was fitted to {kept.background_["n"]:,} of these' in note  # the bundle knows which store it learned from
    assert scan(fit_background('mean_image', toys, 'W'), toys).attrs['signal'] == 'QCD'


def test_scan_writes_scores_beside_the_jets(toys, tmp_path):
    method = fit_background('mean_image', toys, 'QCD')
    df = scan(method, toys, tmp_path / 'scan.jets.h5')
    s = JetStore(tmp_path / 'scan.jets.h5')
    np.testing.assert_array_equal(s.columns['anomaly_mean_image'], anomaly_score(method, toys))
    assert 0 < s.columns['anomaly_mean_image_p'].min() and df.p.dtype == np.float64
    assert torch.equal(s.images([3]), toys.images([3]))
    np.testing.assert_array_equal(s.columns['jet_mass'], toys.columns['jet_mass'])
    assert (tmp_path / 'scan.png').read_bytes()[:4] == b'\x89PNG'
    assert df.score.is_monotonic_decreasing and sorted(df.index) == [*range(300)]
    hit, tenth = df['class'] == 'W', -(-len(df) // 10)
    assert scan_notes(df)[0].startswith(
        f'{hit[:8].sum()} of the 8 most anomalous jets are W jets, {hit[:tenth].mean():.0%} of the most anomalous tenth'
    )
    save_method(method, tmp_path / 'method')
    with pytest.warns(UserWarning, match='it is replaced'):
        again = scan(tmp_path / 'method', tmp_path / 'scan.jets.h5')
    np.testing.assert_array_equal(again.score, df.score)


def test_the_run_of_an_autoencoder_is_a_method(toys, tmp_path):
    run = train('dense_ae', toys, tmp_path / 'ae', epochs=1, progress=False)
    df = scan(tmp_path / 'ae', toys)
    assert list(df) == ['score', 'class'] and 'was fitted to 210 of these very jets' in scan_notes(df)[-1]
    with torch.no_grad():
        x = toys.images(range(300))
        want = (run.model()(x) - x).square().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(df.sort_index().score, want, atol=1e-6)
    scan(tmp_path / 'ae', toys, tmp_path / 'scan.jets.h5')
    assert 'anomaly_reconstruction' in JetStore(tmp_path / 'scan.jets.h5').columns
    tagger = train('pfn_quick', toys, tmp_path / 'pfn', epochs=1, progress=False)
    with pytest.raises(ConfigError, match='not an autoencoder'):
        anomaly_score(AutoencoderRun(tagger), toys)


# comparisons


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    store = sample('wqcd').select(range(2000))
    few = {'mass': Observable('mass'), 'mean jet': MeanImage()}
    out = tmp_path_factory.mktemp('compared')
    found = compare_methods(store, 'QCD', out, few, (0, 1), 'valid', progress=False)
    return store, out, few, found | {'supervised': supervised(store, 'QCD', (0, 1), 'valid')}


def test_what_was_compared_is_kept(compared):
    store, out, few, found = compared
    f = out / 'mass-0/scores-valid.safetensors'
    before = f.stat().st_mtime_ns
    again = compare_methods(store, 'QCD', out, few, (0, 1), 'valid', progress=False)
    assert f.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again['mass'][0]['score'], found['mass'][0]['score'])
    with pytest.raises(ConfigError, match='other settings'):
        compare_methods(store, 'QCD', out, {'mass': Observable('girth')}, (0,), 'valid', progress=False)
    with pytest.raises(ConfigError, match='other settings'):
        compare_methods(store, 'QCD', out, few, (0,), 'valid', n_train=100, progress=False)


def test_tables_and_plots_of_a_comparison(compared):
    store, _, _, found = compared
    t = comparison_table(found, store.columns['m0'], n_boot=20)
    assert t.index[0] == 'supervised' and t.seeds.tolist() == [2] * 3
    assert (t.lo < t.auc).all() and (t.auc < t.hi).all() and (t.eps_b < 0.2).all()
    assert comparison_table(found, n_boot=2).sculpting.isna().all()
    n = len(found['mass'][0]['y'])
    assert confusion_at_cut(found['mass']).sum().sum() == n
    both = both_directions({'a -> b': t, 'b -> a': t})
    np.testing.assert_array_equal(both['worse', 'auc'], both['a -> b', 'auc'])
    ax = plot_gain(found)
    assert len(ax.lines) == len(found) + 1 and ax.get_xlabel().startswith('signal')
    assert 'GeV' in plot_mass(found, store.columns['m0'], ['mass']).get_xlabel()


def test_a_pipeline_of_ones_own_can_be_compared(compared, tmp_path):
    store = compared[0]
    own = make_pipeline(Towers(), PCAError(5))
    found = compare_methods(store, 'QCD', tmp_path, {'own': own}, (0,), 'valid', progress=False)
    assert len(found['own']) == 1 and not (tmp_path / 'own-0/config.json').exists()


def test_cwola_draws_another_mixture_with_every_seed(tmp_path):
    store = toy_jets(900, 'wqcd')
    found = compare_methods(store, 'QCD', tmp_path, {'c': CWoLa()}, (0, 1), 'valid', signal_share=0.1, progress=False)
    assert len(found['c']) == 2 and (found['c'][0]['score'] != found['c'][1]['score']).any()
