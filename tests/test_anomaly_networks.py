"Reconstruction, latent spaces, the normalised autoencoder, surrogates and CWoLa: known values, bundles, kills and refusals"
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from sklearn.metrics import roc_auc_score
from torch import nn

from jetbook.ae.vae import latent_kl, latents
from jetbook.anomaly.cwola import CWoLa, mix
from jetbook.anomaly.methods import Towers, anomaly_method, anomaly_score, load_method, save_method, towers, unlabelled
from jetbook.anomaly.nae import NAE, Normalise, NormalisedAE, SmoothAxes, SphereAE
from jetbook.anomaly.reconstruction import (DenseVAE, DirichletScore, DirichletVAE, ImageError, VAEScore, dense_vae, entropy, loss_table, matched_auc, remapped_ae, softmax_prior)
from jetbook.anomaly.surrogates import SHAPE_FEATURES, SURROGATES, Surrogates, shape_features
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import toy_jets
from jetbook.losses import KLDivergence
from jetbook.metrics import bootstrap_auc
from jetbook.train.runs import evaluate, train

@pytest.fixture(scope='module')
def wqcd(): return sample('wqcd').select(np.arange(2000))

@pytest.fixture(scope='module')
def y(wqcd): return wqcd.columns['signal'].astype(int)

@pytest.fixture(scope='module')
def background(wqcd, y): return wqcd.select(np.flatnonzero(y==0)[:600])

@pytest.fixture(scope='module')
def toys(): return towers(toy_jets(300, 'wqcd'))

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('anomaly')

def images(store, n): return towers(store).images(range(n))

# --- figures of a search

def test_a_table_of_losses_turned_around():
    d = pd.DataFrame(dict(signal=[0]*50+[1]*50, mse=np.r_[np.full(50, 4.), np.full(50, 2.)]))
    t = loss_table({'a':d}).loc['a']
    assert t['background/anomaly']=='2 [2, 2]' and t['AUC']=='0 [0, 0]'
    assert loss_table({'a':d}, background=1).loc['a','AUC']=='1 [1, 1]'

def test_an_auc_of_matched_jets():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    lit = rng.normal(size=2000)-y
    noisy = lit+.2*rng.normal(size=2000)
    a = matched_auc(y, noisy, lit)
    assert a.lo < .5 < a.hi and bootstrap_auc(y, noisy, n_boot=50).hi < .35
    assert matched_auc(y, noisy, rng.normal(size=2000), bins=2).value==pytest.approx(roc_auc_score(y, noisy), abs=.03) # matched by noise
    assert matched_auc([0,0,1,1], [0.,1.,2.,3.], [1,2,1,2], bins=1, n_boot=2).value==1
    with pytest.raises(ValueError, match='do not overlap'): matched_auc([0,0,1,1], [0.,1.,2.,3.], [1,1,9,9], bins=2, n_boot=2)

@pytest.mark.parametrize('loss', ['mse','weighted','kernel'])
def test_errors_of_images(loss):
    a,b = torch.rand(2,5,1,25,25, generator=torch.Generator().manual_seed(0))
    e = ImageError(loss)
    assert e.each(a, b).shape==(5,) and torch.allclose(e(a, b), e.each(a, b).mean()) and e.each(a, a).max()==0
    if loss=='mse': assert torch.allclose(e(a, b), nn.MSELoss()(a, b), atol=1e-6)

def test_no_such_error():
    with pytest.raises(ValueError, match='mse, weighted, kernel'): ImageError('emd')

@pytest.mark.parametrize('name', ['ae','ae_weighted','ae_remapped','ae_kernel'])
def test_a_reconstruction_error_is_that_of_its_network(name, background, wqcd, folder):
    d = anomaly_method(name, epochs=1).fit(background, folder=folder)
    s = anomaly_score(d, wqcd, slice(0, 200))
    x = images(wqcd.select(slice(0, 200)), 200)**d.power
    with torch.no_grad(): assert np.allclose(s, ImageError(d.loss).each(d.model(x), x).numpy(), atol=1e-3, rtol=1e-3)
    assert d.run_.config['settings']['loss']==d.loss and d.run_.config['settings']['power']==d.power
    assert (anomaly_score(load_method(save_method(d, folder/name)), wqcd, slice(0, 200))==s).all()

def test_a_power_must_be_above_zero(toys):
    with pytest.raises(ValueError, match='power of remapped_ae is out of range'): remapped_ae(toys, split(toys), power=0.)

