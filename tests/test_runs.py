"Run folders that hold something else, jets that don't fit, and readings of the test part"
import inspect, json, shutil, warnings
from types import SimpleNamespace as NS

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from sklearn.metrics import roc_auc_score

import jetbook.train.runs as runs
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, JetStore, toy_jets
from jetbook.train.recipes import RESERVED, recipe
from jetbook.train.runs import Run, compare, compare_plot, evaluate, fingerprint, fit_weights, load_bundle, predict, save_bundle, score, train
from jetbook.train.training import toy_learner

@recipe(task='classify', lr_max=.05, epochs=4)
def test_clf(store, split=None, *, width=16, dropout:float=.1, bs=32): return toy_learner(store, split, width=width, bs=bs, dropout=dropout)
test_clf.__test__ = False

@recipe(task='reconstruct', lr_max=.01, epochs=6)
def test_ae(store, split=None, *, width=16, bs=32): return toy_learner(store, split, 'reconstruct', width, bs)
test_ae.__test__ = False

ARGS = dict(seed=3, width=24, progress=False)

@pytest.fixture(scope='module')
def store(): return toy_jets(600, 'wqcd')

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture(scope='module')
def run(store, folder): return train('test_clf', store, folder/'clf', **ARGS)

@pytest.fixture(scope='module')
def ae(store, folder): return train('test_ae', store, folder/'ae', progress=False)

def weights(r): return (r.path/'model.safetensors').read_bytes()
def without(store, *names): return store._replace(columns={k:v for k,v in store.columns.items() if k not in names})

# --- bundles

def test_weights_of_another_model_are_refused(folder):
    _,state = load_bundle(save_bundle(toy_learner(), dict(recipe='x'), folder/'bundle'))
    with pytest.raises(DataError, match='without 2.bias'): fit_weights(toy_learner(), {k:v for k,v in state.items() if k!='2.bias'})
    with pytest.raises(DataError, match='with more'): fit_weights(toy_learner(), {**state, 'more':torch.zeros(1)})
    with pytest.raises(DataError, match='float64'): fit_weights(toy_learner(), {k:v.double() for k,v in state.items()})
    with pytest.raises(DataError, match='is this a run folder'): load_bundle(folder/'nowhere')

# --- jets by their contents

def test_a_fingerprint_is_of_the_contents():
    a = fingerprint(toy_jets(10))
    changed = toy_jets(10)
    changed.columns['pt'][3] += 1
    assert fingerprint(toy_jets(10))==a and a['digest'] not in (fingerprint(changed)['digest'], fingerprint(toy_jets(10, seed=1))['digest'])

def test_toy_jets_have_the_geometry_of_the_fingerprint():
    few = toy_jets(20)
    like = runs._like(fingerprint(few))
    assert (like.channels, like.upsample, like.images([0]).shape, sorted(like.columns), like.cell)==(few.channels, few.upsample, (1,3,125,125), ['m0','pt','y'], few.cell)

@pytest.mark.parametrize('change', [None, dict(height='x'), dict(height=10**9), dict(upsample={})])
def test_a_geometry_without_sense_is_refused(change):
    d = {} if change is None else dict(fingerprint(toy_jets(20)), **change)
    with pytest.raises(ConfigError, match='does not describe its jets'): runs._like(d)

# --- training

def test_a_run_says_what_it_is(run, store):
    c = run.config
    assert (c['settings'], c['epochs'], c['lr_max'])==(dict(width=24, dropout=.1, bs=32), 4, .05)
    assert c['store']['source']=='toy jets: random numbers' and run.split(store).digest==split(store).digest
    with pytest.raises(DataError, match='not trained on this store'): run.split(toy_jets(600, 'wqcd', seed=1))

def test_the_same_seed_gives_the_same_bytes(run, store, folder):
    again = train('test_clf', store, folder/'again', **ARGS)
    assert weights(again)==weights(run) and again.history.drop(columns='seconds').equals(run.history.drop(columns='seconds'))

def test_a_finished_run_is_left_alone(run, store, capsys):
    before = weights(run)
    train('test_clf', store, run.path, **{**ARGS, 'progress':True})
    assert 'already trained: 4 epochs' in capsys.readouterr().out and weights(run)==before

@pytest.mark.parametrize('kwargs,why', [
    (dict(seed=4, width=24), r'Found: seed=3\. Expected: seed=4\. Do: choose another folder'),
    (dict(seed=3, width=8, n_train=100), r'Found: width=24; n_train=None\. Expected: width=8; n_train=100'),
    (dict(seed=3, width=24, resume=False), 'already holds a run')])
def test_a_folder_of_another_run_is_refused(kwargs, why, run, store):
    with pytest.raises(ConfigError, match=why): train('test_clf', store, run.path, **kwargs)

def test_a_folder_of_another_recipe_or_store_is_refused(run, store):
    with pytest.raises(ConfigError, match='Found: recipe=test_clf. Expected: recipe=test_ae'): train('test_ae', store, run.path)
    with pytest.raises(ConfigError, match='store=600 jets'): train('test_clf', toy_jets(600, 'wqcd', seed=1), run.path, **ARGS)

