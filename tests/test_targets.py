"Networks that predict another column: more than two classes, odd labels, numbers"
import numpy as np
import pytest

from jetbook.cli import main
from jetbook.data.store import ConfigError, DataError, JetbookError, JetStore, find_target, toy_jets
from jetbook.metrics import classification_metrics, multiclass_metrics, regression_metrics
from jetbook.train.runs import Run, evaluate, predict, train


@pytest.fixture(scope='module')
def jets():
    s = toy_jets(90, 'wqcd')
    own = dict(kind=np.arange(90) % 3 + 1, sign=np.where(np.arange(90) % 2, 1, -1), one=np.ones(90))
    return s._replace(columns={**s.columns, **own})


@pytest.fixture(scope='module')
def runs(jets, tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    args = dict(epochs=1, bs=16, progress=False)
    return {
        'mass': train('pfn_quick', jets, d / 'mass', target='jet_mass', task='regress', **args),
        'kind': train('pfn_quick', jets, d / 'kind', target='kind', **args),
        'sign': train('pfn_quick', jets, d / 'sign', target='sign', **args),
        'graph': train('sage', jets, d / 'graph', target='jet_mass', task='regress', **args),
    }


def without(store, *names):
    return store._replace(columns={k: v for k, v in store.columns.items() if k not in names})


def test_a_number_is_predicted_in_its_unit(runs, jets):
    for name in ('mass', 'graph'):
        run = Run(runs[name].path)
        m = evaluate(run, jets)
        assert m['n'] == 14 and 5 < m['rmse'] < 60 and m['rmse_lo'] <= m['rmse'] <= m['rmse_hi']
        p = predict(run, jets)
        assert p.shape == (90,) and 40 < p.mean() < 120
        s = run.scores()
        assert np.allclose(s['y'], jets.columns['jet_mass'][s['jet']], rtol=1e-5)
        assert np.allclose(s['prediction'], p[s['jet']], rtol=1e-4)
        assert 'mae' in run.history and 'auc' not in run.history
        assert run.config['task'] == 'regress' and run.split(jets).by is None


def test_what_is_predicted_is_no_input(runs, jets):
    "Neither the column, nor another of the same meaning, reaches the network"
    run, some = runs['mass'], np.arange(20)
    p = predict(run, jets, some)
    other = jets._replace(columns={**jets.columns, 'jet_mass': jets.columns['jet_mass'] * 3})
    assert np.array_equal(predict(run, other, some), p)
    assert np.array_equal(predict(run, without(jets, 'jet_mass'), some), p)
    renamed = without(jets, 'jet_mass')
    renamed = renamed._replace(columns={**renamed.columns, 'm0': np.full(90, 500.0)})
    assert np.array_equal(predict(run, renamed, some), p)
    with pytest.raises(DataError, match='no jet_mass to evaluate'):
        evaluate(run, without(toy_jets(30, 'wqcd', seed=3), 'jet_mass'), part='all')


def test_three_classes(runs, jets):
    run = Run(runs['kind'].path)
    m = evaluate(run, jets)
    assert np.sum(m['confusion_matrix']) == 14 and {'auc_1', 'auc_2', 'auc_3'} <= set(m) and 'auc' not in run.history
    p = predict(run, without(jets, 'kind'))
    assert p.shape == (90, 3) and np.allclose(p.sum(1), 1, atol=1e-5)
    assert np.allclose(run.scores()['score_2'], p[run.scores()['jet'], 2], atol=1e-5)
    assert predict(run, jets, []).shape == (0, 3)


def test_odd_labels_are_two_classes(runs, jets):
    run = Run(runs['sign'].path)
    assert run.config['target']['values'] == [-1, 1]
    m = evaluate(run, jets)
    assert 'auc' in m and set(run.scores()['y']) == {0, 1} and predict(run, jets).shape == (90,)


def test_targets_that_make_no_sense(jets, tmp_path):
    def why(recipe, exc=ConfigError, store=jets, **kwargs):
        with pytest.raises(exc) as e:
            train(recipe, store, tmp_path / 'x', epochs=1, **kwargs)
        assert not (tmp_path / 'x').exists()
        return str(e.value)

    assert "task='regress'" in why('pfn', store=toy_jets(200, 'wqcd'), target='jet_mass')
    assert 'No such column' in why('pfn', target='mass')
    assert 'one class' in why('pfn', DataError, target='one')
    assert 'one value' in why('pfn', DataError, target='one', task='regress')
    assert 'name the column' in why('pfn', task='regress')
    assert 'pfn, particle_net' in why('dense_ae', target='kind')
    assert 'pfn, particle_net' in why('fused_pfn', target='kind')
    assert 'No such task' in why('pfn', target='kind', task='cluster')
    nan = jets._replace(columns={**jets.columns, 'jet_mass': np.where(np.arange(90) == 5, np.nan, 1.0)})
    assert 'not finite' in why('pfn', DataError, nan, target='jet_mass', task='regress')


def test_the_class_as_target_is_as_usual(jets, tmp_path):
    run = train('pfn_quick', jets, tmp_path / 'r', epochs=1, target='signal', progress=False)
    assert run.config['target'] is None and run.target is None
    with pytest.raises(ConfigError, match='another run.*target'):
        train('pfn_quick', jets, tmp_path / 'r', epochs=1, target='sign', progress=False)


@pytest.mark.parametrize('bad', [3, {}, dict(column='kind', values=[1], mean=0, std=1), dict(column='kind', values=[1, 1], mean=0, std=1),
    dict(column='m', values=None, mean=0, std=0), dict(column='m', values=None, mean='x', std=1), dict(column='k', values=['a', []], mean=0, std=1)])  # fmt: skip
def test_an_altered_target_is_an_error(bad, runs, jets):
    run = Run(runs['mass'].path)
    run.config['target'] = bad
    with pytest.raises(JetbookError, match='does not describe its target'):
        run.target
    with pytest.raises(JetbookError):
        run.learner()


def test_labels_and_names(jets):
    aimed = jets.aim(find_target(jets, 'kind'))
    assert aimed.labels([0, 1, 2]).tolist() == [0, 1, 2] and aimed.classes == ('1', '2', '3')
    assert aimed.label(4) == '2' and aimed.select([3, 4]).label(1) == '2' and jets.label(1) == 'W'
    with pytest.raises(DataError, match='class that is not known'):
        aimed._replace(columns=dict(aimed.columns, kind=np.full(90, 7))).labels()
    number = jets.aim(find_target(jets, 'jet_mass', 'regress'))
    assert number.labels().dtype == np.float32 and number.label(0).startswith('jet_mass ')


def test_metrics_of_numbers_and_classes():
    rng = np.random.default_rng(0)
    y = rng.normal(80, 10, 4000)
    m = regression_metrics(y, y + rng.normal(3, 4, 4000))
    assert abs(m['bias'] - 3) < 0.3 and abs(m['rmse'] - 5) < 0.3 and 0.7 < m['r2'] < 0.8
    with pytest.raises(DataError, match='finite'):
        regression_metrics([1.0], [np.nan])
    with pytest.raises(DataError, match='disagree'):
        multiclass_metrics([0, 1], np.ones((2, 2)), 'abc')


@pytest.mark.parametrize('y', [0, 1])
def test_one_class_gives_what_can_be_given(y):
    with pytest.warns(UserWarning, match='no AUC'):
        m = classification_metrics(np.full(10, y), np.linspace(0, 0.99, 10))
    assert m['accuracy'] == 0.5 and m['accuracy_lo'] < 0.5 < m['accuracy_hi'] and 'auc' not in m
    assert np.sum(m['confusion_matrix'][y]) == 10


def test_on_the_command_line(jets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jets.save('j.jets.h5')
    assert not main('train pfn_quick j.jets.h5 -o r --epochs 1 --target jet_mass --task regress -q'.split())
    assert not main('evaluate r j.jets.h5 --json'.split())
    assert not main('train pfn_quick j.jets.h5 -o k --epochs 1 --target kind --start r -q'.split())
    assert not main('predict k j.jets.h5 -o s.csv -q'.split())
    assert open('s.csv').readline().strip() == 'jet,score_1,score_2,score_3,signal'
    assert 'rmse' in capsys.readouterr().out


def test_a_split_of_ones_own(jets, tmp_path):
    args = dict(epochs=1, bs=16, progress=False)
    own = np.arange(60), np.arange(60, 75), np.arange(75, 90)
    run = train('pfn_quick', jets, tmp_path / 'own', split=own, **args)
    assert np.array_equal(Run(run.path).split(jets).test, own[2]) and evaluate(run, jets)['n'] == 15
    assert train('pfn_quick', jets, tmp_path / 'own', split=own, **args).complete
    with pytest.raises(ConfigError, match='another run'):
        train('pfn_quick', jets, tmp_path / 'own', **args)
    with pytest.raises(ConfigError, match='split and n_train'):
        train('pfn_quick', jets, tmp_path / 'x', split=own, n_train=10, **args)
    with pytest.raises(DataError, match='more than one part'):
        train('pfn_quick', jets, tmp_path / 'x', split=(np.arange(60), np.arange(59, 90)), **args)
    none = train('pfn_quick', jets, tmp_path / 'none', test=0, **args)
    assert len(none.split(jets).test) == 0
    with pytest.raises(DataError, match='no jets of the test part'):
        evaluate(none, jets)
    events = jets._replace(columns={**jets.columns, 'event': np.arange(90) // 3})
    run = train('pfn_quick', events, tmp_path / 'groups', groups='event', **args)
    s = run.split(events)
    assert not set(s.train // 3) & {*(s.valid // 3), *(s.test // 3)}


def test_parts_from_files_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, n in enumerate((40, 20, 16)):
        toy_jets(n, 'wqcd', seed=i).save(f'{i}.jets.h5')
    line = 'train pfn_quick 0.jets.h5 --valid-data 1.jets.h5 --test-data 2.jets.h5 -o r --epochs 1 --set bs=16 -q'
    assert not main(line.split())
    assert not main('evaluate r 2.jets.h5 --json'.split())
    assert Run('r').metrics['test']['n'] == 16 and Run('r').config['split']['n'] == 76


@pytest.mark.parametrize('values,one', [([-1, 1], 1), ([1, 2], 2)])
def test_labels_other_than_0_and_1_are_refused_with_a_mapping(values, one):
    s = toy_jets(6, 'wqcd')
    with pytest.raises(DataError, match=rf'y = \(y == {one}\) makes that class 1'):
        JetStore.from_entries(s.entries, 25, 25, columns=dict(y=np.resize(values, 6)))