# --- latent spaces

def test_a_variational_autoencoder_draws_in_training_alone():
    x,small = torch.rand(5,1,25,25),DenseVAE(latent=3, hidden=20).eval()
    pred = small(x)
    assert torch.equal(pred[0], small.decode(small.encode(x)))
    want = -torch.distributions.Normal(pred[0], small.log_sigma.exp()).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(small.nll(pred, x), want, rtol=1e-3)
    with pytest.raises(ValueError, match='latent'): DenseVAE(latent=0)
    learn = dense_vae(towers(toy_jets(80, 'wqcd')), latent=3, hidden=20)
    assert [o.shape[1] for o in learn.model.posterior(learn.dls.one_batch()[0].cpu())]==[3,3]

def test_three_scores_of_one_training(background, wqcd, folder):
    kl,e,r = (VAEScore(u, epochs=2).fit(background, folder=folder) for u in ('kl','elbo','reconstruction'))
    assert kl.run_.path==e.run_.path==r.run_.path and kl.run_.recipe.name=='dense_vae'
    s = anomaly_score(kl, wqcd, slice(0, 200))
    assert np.allclose(s+anomaly_score(r, wqcd, slice(0, 200)), anomaly_score(e, wqcd, slice(0, 200)), rtol=1e-3)
    assert np.allclose(s, latent_kl(*latents(kl.learn, towers(wqcd.select(slice(0, 200))))).sum(1).numpy(), atol=1e-3)
    assert (anomaly_score(load_method(save_method(kl, folder/'kl')), wqcd, slice(0, 200))==s).all()

def test_the_gaussian_that_stands_for_a_dirichlet():
    def drawn(alpha):
        mean,var = softmax_prior(alpha)
        torch.manual_seed(0)
        return (mean+var.sqrt()*torch.randn(50000, len(alpha))).softmax(1)[:,0]
    m,v = softmax_prior((1.,1.))
    assert torch.equal(m, torch.zeros(2)) and torch.allclose(v, torch.full((2,), .5)) and torch.allclose(softmax_prior((2.,2.,2.))[1], torch.full((3,), 1/3))
    assert drawn((30.,10.)).mean()==pytest.approx(.75, abs=.01) and drawn((5.,)*20).mean()==pytest.approx(.05, abs=.001)
    assert drawn((5.,)*20).std()==pytest.approx((.05*.95/101)**.5, abs=.002) # the Dirichlet's own width
    assert drawn((30.,10.)).std()/(.75*.25/41)**.5==pytest.approx(.5**.5, abs=.03) # for two templates, too small by the square root of 2
    for bad in ((1.,), (1.,-1.), ((1.,2.),)):
        with pytest.raises(ValueError, match='two or more'): softmax_prior(bad)

def test_the_entropy_of_a_jet():
    one,x = torch.zeros(2,1,5,5),torch.rand(3,1,5,5)
    one[...,2,2] = 7.
    assert torch.allclose(entropy(torch.ones(2,1,5,5)), torch.tensor(np.log(25)).float()) and torch.equal(entropy(one), torch.zeros(2))
    assert torch.allclose(entropy(x), entropy(5*x), atol=1e-4) # the scale does not count

@pytest.mark.parametrize('how', ['logarithms','templates'])
def test_a_dirichlet_autoencoder_against_torch(how, background):
    x = images(background.select(slice(0, 50)), 50)
    net = DirichletVAE((1.,.5,.25), how).begin(x)
    pred = net(x)
    assert torch.allclose(net.weights(pred[1]).sum(1), torch.ones(50), atol=1e-5) and torch.allclose(pred[0].sum((1,2,3)), torch.full((50,), 100.), atol=1e-2)
    assert torch.allclose(net.posterior(3*x)[0], net.posterior(x)[0], atol=1e-3) and torch.allclose(net.divergence((x,), x), torch.zeros(50), atol=1e-4)
    p,q = ((o/o.sum((1,2,3), keepdim=True)).flatten(1) for o in (x, pred[0].detach()))
    assert torch.allclose(net.divergence(pred, x).detach(), torch.nn.functional.kl_div(q.log(), p, reduction='none').sum(1), atol=1e-3)
    z = net.prior_mean+net.prior_var.sqrt()*pred[1]
    N = torch.distributions.Normal
    own = torch.distributions.kl_divergence(N(z, (net.prior_var*pred[2].exp()).sqrt()), N(net.prior_mean, net.prior_var.sqrt())).sum(1)
    assert torch.allclose(KLDivergence('none')(*pred[1:]), own, atol=1e-3)

