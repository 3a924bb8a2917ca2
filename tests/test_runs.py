"Run folders that hold something else, jets that don't fit, and readings of the test part"
import inspect, json, os, shutil, tempfile, warnings
from types import SimpleNamespace as NS

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from sklearn.metrics import roc_auc_score

import jetbook.train.runs as runs
from conftest import survives, tamper
from jetbook.data.loaders import split
from jetbook.data.paths import InUse, locked, MissingFile, OutputError
from jetbook.data.store import ConfigError, DataError, JetbookError, JetStore, toy_jets
from jetbook.train.recipes import RESERVED, recipe
from jetbook.train.runs import Run, compare, compare_plot, evaluate, fingerprint, fit_weights, load_bundle, predict, save_bundle, score, train
from jetbook.train.training import Diverged, toy_learner

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

def test_weights_belong_to_their_settings(tmp_path):
    learn = toy_learner()
    a,b = (save_bundle(learn, dict(format='x', seed=i), tmp_path/str(i)) for i in (1, 2))
    (a/'config.json').write_text(json.dumps(dict(seed=1, format='x'))) # the same, laid out otherwise
    assert load_bundle(a)[0]==dict(format='x', seed=1)
    shutil.copy(b/'config.json', a)
    with pytest.raises(DataError, match='do not belong together'): load_bundle(a)

def test_a_bundle_replaces_its_like_and_nothing_else(tmp_path):
    learn = toy_learner()
    a = save_bundle(learn, dict(format='x', seed=1), tmp_path/'a')
    save_bundle(learn, dict(format='x', seed=2), a)
    assert load_bundle(a)[0]['seed']==2
    with pytest.raises(ConfigError, match='holds something else. Found: x. Expected: y'): save_bundle(learn, dict(format='y'), a)
    (a/'config.json').unlink()
    with pytest.raises(ConfigError, match='weights without a config.json'): save_bundle(learn, dict(format='x'), a)

def test_a_bundle_is_complete_or_it_has_no_weights(tmp_path, monkeypatch):
    a = save_bundle(toy_learner(), dict(seed=1), tmp_path/'a')
    with monkeypatch.context() as m:
        def power_cut(*args): raise KeyboardInterrupt
        m.setattr(runs, 'save_tensors', power_cut)
        with pytest.raises(KeyboardInterrupt): save_bundle(toy_learner(), dict(seed=2), a)
    with pytest.raises(DataError, match='No model.safetensors'): load_bundle(a)
    assert load_bundle(save_bundle(toy_learner(), dict(seed=2), a))[0]==dict(seed=2)

def test_weights_that_are_nan_are_refused(tmp_path):
    state = toy_learner().model.state_dict()
    save_bundle({k:v*float('inf') if k=='2.running_var' else v for k,v in state.items()}, {}, tmp_path/'inf') # a buffer may be infinite
    for v in ('nan', 'inf'):
        bad = {**state, '3.bias':state['3.bias'].clone().fill_(float(v))}
        if v=='nan':
            with pytest.raises(DataError, match='NaN. Found: 3.bias'): save_bundle(bad, {}, tmp_path/'bad')
        else:
            with pytest.raises(DataError, match='infinite. Found: 3.bias'): fit_weights(toy_learner(), bad)
    runs.save_tensors(tmp_path/'inf'/'model.safetensors', bad | {'3.bias':bad['3.bias']*0}, dict(config=str(runs.text_checksum({}))))
    with pytest.raises(DataError, match='NaN. Found: 3.bias'): load_bundle(tmp_path/'inf')

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

def changed(store, seed=0, n=600):
    "The same jets in another order and with another column"
    s = store.select(np.random.default_rng(seed).permutation(len(store))[:n])
    return s._replace(columns={**s.columns, 'weight':np.ones(n)})

def test_jets_are_recognised_by_their_contents(run, store):
    "Whatever their order and their columns"
    for s in (store._replace(columns={**store.columns, 'weight':np.ones(600)}), changed(store), store._replace(columns={})):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            sp = run.split(s)
        assert [len(i) for i in (sp.train, sp.valid, sp.test)]==[420, 90, 90]
        assert sorted(s.images(sp.test).sum((1,2,3)).tolist())==sorted(store.images(split(store).test).sum((1,2,3)).tolist())
    m,same = evaluate(run, changed(store)),evaluate(run, store)
    assert m['auc']==pytest.approx(same['auc'], abs=1e-9) and m['n']==same['n']

