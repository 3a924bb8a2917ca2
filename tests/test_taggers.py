"Comparisons of taggers: nothing trained or read twice, intervals that agree with others, and what is not comparable"
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from sklearn.metrics import roc_auc_score

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.metrics import Estimate, bootstrap_auc
from jetbook.taggers.compare import (auc_gain, baselines, calibration_error, compare_recipes, energy_gradient, ensemble_scores, occlusion, plot_learning, plot_roc, ring_worth, show_cells,
    size_curve, tagger_scores, tagger_table)
from jetbook.taggers.sets import ParticleFlow, cell_dls, cell_scale
from jetbook.train.recipes import recipe
from jetbook.train.runs import Run
from jetbook.train.training import toy_learner

@recipe('two_sizes', epochs=3, lr_max=.02)
def two_sizes(store, split=None, *, width:int=4): return toy_learner(store, split, width=width)

TWO = {'two_sizes':{}, 'wide':dict(recipe='two_sizes', width=32)}

@pytest.fixture(scope='module')
def toys(): return toy_jets(1200, 'wqcd')

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('toys')

@pytest.fixture(scope='module')
def runs(toys, folder): return compare_recipes(toys, TWO, folder, seeds=(0,1))

@pytest.fixture(scope='module')
def scores(runs): return tagger_scores(runs)

def test_nothing_is_trained_or_read_twice(runs, toys, folder):
    before = [(r.path/'metrics.json').read_bytes() for r in runs]
    assert [(r.path/'metrics.json').read_bytes() for r in compare_recipes(toys, TWO, folder, seeds=(0,1))]==before
    assert [len(r.metrics['test_reads']) for r in runs]==[1]*4 and runs[1].config['settings']['width']==32

def test_all_recipes_are_known_before_hours_are_spent(toys, tmp_path):
    with pytest.raises(ConfigError, match='No such recipe'): compare_recipes(toys, ['two_sizes','nonesuch'], tmp_path/'none')
    assert not (tmp_path/'none').exists()

def test_baselines_learn_from_the_train_part_alone():
    store = sample('qg').select(np.arange(2000))
    sp = split(store, .2, .2)
    base = baselines(store, sp, 'valid')
    b, = base['multiplicity']
    assert roc_auc_score(b['y'], b['score']) > .6 and 0 <= b['score'].min() and b['score'].max() <= 1
    assert (baselines(store, sp, 'valid')['boosted tree'][0]['score']==base['boosted tree'][0]['score']).all()
    shuffled = store.select()
    shuffled.columns = {**store.columns, 'y':np.random.default_rng(0).permutation(store.columns['y'])}
    null = baselines(shuffled, sp, 'valid')['boosted tree'][0]
    assert abs(roc_auc_score(null['y'], null['score'])-.5) < .08

def test_ensembles_of_what_is_not_alike_are_refused(scores):
    assert [o['seed'] for o in scores['wide']]==[0,1]
    both = ensemble_scores(scores, ['two_sizes','wide'])
    assert both[0]['parameters']==sum(scores[k][0]['parameters'] for k in ('two_sizes','wide'))
    with pytest.raises(ConfigError, match='No such tagger'): ensemble_scores(scores, ['narrow'])
    cut = [{k:v[:-1] if k in ('jet','y','score') else v for k,v in o.items()} for o in scores['wide']]
    with pytest.raises(DataError, match='other jets'): ensemble_scores({**scores, 'cut':cut}, ['wide','cut'])
    late = [dict(o, seed=o['seed']+1) for o in scores['wide']]
    with pytest.raises(DataError, match='other seeds'): ensemble_scores({**scores, 'late':late}, ['wide','late'])

def test_the_table_agrees_with_scikit_learn_and_the_bootstrap(scores):
    table = tagger_table(scores)
    aucs = [roc_auc_score(o['y'], o['score']) for o in scores['wide']]
    assert table.auc['wide']==pytest.approx(np.mean(aucs), abs=1e-9) and table.spread['wide']==pytest.approx(np.std(aucs, ddof=1), abs=1e-9)
    one = dict(scores['wide'][0], score=np.round(scores['wide'][0]['score'], 1)) # many ties
    e,t = bootstrap_auc(one['y'], one['score'], n_boot=1000),tagger_table({'a':[one]}, n_boot=1000).loc['a']
    assert t.auc==pytest.approx(e.value, abs=1e-9) and (t.lo, t.hi)==pytest.approx((e.lo, e.hi), abs=.006)

def test_a_gain_over_itself_is_none(scores):
    assert auc_gain(scores['wide'], scores['wide'])==Estimate(0., 0., 0.)
    g = auc_gain(scores['wide'], scores['two_sizes'])
    assert g.lo <= g.value <= g.hi

def test_pictures_say_what_they_show(scores, runs):
    legend = [t.get_text().split(',')[0] for t in plot_roc(scores, highlight=['wide']).get_legend().get_texts()]
    assert legend==['wide','the others','guessing']
    ax = plot_learning(runs, 'epoch')
    assert ax.lines[1].get_ydata()[-1]==pytest.approx(np.mean([r.history.auc.iloc[-1] for r in runs if 'wide' in r.name]), abs=1e-9)
    plt.close('all')

def test_calibration_errors():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = rng.random(20_000) < p
    assert calibration_error(y, p) < .02 and calibration_error(y, np.full(20_000, .5)) < .02 and calibration_error(y, 1-p) > .4

def test_sizes_are_nested_and_share_the_test_part(toys, tmp_path):
    curve = size_curve(toys, ['two_sizes'], tmp_path, (100,600), (0,1), full=600, test=.3)
    a,b = (Run(tmp_path/f'{n}'/'two_sizes-1').split(toys) for n in (100,600))
    assert set(a.train) <= set(b.train) and (a.test==b.test).all()
    assert (curve[100]['two_sizes'][0]['jet']==curve[600]['boosted tree'][1]['jet']).all()

def test_what_a_cell_is_worth_is_the_change_without_it():
    qg = sample('qg').select(np.arange(600))
    dls = cell_dls(qg, split(qg))
    x,mask,u,_ = (o[:32] for o in dls.one_batch())
    net = ParticleFlow(cell_scale(dls.train)).eval()
    odds = lambda *a: (lambda o: o[:,1]-o[:,0])(net(*a))
    worth = occlusion(net, x, mask, u)
    m = mask[:1].clone()
    m[0,3] = False
    assert torch.allclose(worth[0,3], (odds(x[:1], mask[:1], u[:1])-odds(x[:1], m, u[:1]))[0], atol=1e-4)
    assert occlusion(net, x, mask, u, torch.zeros_like(mask, dtype=torch.long)).shape==(32, 1)
    w = ring_worth(net, x, mask, u)
    g = torch.where(mask & (x[:,:,4]==1) & (x[:,:,:2].norm(dim=2)<.05), 0, 1)
    assert w.shape==(32,3,8) and torch.allclose(occlusion(net, x, mask, u, g)[:,0], w[:,0,0], atol=1e-4)
    slope = energy_gradient(net, x, mask, u)
    up = x.clone()
    up[:,3,2:4] += .01
    assert torch.allclose(odds(up, mask, u)-odds(x, mask, u), .01*slope[:,3], atol=.005)
    assert len(show_cells(x[:2], mask[:2], slope[:2], label='log odds by log energy'))==2
    plt.close('all')