def test_a_mixture_of_templates_or_of_their_logarithms():
    r = torch.tensor([[.3,.7]])
    net = DirichletVAE((1.,1.), 'templates')
    t = net.templates().flatten(1)
    assert torch.allclose(net.log_shares(r).exp()[0], .3*t[0]+.7*t[1], atol=1e-5)
    net = DirichletVAE((1.,1.))
    t = net.templates().flatten(1).log()
    assert torch.allclose(net.log_shares(r)[0], (.3*t[0]+.7*t[1]).log_softmax(0), atol=1e-4)

def test_scores_of_a_dirichlet_autoencoder(background, wqcd, folder):
    s = {u:DirichletScore(u, epochs=2).fit(background, folder=folder) for u in ('weight','density','kl','cross_entropy','divergence')}
    assert len({d.run_.path for d in s.values()})==1
    v = {u:anomaly_score(d, wqcd, slice(0, 200)) for u,d in s.items()}
    assert np.allclose(v['cross_entropy']-v['divergence'], entropy(images(wqcd.select(slice(0, 200)), 200)**.5).numpy(), atol=1e-3)
    for u in s: assert (anomaly_score(load_method(save_method(s[u], folder/f'dvae-{u}')), wqcd, slice(0, 200))==v[u]).all()
    seen,edge = s['density'].seen_,s['density'].kde_.score_samples(np.array([[0.,0.],[99.,99.]]))
    assert len(seen)==600 and np.allclose(seen.sum(1), 1, atol=1e-4) and np.isfinite(edge).all() and edge[1] < edge[0]

# --- the normalised autoencoder

QUICK = dict(epochs=5, axes=6, progress=False)

def test_energies_on_the_sphere():
    u,ae = torch.randn(9, 24),SphereAE(24)
    assert torch.allclose(ae.encode(u).norm(dim=1), torch.ones(9)) and torch.allclose(ae.energy(u), (ae(u)-u).pow(2).sum(1), atol=1e-5)
    with pytest.raises(ValueError): SphereAE(24, code=1)
    with pytest.raises(ValueError, match='pretrain=0'): Normalise(pretrain=0.)

@pytest.fixture(scope='module')
def nae_run(toys, folder): return train('normalised_ae', toys, folder/'nae', **QUICK)

def test_a_normalised_autoencoder(nae_run, toys):
    m = nae_run.model()
    assert m.distance==pytest.approx(nae_run.history.distance.min(), abs=1e-6)
    assert not torch.equal(m.plain.decoder[0].weight, m.average.decoder[0].weight)
    found = evaluate(nae_run, toys, 'valid')
    assert sorted(nae_run.scores('valid'))==['energy','jet','plain_energy'] and found['energy']==pytest.approx(nae_run.scores('valid')['energy'].mean(), rel=1e-4)

@pytest.mark.parametrize('at', [0, 3])
def test_a_killed_training_ends_at_the_same_figures(at, nae_run, toys, folder):
    class Kill(Callback):
        order = 90
        def after_epoch(self):
            if self.epoch==at: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train('normalised_ae', toys, folder/f'killed{at}', cbs=[Kill()], **QUICK)
    again = train('normalised_ae', toys, folder/f'killed{at}', **QUICK)
    same = ['valid_loss','data','samples','distance','walked']
    assert (again.history[same].fillna(-1).to_numpy()==nae_run.history[same].fillna(-1).to_numpy()).all()
    assert all(torch.equal(a, b) for a,b in zip(again.model().state_dict().values(), nae_run.model().state_dict().values()))

def test_one_training_gives_two_energies(toys, folder):
    det,plain = (NormalisedAE(*u, axes=6, epochs=3).fit(toys, folder=folder) for u in ((), ('plain',)))
    s = anomaly_score(det, toys)
    assert s.shape==(300,) and (s > 0).all() and plain.run_.path==det.run_.path
    assert (anomaly_score(load_method(save_method(det, folder/'kept-nae')), toys)==s).all()
    m = plain.model
    with torch.no_grad(): assert np.allclose(anomaly_score(plain, toys), m.plain.energy(m.space(toys.images(np.arange(300)))).numpy(), atol=1e-5)

# --- surrogates

@pytest.fixture(scope='module')
def pixels(background): return Towers().transform(background.select(slice(0, 400)))