def test_missing_and_new_jets_are_said(run, store):
    with pytest.warns(UserWarning, match='not all of its jets are in this store; .* train, .* jets are missing'): sp = run.split(changed(store, 1, 300))
    assert len(sp.train)+len(sp.valid)+len(sp.test)==300
    with pytest.raises(DataError, match='was not trained on this store. Found: 30 jets, .*, toy jets: random numbers. Expected: 600 jets, '): run.split(toy_jets(30, 'wqcd', seed=8))
    test_jets = store.select(split(store).test)
    with pytest.warns(UserWarning, match='are missing'), pytest.raises(DataError, match='no jets of the valid part'): evaluate(run, test_jets, part='valid')
    with pytest.raises(DataError, match='trained on jets of this store. Found: 90 of its 90 jets'): evaluate(run, test_jets, part='all')
    with pytest.warns(UserWarning, match='clf was trained on 2.. of these 300 jets'): predict(run, changed(store, 2, 300))
    parts = run.part_of(changed(store, 3))
    assert [int((parts==k).sum()) for k in ('train','valid','test','')]==[420, 90, 90, 0]
    assert (run.part_of(toy_jets(30, 'wqcd', seed=8))=='').all()

def test_a_bundle_without_keys_knows_its_own_store(run, store, tmp_path):
    shutil.copytree(run.path, tmp_path/'r')
    (tmp_path/'r'/'jets.safetensors').unlink()
    r = Run(tmp_path/'r')
    assert r.split(store).digest==run.split(store).digest and (r.part_of(store)=='').all()
    with pytest.raises(DataError, match='not trained on this store'): r.split(changed(store))
    runs.save_tensors(r.path/'jets.safetensors', dict(key=torch.zeros(3), part=torch.zeros(2)))
    with pytest.raises(DataError, match='does not hold keys'): r.split(changed(store))
    runs.save_tensors(r.path/'jets.safetensors', dict(key=torch.zeros(3, dtype=torch.int64), part=torch.tensor([9, -5, 3], dtype=torch.int8)))
    with pytest.raises(DataError, match='does not hold keys'): r.split(changed(store))

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
    with pytest.raises(Diverged, match='^The training diverged in epoch 1. Found: loss nan'): train('test_clf', store, folder/'nan', cbs=Boom(), **ARGS)

def test_a_rate_that_was_found_is_kept(store, folder):
    found = train('test_clf', store, folder/'found', lr_max='find', **ARGS)
    assert 1e-4 < found.config['lr_max'] < 1 and found.config['lr_found']
    assert train('test_clf', store, folder/'found', lr_max='find', **ARGS).config==found.config

@pytest.mark.parametrize('rate', [1e9, 1e30, 1e38])
def test_a_training_that_diverges_says_so(rate, store, tmp_path):
    "And not scikit-learn about its scores"
    try: r = train('test_clf', store, tmp_path/'r', epochs=1, lr_max=rate, progress=False)
    except Diverged as e:
        assert 'smaller lr_max' in str(e) and isinstance(e, FloatingPointError) and not (tmp_path/'r'/'model.safetensors').exists()
    else: assert np.isfinite(r.history.valid_loss).all() and all(v.isfinite().all() for v in load_bundle(r.path)[1].values())

# --- two at once

def test_a_folder_that_is_in_use_is_refused(run, store, tmp_path):
    "Two trainings never share a folder, by `train` or by hand; a figure is not lost to another that is being written"
    learn = test_clf(store, width=8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for write in (lambda: train('test_clf', store, tmp_path/'r', **ARGS), lambda: learn.save_run(tmp_path/'r')):
        with locked(tmp_path/'r'), pytest.raises(InUse, match='another process is writing'): write()
        assert not (tmp_path/'r').exists()

def test_two_evaluations_at_once_keep_both(run, store, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    shutil.copytree(run.path, tmp_path/'r')
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda part: evaluate(tmp_path/'r', store, part=part), ('valid', 'train')))
    assert {'valid', 'train', 'fit'} <= set(Run(tmp_path/'r').metrics)