@pytest.mark.parametrize('kwargs,why', [(dict(depth=3), 'no such setting'), (dict(schedule='linear'), 'one_cycle'), (dict(epochs=0), 'both above 0'), (dict(seed=-1), 'out of range'), (dict(lr_max='fnd'), "'find'")])
def test_settings_without_sense_are_refused_before_anything_is_written(kwargs, why, store, folder):
    with pytest.raises(ConfigError, match=why): train('test_clf', store, folder/'x', **kwargs)
    assert not (folder/'x').exists()

def test_reserved_names_are_the_arguments_of_train():
    assert sorted(RESERVED)==sorted(k for k in inspect.signature(train).parameters if k!='settings')

def test_a_kill_after_the_last_epoch_costs_nothing(run, store, folder, monkeypatch):
    def power_cut(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runs, '_finish', power_cut)
        with pytest.raises(KeyboardInterrupt): train('test_clf', store, folder/'late', **ARGS)
    late = train('test_clf', store, folder/'late', **ARGS)
    assert weights(late)==weights(run) and late.history.drop(columns='seconds').equals(run.history.drop(columns='seconds'))

def test_a_loss_that_is_nan_stops_the_training(store, folder):
    class Boom(Callback):
        def after_loss(self):
            if self.training: self.learn.loss = self.learn.loss*float('nan')
    with pytest.raises(ConfigError, match='The training loss is NaN'): train('test_clf', store, folder/'nan', cbs=Boom(), **ARGS)

def test_a_rate_that_was_found_is_kept(store, folder):
    found = train('test_clf', store, folder/'found', lr_max='find', **ARGS)
    assert 1e-4 < found.config['lr_max'] < 1 and found.config['lr_found']
    assert train('test_clf', store, folder/'found', lr_max='find', **ARGS).config==found.config

# --- a training by hand

def test_a_training_by_hand_is_a_run(store, folder):
    learn = test_clf(store, width=8)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .05)
    r = learn.save_run(folder/'hand')
    assert (r.config['recipe'], r.config['settings']['width'], len(r.history), r.complete)==('test_clf', 8, 2, True)
    assert {'train_loss','valid_loss','accuracy'} <= set(r.history) and evaluate(r, store, part='valid')['n']==90
    assert compare(r).epochs.iloc[0]==2 and predict(r, toy_jets(5, 'wqcd', seed=3)).shape==(5,)

def test_what_can_not_be_saved_as_a_run(store, folder, run):
    with pytest.raises(ConfigError, match='was not made by a recipe'): toy_learner().save_run(folder/'y')
    with pytest.raises(ConfigError, match='was not trained yet'): test_clf(store).save_run(folder/'y')
    learn = test_clf(store)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    with pytest.raises(ConfigError, match='already holds a run'): learn.save_run(run.path)
    assert not (folder/'y').exists()

def test_a_learner_of_a_run_takes_its_own_jets(run, store):
    learn = run.learner(store)
    assert len(learn.dls.train.dataset)==600 and len(learn.dls.valid.idx)==90
    with pytest.raises(DataError, match='not trained on this store'): run.learner(toy_jets(600, 'wqcd', seed=1))

# --- a folder from somebody else

@pytest.mark.parametrize('change,why', [
    (dict(recipe='os.system'), 'No such recipe'), (dict(recipe='test_ae'), 'has no such setting'), (dict(settings=dict(width='import os')), 'Expected: int'),
    (dict(settings=dict(width=24, func='eval')), 'no such setting'), (dict(settings=None), 'no settings'), (dict(settings=dict(width=10**12)), 'out of range'),
    (dict(settings=dict(width=8)), 'of another model'), (dict(store=None), 'does not describe'), (dict(format='pickle'), 'not a run'), (dict(version=99), 'another version')])
def test_an_altered_config_is_an_error_and_no_more(change, why, run, tmp_path):
    shutil.copy(run.path/'model.safetensors', tmp_path)
    (tmp_path/'config.json').write_text(json.dumps({**run.config, **change}))
    with pytest.raises((ConfigError, DataError), match=why): Run(tmp_path).learner()

# --- evaluation

def test_evaluation_keeps_what_it_found(run, store):
    m = evaluate(run, store)
    assert m['n']==90 and m['auc_lo'] <= m['auc'] <= m['auc_hi']
    assert {k:v for k,v in run.metrics['test'].items() if k!='source'}==m # infinite rejections included
    saved = run.scores()
    assert (saved['jet']==split(store).test).all() and (saved['y']==store.columns['signal'][split(store).test]).all()
    assert roc_auc_score(saved['y'], saved['score'])==pytest.approx(m['auc'], abs=1e-9)
    assert (predict(run, store, split(store).test)==saved['score']).all()

def test_readings_of_the_test_part_are_counted(run, store, folder):
    m = evaluate(run, store)
    with warnings.catch_warnings(): # the same weights: the same figures, and no second reading
        warnings.simplefilter('error')
        assert evaluate(run, store)==m
    assert len(run.metrics['test_reads'])==1
    other = train('test_clf', store, folder/'other', **{**ARGS, 'seed':4})
    shutil.copytree(run.path, folder/'swapped')
    shutil.copy(other.path/'model.safetensors', folder/'swapped')
    with pytest.warns(UserWarning, match='reading 2 of the test part'): evaluate(folder/'swapped', store)
    assert len(Run(folder/'swapped').metrics['test_reads'])==2