def rng(): return np.random.default_rng(0)
def lit(a): return (a > 0).sum(1)

@pytest.mark.parametrize('name', SURROGATES)
def test_a_surrogate_jet(name, pixels):
    out = SURROGATES[name](pixels, rng())
    assert out.shape==pixels.shape and np.isfinite(out).all() and (out >= 0).all() and (out!=pixels).any(1).mean() > .7
    assert (SURROGATES[name](pixels, rng())==out).all() # the generator decides
    if name in ('drop','cut','borrow'): assert (lit(out) <= lit(pixels)).all()
    if name in ('contrast','noise','exchange'): assert ((out > 0)==(pixels > 0)).all()
    if name in ('displace','widen'): assert np.allclose(out.sum(1), pixels.sum(1))
    if name=='exchange': assert (np.sort(out, 1)==np.sort(pixels, 1)).all()
    if name=='overlay': assert (lit(out) >= lit(pixels)).all()

def test_shapes_of_jets(pixels):
    f = shape_features(pixels)
    assert f.shape==(400, len(SHAPE_FEATURES)) and np.allclose(f[:,0], np.log1p(lit(pixels))) and np.allclose(f[:,3], pixels.max(1)/pixels.sum(1))
    assert np.allclose(shape_features(5*pixels), f, atol=1e-4) # the jet's scale does not matter

def test_seeds_decide_and_other_images_are_taken(toys):
    fit = lambda **k: anomaly_score(Surrogates(**k).fit(toys.select(slice(0, 200))), toys, slice(200, 300))
    assert (fit()==fit()).all() and not (fit()==fit(random_state=1)).all()
    qg = sample('qg')
    assert anomaly_score(Surrogates().fit(qg.select(slice(0, 300))), qg, slice(300, 400)).shape==(100,)

# --- CWoLa

def test_two_samples_without_a_jet_in_common(wqcd, y):
    part = split(wqcd).train
    b,m = mix(wqcd, .1, idx=part)
    assert not len(np.intersect1d(b, m)) and y[b].sum()==0 and np.isin(np.r_[b,m], part).all() and y[m].mean()==pytest.approx(.1, abs=.005) and len(b)==(y[m]==0).sum()
    assert not np.array_equal(b, mix(wqcd, .1, idx=part, seed=1)[0]) and np.array_equal(mix(wqcd, .1, idx=part)[1], m)
    assert y[mix(wqcd, .02, signal=0)[0]].mean()==1 and y[mix(wqcd, 0.)[1]].sum()==0
    with pytest.raises(ValueError, match='No such share of signal'): mix(wqcd, 1.)
    with pytest.raises(ValueError, match='Too few jets for that share'): mix(wqcd, .9, idx=part)
    with pytest.raises(ValueError, match='jets with labels'): mix(unlabelled(wqcd))

def test_no_label_has_a_part_in_it(wqcd, y, folder):
    b,m = mix(wqcd, .1)
    rest = wqcd.select(slice(0, 200))
    det = CWoLa().fit(wqcd.select(b), mixture=wqcd.select(m))
    s = anomaly_score(det, rest)
    assert ((s > 0) & (s < 1)).all() and (anomaly_score(load_method(save_method(det, folder/'cwola')), rest)==s).all()
    flip = lambda st: st._replace(columns={k:1-v if k in ('y','signal') else v for k,v in st.columns.items()})
    assert (anomaly_score(CWoLa().fit(flip(wqcd.select(b)), mixture=flip(wqcd.select(m))), flip(rest))==s).all()
    trees = CWoLa(columns=('girth','ptd'), classifier='trees', random_state=3).fit(wqcd.select(b[:300]), mixture=wqcd.select(m[:300]))
    assert (anomaly_score(load_method(save_method(trees, folder/'trees')), rest)==anomaly_score(trees, rest)).all()

def test_cwola_needs_a_mixture(wqcd):
    b,m = mix(wqcd, .1)
    with pytest.raises(ValueError, match='mixture=jets that may hold signal'): CWoLa().fit(wqcd.select(b))
    with pytest.raises(ValueError, match='Too few jets in the mixture'): CWoLa().fit(wqcd.select(b), mixture=wqcd.select(m[:5]))
    with pytest.raises(ValueError, match='quadratic or trees'): CWoLa(classifier='forest').fit(wqcd.select(b), mixture=wqcd.select(m))
    with pytest.raises(Exception, match='not fitted'): anomaly_score(CWoLa(), wqcd)