def test_the_user_s_own_files_stay(run, store, tmp_path):
    for name in ('thesis.tex', 'checkpoint/last.safetensors', '.notes.tmp', 'models/best.pth'):
        out = tmp_path/name.replace('/', '-')
        (out/name).parent.mkdir(parents=True)
        (out/name).write_text('mine')
        with pytest.raises(OutputError, match='holds files that are not of jetbook'): train('test_clf', store, out, **ARGS)
        assert (out/name).read_text()=='mine' and len(list(out.iterdir()))==1

# --- fastai's callbacks

class Killed(Callback):
    "In the epoch `at`: before the checkpoint (54), between it and what keeps the best (60), or after that (70)"
    def __init__(self, at, order): self.at,self.order = at,order
    def after_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

def best_and_stopped(store, folder, *cbs, **kw):
    return train('test_clf', store, folder, epochs=12, lr_max=.3, schedule='flat', seed=1, progress=False, cbs=[SaveModelCallback(), EarlyStoppingCallback(patience=3), *cbs], **kw)

@pytest.fixture(scope='module')
def early(store, folder): return best_and_stopped(store, folder/'early')

def test_history_metrics_and_weights_are_of_the_same_epochs(early, store, monkeypatch):
    h,fit = early.history,early.metrics['fit']
    best = h.valid_loss.idxmin()
    assert len(h)==best+4 < 12 and fit['epoch']==best and fit['valid_loss']==h.valid_loss[best] and fit['accuracy']==h.accuracy[best]
    learn = early.learner(store)
    with learn.no_bar(): assert learn.validate()[0]==pytest.approx(h.valid_loss[best], rel=1e-5)
    assert not (early.path/'checkpoint').exists() and not list(early.path.rglob('*.pth'))

@pytest.mark.parametrize('order', [54, 60, 70])
def test_early_stopping_and_the_best_epoch_survive_kills(order, early, store, tmp_path):
    best = early.metrics['fit']['epoch']
    for at in (0, best, best+1):
        with pytest.raises(KeyboardInterrupt): best_and_stopped(store, tmp_path/'r', Killed(at, order))
    again = best_and_stopped(store, tmp_path/'r')
    assert again.history.drop(columns='seconds').equals(early.history.drop(columns='seconds'))
    assert weights(again)==weights(early) and again.metrics['fit']['epoch']==best