def test_jets_that_do_not_fit_are_refused(run, store):
    with pytest.raises(DataError, match='not trained on this store'): evaluate(run, toy_jets(50, 'wqcd'))
    with pytest.raises(DataError, match='trained on jets of this store'): evaluate(run, store, part='all')
    with pytest.raises(ConfigError, match='No such part'): evaluate(run, store, part='best')
    with pytest.raises(DataError, match='No scores-valid'): run.scores('valid')
    with pytest.raises(DataError, match='jetbook predict RUN STORE'): evaluate(run, without(store, 'signal'), part='all')
    small = JetStore.from_entries({k:(o, p%400, v) for k,(o,p,v) in store.entries.items()}, 20, 20, columns=store.columns, layout='lagan')
    for f in (lambda s: predict(run, s), lambda s: evaluate(run, s, part='all')):
        with pytest.raises(DataError, match='Jets of another size than those clf was trained on'): f(small)
        with pytest.raises(DataError, match="layout='lagan'"): f(toy_jets(50, 'wqcd', seed=9)._replace(layout='array'))
        with pytest.raises(DataError, match='No channel of that name'): f(toy_jets(30))
    assert evaluate(run, toy_jets(50, 'wqcd', seed=9), part='all')['n']==50

def test_errors_of_an_autoencoder(ae, store):
    m = evaluate(ae, store)
    s = ae.scores()
    assert m['n']==len(s['mse'])==90 and m['mse']==pytest.approx(s['mse'].mean(), rel=1e-5)
    assert np.std((s['pt_in']-s['pt_out'])/s['pt_in'])*2==pytest.approx(m['pt_2sigma'], rel=1e-3)
    assert (predict(ae, store, split(store).test, bs=90)==s['mse']).all()

# --- prediction

def test_predict_needs_no_labels_and_any_batch(run, ae, store):
    bare = without(store, 'signal')
    assert predict(ae, bare, [3,1,2], bs=1)[1]==predict(ae, bare, [1], bs=1)[0]
    assert (predict(run, bare, bs=8)==predict(run, bare._replace(columns={}), bs=8)).all() # blocks of 128 jets
    assert predict(run, bare, []).shape==(0,) and predict(run, bare).dtype==np.float32 and predict(run, bare, bs=64).shape==(600,)

def test_predict_warns_of_jets_it_was_trained_on(run, store, folder):
    other = train('test_clf', store, folder/'fresh', **{**ARGS, 'seed':5})
    with pytest.warns(UserWarning) as w: predict(other, store)
    assert [str(o.message) for o in w]==['fresh was trained on 420 of these 600 jets: their scores are better than those of new jets']
    assert len(Run(folder/'fresh').metrics['test_reads'])==1
    quiet = train('test_clf', store, folder/'quiet', **{**ARGS, 'seed':6})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        predict(quiet, store, split(store).valid)
    assert set(Run(folder/'quiet').metrics)=={'fit'}

def fits(s, **kw):
    run = NS(name='net', config=dict(settings={}, store={**fingerprint(toy_jets(9)), **kw}))
    return runs._fitting(run, s, NS(dls=NS(train=NS(spec=NS(nodes='native')))))

def test_jets_of_a_graph_network_must_carry_what_it_was_given():
    jets = toy_jets(9)
    assert fits(jets.select(channels=['HCAL','ECAL','Tracks'])).channels==jets.channels # whatever order the file has
    assert list(fits(jets, columns=['pt','y']).columns)==['y','pt']
    with pytest.raises(DataError, match='Another granularity'): fits(jets, upsample=dict(Tracks=1, ECAL=1, HCAL=1))
    with pytest.raises(DataError, match='was trained with the pt of its jets. Found: y, m0. Expected: pt or jet_pt'): fits(without(jets, 'pt'))
    with pytest.raises(DataError, match='Pixels of another width'): fits(jets, layout='x')

# --- comparison

def test_a_table_of_runs(run, store, folder):
    evaluate(run, store)
    t = compare(run)
    assert t.auc.tolist()==[run.metrics['test']['auc']] and t.train_jets.tolist()==[420] and t.settings.tolist()==['width=24']
    with pytest.raises(ConfigError, match='No runs'): compare()
    other = train('test_clf', toy_jets(600, 'wqcd', seed=1), folder/'elsewhere', **ARGS)
    with pytest.warns(UserWarning, match='not scored on the same jets'): compare(run, other)

def test_runs_without_scores_are_compared_by_their_losses(ae):
    shutil.rmtree(ae.path/'none', ignore_errors=True)
    assert compare_plot(ae, part='valid').get_ylabel()=='loss'

def test_score_takes_what_classifiers_give():
    out = torch.randn(5, 2)
    assert torch.allclose(score(out), score((out[:,1]-out[:,0], 'more')), atol=1e-6)