def test_no_folder_models_is_left(early, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = train('test_clf', store, 'r', epochs=2, progress=False, cbs=SaveModelCallback(every_epoch=True))
    assert [p.name for p in tmp_path.iterdir()]==['r']
    assert sorted(p.name for p in (tmp_path/'r'/'checkpoint').iterdir())==['saved-model_0.safetensors', 'saved-model_1.safetensors'] # asked for, and kept

def test_a_best_epoch_that_was_not_kept_is_not_made_up(store, tmp_path):
    args = dict(epochs=4, lr_max=.3, seed=1, progress=False)
    with pytest.raises(KeyboardInterrupt): train('test_clf', store, tmp_path/'r', cbs=Killed(3, 54), **args)
    with pytest.raises(ConfigError, match='The weights of epoch 1 were not kept'): train('test_clf', store, tmp_path/'r', cbs=SaveModelCallback(), **args)

def test_weights_of_no_epoch_are_measured(store, tmp_path):
    class Mean(Callback):
        order = 90
        def after_fit(self):
            with torch.no_grad():
                for p in self.model.parameters(): p.mul_(.5)
    r = train('test_clf', store, tmp_path/'r', cbs=Mean(), **ARGS)
    fit = r.metrics['fit']
    learn = r.learner(store)
    with learn.no_bar(): assert fit['valid_loss']==pytest.approx(learn.validate()[0], rel=1e-5)
    assert fit['epoch'] is None and fit['valid_loss']!=r.history.valid_loss.iloc[-1]

def test_a_training_by_hand_with_the_best_epoch(store, tmp_path):
    learn = test_clf(store, width=8)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.fit(8, .5, cbs=SaveModelCallback())
    r = learn.save_run(tmp_path/'r')
    assert r.metrics['fit']['epoch']==r.history.valid_loss.idxmin() and r.metrics['fit']['valid_loss']==r.history.valid_loss.min()

# --- pictures

@pytest.mark.parametrize('broken', ['plot_losses', 'save_figure', '_draw_results'])
def test_a_picture_costs_no_training(broken, run, store, tmp_path, monkeypatch):
    def fail(*args, **kwargs): raise ValueError('no such font')
    monkeypatch.setattr(runs, broken, fail)
    with pytest.warns(UserWarning, match='could not be drawn .ValueError: no such font'): r = train('test_clf', store, tmp_path/'r', **ARGS)
    assert weights(r)==weights(run) and r.metrics['fit']['valid_loss']==run.metrics['fit']['valid_loss'] and not (r.path/'checkpoint').exists()

# --- a training by hand

def test_pictures_that_a_kill_prevented_are_drawn_later(run, store, tmp_path):
    "The checkpoint goes last: where it is left beside weights, the pictures may be missing"
    shutil.copytree(run.path, tmp_path/'twin')
    names = {p.name for p in run.path.glob('*.png')}
    for n in names: (tmp_path/'twin'/n).unlink()
    assert train('test_clf', store, tmp_path/'twin', **ARGS).complete and not list((tmp_path/'twin').glob('*.png'))
    (tmp_path/'twin'/'checkpoint').mkdir()
    (tmp_path/'twin'/'checkpoint'/'last.safetensors').write_bytes(b'of the last epoch')
    with locked(tmp_path/'twin'): train('test_clf', store, tmp_path/'twin', **ARGS)  # somebody is drawing them
    assert not list((tmp_path/'twin').glob('*.png'))
    train('test_clf', store, tmp_path/'twin', **ARGS)
    assert {p.name for p in (tmp_path/'twin').glob('*.png')}==names and not (tmp_path/'twin'/'checkpoint').exists()
    (tmp_path/'twin'/'checkpoint').mkdir()  # killed before this was removed
    train('test_clf', store, tmp_path/'twin', **ARGS)
    assert not (tmp_path/'twin'/'checkpoint').exists()

def test_scores_of_other_weights_are_refused(run, store, tmp_path):
    a,b = [train('test_clf', store, tmp_path/str(i), **{**ARGS, 'seed':i}) for i in range(2)]
    for r in (a,b): evaluate(r, store, 'valid')
    shutil.copy(b.path/'scores-valid.safetensors', a.path/'scores-valid.safetensors')
    with pytest.raises(DataError, match='scores of other weights than those of 0'): a.scores('valid')
    evaluate(a, store, 'valid')
    assert len(a.scores('valid')['score'])==90
    (b.path/'model.safetensors').unlink()
    (b.path/'model.safetensors').symlink_to('nowhere')
    with pytest.raises(MissingFile): b.scores('valid')

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
    (dict(settings=dict(width=24, func='eval')), 'no such setting'), (dict(settings=None), 'settings: None. Expected: an object'), (dict(settings=dict(width=10**12)), 'out of range'), (dict(settings=dict(width=16_000)), 'of another model'),
    (dict(settings=dict(width=8)), 'of another model'), (dict(store=None), 'store: None'), (dict(format='pickle'), 'not a run'), (dict(version=99), 'another version')])
def test_an_altered_config_is_an_error_and_no_more(change, why, run, tmp_path):
    for name in ('config.json', 'model.safetensors'): shutil.copy(run.path/name, tmp_path)
    tamper(tmp_path, **change)
    with pytest.raises((ConfigError, DataError), match=why): Run(tmp_path).learner()

def places(o, path=()):
    "Every place in a tree of dicts"
    for k,v in o.items():
        yield (*path, k)
        if isinstance(v, dict): yield from places(v, (*path, k))

def test_a_config_with_anything_anywhere_is_an_error_of_jetbook(run, store, tmp_path):
    "Each value is replaced by each of another type, with the checksum that belongs to it"
    config,tensors = run.config,load_bundle(run.path)[1]
    shutil.copytree(run.path, tmp_path/'r')
    for place in places(config):
        for value in (None, 'x', -1, 2**70, 1e300, [[]]):
            c = json.loads(json.dumps(config))
            d = c
            for k in place[:-1]: d = d[k]
            if d[place[-1]]==value: continue
            d[place[-1]] = value
            (tmp_path/'r'/'config.json').write_text(json.dumps(c))
            runs.save_tensors(tmp_path/'r'/'model.safetensors', tensors, dict(config=str(runs.text_checksum(c))))
            for use in (lambda r: r.learner(), lambda r: r.split(store), lambda r: compare(r), repr):
                try: use(Run(tmp_path/'r'))
                except JetbookError: pass

def replace(file, how):
    "Put something else in the place of a file"
    data = file.read_bytes()
    file.unlink()
    if how=='pipe': os.mkfifo(file)
    elif how=='zero': file.symlink_to('/dev/zero')
    elif how=='folder': file.mkdir()
    elif how=='cut': file.write_bytes(data[:len(data)//2])
    elif how=='large':
        with open(file, 'wb') as f: f.truncate(2**33)
    else: file.write_bytes(dict(empty=b'', latin=b'epoch,\xe9t\xe9\n0,1\n', random=np.random.default_rng(0).bytes(500), null=bytes(300), array=b'[1]', other=b'a,b\n1,2\n', ragged=b'epoch,a\n0,1\n1,2,3,4\n')[how])

HOW = ['pipe', 'zero', 'folder', 'cut', 'large', 'empty', 'latin', 'random', 'null', 'array', 'other', 'ragged']

@pytest.mark.skipif(os.name=='nt', reason='pipes')
@pytest.mark.parametrize('name', ['config.json', 'history.csv', 'metrics.json', 'model.safetensors', 'scores-test.safetensors'])
@pytest.mark.parametrize('how', HOW)
def test_run_files_that_are_something_else(name, how, run, store, tmp_path):
    evaluate(run, store)
    shutil.copytree(run.path, tmp_path/'r')
    replace(tmp_path/'r'/name, how)
    uses = dict(history=lambda r: r.history, metrics=lambda r: r.metrics, model=lambda r: r.learner(), scores=lambda r: r.scores())
    with pytest.raises(JetbookError) as e: uses.get(name[:name.index('.')].split('-')[0], repr)(Run(tmp_path/'r'))
    assert name in str(e.value) and (e.value.found or e.value.do)
    if name=='history.csv': assert 'history cannot be read' in repr(Run(tmp_path/'r'))

@pytest.mark.parametrize('change', [dict(y=None, score=None, jet=None), dict(score=torch.zeros(3)), dict(score=torch.full((90,), float('nan'))), dict(score=torch.zeros(90, 2)), dict(jet=torch.tensor(3))])
def test_scores_that_are_none(change, run, store, tmp_path):
    evaluate(run, store)
    arrays = {k:torch.as_tensor(v) for k,v in run.scores().items()}
    shutil.copytree(run.path, tmp_path/'r')
    runs.save_tensors(tmp_path/'r'/'scores-test.safetensors', {k:v for k,v in (arrays|change).items() if v is not None})
    with pytest.raises(DataError, match='does not hold scores|NaN'): Run(tmp_path/'r').scores()
    with pytest.raises(ConfigError, match='No such part'): run.scores('../../x')

@pytest.mark.parametrize('change', [dict(fit=[]), dict(test=3), dict(test_reads={}), dict(test_reads=[3])])
def test_metrics_that_are_none(change, run, tmp_path):
    shutil.copytree(run.path, tmp_path/'r')
    runs.write_json(tmp_path/'r'/'metrics.json', run.metrics|change)
    for use in (compare, lambda r: r.metrics):
        with pytest.raises(DataError, match='metrics.json is not what it should be'): use(Run(tmp_path/'r'))

STATES = [lambda s: s.pop('rows'), lambda s: s.update(rows=[3]), lambda s: s['rows'][0].pop('smooth_loss'), lambda s: s.update(model={}), lambda s: s.update(opt={}), lambda s: s['opt'].update(state=[]),
          lambda s: s.update(rng={}), lambda s: s['rng'].update(torch=torch.zeros(3)), lambda s: s['rng'].update(python=('x',)), lambda s: s.update(smooth=(1,)), lambda s: s.update(train_iter='x'),
          lambda s: s.update(losses=None), lambda s: s.update(weights=[]), lambda s: s.update(transforms=3), lambda s: s['rng'].update(numpy=())]

@pytest.fixture(scope='module')
def half(store, folder):
    with pytest.raises(KeyboardInterrupt): train('test_clf', store, folder/'half', cbs=Killed(2, 54), **ARGS)
    return folder/'half'

@pytest.mark.parametrize('i', range(len(STATES)))
def test_a_checkpoint_of_something_else(i, half, store, tmp_path):
    shutil.copytree(half, tmp_path/'r')
    file = tmp_path/'r'/'checkpoint'/'last.safetensors'
    tensors,meta = runs.load_tensors(file)
    state = runs.unflatten_tree(json.loads(meta['state']), tensors)
    STATES[i](state)
    tensors = {}
    text = json.dumps(runs.flatten_tree(state, tensors))
    runs.save_tensors(file, tensors, dict(state=text))
    with pytest.raises(DataError, match='^last.safetensors is not'): train('test_clf', store, tmp_path/'r', **ARGS)
    file.unlink()
    assert train('test_clf', store, tmp_path/'r', **ARGS).complete

@pytest.mark.parametrize('how', ['pipe', 'zero', 'folder', 'cut', 'empty', 'random'])
def test_a_checkpoint_that_is_no_file(how, half, store, tmp_path):
    shutil.copytree(half, tmp_path/'r')
    replace(tmp_path/'r'/'checkpoint'/'last.safetensors', how)
    with pytest.raises(DataError, match='last.safetensors'): train('test_clf', store, tmp_path/'r', **ARGS)

# --- a folder that can't be written

def test_a_run_that_can_not_be_written_is_read(run, store, tmp_path):
    "As another user, since root may write everywhere: evaluate and predict give their results, and say what is not kept"
    new = train('test_clf', store, tmp_path/'new', **{**ARGS, 'seed':9})
    shutil.copytree(new.path, tmp_path/'twin')
    for p in (*new.path.iterdir(), new.path): p.chmod(0o555 if p.is_dir() else 0o444)
    test = split(store).test
    def reader():
        for p in (tmp_path, *tmp_path.parents): # pytest's own folders are private
            if p.stat().st_uid==os.geteuid()==0 and str(p).startswith(tempfile.gettempdir()+'/'): p.chmod(0o755)
        if os.geteuid()==0: os.setuid(65534)
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            m,s = evaluate(new.path, store),predict(new.path, store, test)
        return m, s, [str(o.message) for o in w if 'not kept' in str(o.message)]
    (m,s,said),_ = survives(reader)
    assert m==evaluate(tmp_path/'twin', store) and (s==predict(tmp_path/'twin', store, test)).all() and len(said)==2
    assert 'new: its metrics and scores are not kept: ' in said[0] and 'may not be accessed' in said[0]
    assert not (new.path/'scores-test.safetensors').exists() and 'test' not in new.metrics
    new.path.chmod(0o755)

# --- evaluation

def test_scores_that_are_not_finite_are_an_error(run, store, tmp_path):
    state = load_bundle(run.path)[1]
    save_bundle({k:v*1e38 if k.endswith('weight') else v for k,v in state.items()}, run.config, tmp_path/'r')
    shutil.copy(run.path/'history.csv', tmp_path/'r')
    with pytest.raises(DataError, match='scores that are NaN or infinite. Found: score of'): predict(tmp_path/'r', toy_jets(20, 'wqcd', seed=4))
    with pytest.raises(DataError, match='scores that are NaN or infinite'): evaluate(tmp_path/'r', store, part='valid')
    assert not list((tmp_path/'r').glob('scores*'))

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
    save_bundle(load_bundle(other.path)[1], run.config, folder/'swapped')
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
        with pytest.raises(DataError, match='Pixels of another width in eta and phi than those clf'): f(toy_jets(50, 'wqcd', seed=9)._replace(layout='array'))
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
    run = NS(name='net', target=None, config=dict(settings={}, store={**fingerprint(toy_jets(9)), **kw}))
    return runs.fitting_store(run, s, NS(dls=NS(train=NS(spec=NS(nodes='native')))))

def test_jets_of_a_graph_network_must_carry_what_it_was_given():
    jets = toy_jets(9)
    assert fits(jets.select(channels=['HCAL','ECAL','Tracks'])).channels==jets.channels # whatever order the file has
    assert list(fits(jets, columns=['pt','y']).columns)==['y','pt']
    with pytest.raises(DataError, match='Another granularity'): fits(jets, upsample=dict(Tracks=1, ECAL=1, HCAL=1))
    with pytest.raises(DataError, match='was trained with the pt of its jets. Found: y, m0. Expected: pt or jet_pt'): fits(without(jets, 'pt'))
    with pytest.raises(DataError, match='Pixels of another width'): fits(jets, cell=.3)

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
