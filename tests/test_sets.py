"Set networks: what must not change their answer, padding, empty jets, and settings without sense"
import numpy as np, pytest, torch, torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import nn

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.observables import jet_profile
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.graphs.batches import GraphSpec, graph_dls
from jetbook.taggers.sets import (AttentionBlock, CellScale, EachCrossEntropy, Ensemble, ParticleFlow, ParticleNet, ParticleTransformer, ProfileScale, cell_dls, cell_scale,
    check_padding_gradient, check_set_network, neighbours, pair_features, particle_transformer, pool_cells, profile_dls, put_back)
from jetbook.train.runs import Run, evaluate, score, train

@pytest.fixture(scope='module')
def qg(): return sample('qg').select(np.arange(3000))

@pytest.fixture(scope='module')
def dls(qg): return cell_dls(qg, split(qg, .1, .4))

@pytest.fixture(scope='module')
def batch(dls): return dls.one_batch()

@pytest.fixture(scope='module')
def scale(dls): return cell_scale(dls.train)

@pytest.fixture(scope='module')
def toy(): return toy_jets(400)

def lone(n=64):
    s = toy_jets(n)
    s.columns.pop('pt'), s.columns.pop('m0')
    return s

def first(out): return out[0] if isinstance(out, tuple) else out

# --- cells and their scales

def test_cells_of_a_batch(qg, batch, dls):
    x,mask,u,_ = batch
    assert x.shape[2]==2+2+len(qg.channels) and u.shape==(128, 2) and x[~mask].abs().max()==0
    assert torch.allclose((x[:,:,3].exp()*mask).sum(1), torch.ones(128), atol=1e-4)
    assert cell_dls(qg, split(qg, .1, .4), bs=16, max_nodes=20).one_batch()[1].shape==(16, 20)

def test_scales_keep_shape_and_padding(batch, scale):
    x,mask,u,_ = batch
    xs,us = scale(x, mask, u)
    assert us.mean(0).abs().max() < .3 and (us.std(0)-1).abs().max() < .3 and xs[~mask].abs().max()==0
    assert torch.equal(CellScale(7)(x, mask, u)[0], x)

def test_a_turn_keeps_distances_and_mirrors_half(batch, dls, scale):
    x,mask,u,_ = batch
    xs = scale(x, mask, u)[0]
    turn = cell_scale(dls.train, turn=True)
    torch.manual_seed(0)
    a = turn.train()(x, mask, u)[0]
    assert torch.allclose(torch.cdist(a[:,:,:2], a[:,:,:2]), torch.cdist(xs[:,:,:2], xs[:,:,:2]), atol=1e-2)
    assert (a-xs)[:,:,:2].abs().max() > 1 and torch.equal(a[:,:,2:], xs[:,:,2:]) and torch.equal(turn.eval()(x, mask, u)[0], xs)
    handed = lambda z: (z[:,0,0]*z[:,1,1]-z[:,0,1]*z[:,1,0]).sign()
    assert abs((handed(a)==handed(xs)).float().mean()-.5) < .15

def test_a_scale_of_features_that_need_the_image(qg):
    "Derivatives of the image are made from all lit pixels: the scale must get them as the batches do"
    spec = GraphSpec(nodes='pixel', features=('centred','log','log_share','laplacian'), edges=None)
    dls = graph_dls(qg, split(qg, .1, .4), spec, dense=True)
    x,mask,*_ = dls.one_batch()
    s = cell_scale(dls.train)
    assert len(s.x_mean)==x.shape[2] and torch.isfinite(s.x_mean).all()

def test_jets_without_pt_and_mass(): assert torch.equal(cell_scale(cell_dls(lone(), split(lone())).train).u_std[:2], torch.full((2,), 1e-3))

def test_pooling_of_nothing_and_of_negative_numbers():
    assert torch.equal(pool_cells(torch.zeros(2,3,4), torch.zeros(2,3,dtype=torch.bool)), torch.zeros(2,12))
    assert torch.allclose(pool_cells(torch.tensor([[[-1.],[-1.],[0.]]]), torch.tensor([[True,True,False]])), torch.tensor([[-1,-1,-.02]])) # padding is not the largest
    assert pool_cells(torch.zeros(2,0,4), torch.zeros(2,0,dtype=torch.bool)).shape==(2,12)

# --- networks

def networks(scale): return dict(pfn=ParticleFlow(scale), net=ParticleNet(scale), dynamic=ParticleNet(scale, k=3, dynamic=True), many=ParticleNet(scale, widths=(8,), k=300),
    transformer=ParticleTransformer(scale), unpaired=ParticleTransformer(scale, pairs=False, layers=1), ensemble=Ensemble(*[ParticleFlow(scale, 16) for _ in range(3)]))

@pytest.mark.parametrize('name', ['pfn','net','dynamic','many','transformer','unpaired','ensemble'])
def test_a_set_network(name, scale, batch):
    "Order, longer padding and other jets change nothing; padding gets no gradient; jets without a cell are no trouble"
    x,mask,u = (o[:24] for o in batch[:3])
    net = networks(scale)[name].eval()
    if name=='transformer': nn.init.normal_(net.bias, std=.3)
    assert max(check_set_network(net, x, mask, u).values()) < 2e-5
    inside,outside = check_padding_gradient(net, x, mask, u)
    assert inside > 0 and outside==0
    none = torch.zeros_like(mask[:4])
    for m in (none, none[:,:0]):
        out = first(net(x[:4,:m.shape[1]], m, u[:4]))
        assert out.shape==(4, 2) and out.isfinite().all()
    some = mask[:4].clone()
    some[1] = False
    assert first(net(x[:4], some, u[:4])).isfinite().all()

def test_the_check_finds_a_network_that_reads_the_order(batch):
    class Bad(nn.Module):
        def forward(self, x, mask, u): return x.cumsum(1)[:,3,:2]
    assert check_set_network(Bad(), *batch[:3])['order'] > .01

def test_neighbours_are_scikit_learns(batch, scale):
    x,mask,u,_ = batch
    xs = scale(x, mask, u)[0]
    at = torch.cumsum(mask.flatten(), 0).view(mask.shape)-1
    nb = neighbours(xs[:,:,:2], mask, 8, xs[:,:,2])
    for b in range(10):
        c = xs[b,mask[b],:2].numpy()
        want = NearestNeighbors(n_neighbors=9).fit(c).kneighbors(c)[0]
        got = (nb[at[b,mask[b]]]-at[b,0]).numpy()
        assert np.allclose(np.linalg.norm(c[:,None]-c[got], axis=2), want[:,1:], atol=1e-3) and (got!=np.arange(len(c))[:,None]).all()
    deep = torch.randn(128, mask.shape[1], 6)
    c = deep[0,mask[0]].numpy()
    got = neighbours(deep, mask, 4)[at[0,mask[0]]].numpy()
    assert np.allclose(np.linalg.norm(c[:,None]-c[got], axis=2), NearestNeighbors(n_neighbors=5).fit(c).kneighbors(c)[0][:,1:], atol=1e-3)

def test_neighbours_where_there_are_few_or_ties():
    few = torch.tensor([[True,True,False,False],[True,False,False,False]])
    assert neighbours(torch.randn(2,4,2), few, 5).tolist()==[[1,0,0,0,0],[0,1,1,1,1],[2]*5]
    square = torch.tensor([[[0.,0],[0,1],[1,0],[0,-1],[-1,0]]]) # four, equally far
    assert set(neighbours(square, torch.ones(1,5,dtype=torch.bool), 2, torch.tensor([[0.,1,3,2,0]]))[0].tolist())=={2,3}

def test_features_of_pairs(batch, scale):
    x,mask,u,_ = batch
    xs = scale(x, mask, u)[0][:8] # all 128 take gigabytes
    f = pair_features(xs).view(8, 8, xs.shape[1], -1)
    assert torch.allclose(f, f.transpose(2,3), atol=1e-5) and torch.allclose(f[:,4:], f[:,:4]**2, atol=1e-5)
    assert torch.allclose(pair_features(xs*torch.tensor([-1,1,1,1,1,1,1])), f.flatten(2), atol=1e-5)
    assert torch.allclose(f[0,0,2,3], ((xs[0,2,:2]-xs[0,3,:2]).square().sum()+.01).log()/2, atol=1e-5)

def test_attention_does_not_see_who_is_not_there(batch, scale):
    net = ParticleTransformer(scale).eval()
    one = ParticleTransformer(scale, group=128).eval()
    one.load_state_dict(net.state_dict())
    assert torch.allclose(one(*batch[:3]), net(*batch[:3]), atol=1e-5) # groups change nothing
    block,z,no = AttentionBlock(8, 2),torch.randn(1,5,8),torch.zeros(1,1,1,5)
    no[...,4] = -1e9
    assert torch.allclose(block(z, no)[:,:4], block(z[:,:4], no[...,:4]), atol=1e-5)

def test_an_ensemble_averages_and_its_members_learn_apart(batch, scale):
    m = Ensemble(*[ParticleFlow(scale, 16) for _ in range(3)]).eval()
    x,mask,u,y = batch
    together,each = m(x, mask, u)
    assert torch.allclose(together.exp(), each.softmax(-1).mean(1), atol=1e-5) and torch.allclose(together.exp().sum(1), torch.ones(128), atol=1e-5)
    assert torch.allclose(EachCrossEntropy()((together, each), y), sum(F.cross_entropy(each[:,i], y) for i in range(3)), atol=1e-4)
    F.cross_entropy(each[:,0], y).backward()
    grads = [o.jet[0].weight.grad for o in m.members]
    assert grads[0].abs().max() > 0 and all(g is None or g.abs().max()==0 for g in grads[1:])

# --- trainings

@pytest.mark.parametrize('recipe,settings', [('particle_net', dict(epochs=3)), ('particle_transformer', dict(epochs=3, lr_max=3e-3, width=32)), ('ensemble', dict(epochs=2, members=['pfn','pfn','particle_net']))])
def test_a_model_comes_back_from_its_folder(recipe, settings, toy, tmp_path):
    run = train(recipe, toy, tmp_path/'run', progress=False, **settings)
    assert evaluate(run, toy, part='valid')['auc'] > .8 # toy jets differ by the number of their cells
    again = Run(tmp_path/'run').learner()
    b = again.dls.test_dl(toy, idx=split(toy).valid[:9], bs=9).one_batch()
    assert np.allclose(score(again.model.eval()(*b[:3])), run.scores('valid')['score'][:9], atol=1e-5)

@pytest.mark.parametrize('store', [lambda: sample('wqcd').select(range(600)), lone])
def test_other_jets_train_too(store, tmp_path): assert np.isfinite(train('pfn_quick', store(), tmp_path/'run', epochs=1, progress=False).history.valid_loss[0])

@pytest.mark.parametrize('recipe,settings,why', [
    ('pfn', dict(width=0), 'width of pfn is out of range'), ('pfn', dict(dropout=1.), 'dropout of pfn'), ('pfn', dict(bs=0), 'bs of pfn'),
    ('particle_net', dict(widths=[]), 'widths of particle_net is empty'), ('particle_net', dict(k=0), 'k of particle_net is out of range'), ('particle_net', dict(widths=[8,0]), r'widths\[1\]'),
    ('particle_transformer', dict(heads=3), 'do not divide its width'), ('particle_transformer', dict(max_nodes=0), 'max_nodes'),
    ('ensemble', dict(members=['gcn']), 'No such member'), ('ensemble', dict(members=[]), 'is empty'), ('fused_pfn', dict(dropout=1.), 'out of range')])
def test_settings_without_sense(recipe, settings, why, toy, tmp_path):
    with pytest.raises(ConfigError, match=why): train(recipe, toy, tmp_path/'bad', **settings)

def test_jets_without_labels_and_limits_of_cells(toy):
    bare = toy_jets(64)
    bare.columns.pop('y')
    with pytest.raises(DataError, match='no labels'): cell_dls(bare)
    assert particle_transformer(toy, split(toy), max_nodes=20).dls.one_batch()[1].shape[1]==20

# --- fusion

def test_profiles_stand_behind_pt_and_mass(qg):
    dls,profile = profile_dls(qg, split(qg)),jet_profile(qg)
    u = next(iter(dls.valid))[2]
    assert np.allclose(u[:,2:], profile.loc[dls.valid.idx[:128]], rtol=1e-3, atol=1e-3)
    assert torch.equal(u[:,0], torch.tensor(qg.columns['pt'][dls.valid.idx[:128]], dtype=torch.float32))
    other = dls.valid.new(qg.select(np.arange(100, 160)), idx=[3,1]) # another store, any order
    assert np.allclose(next(iter(other))[2][:,2:], profile.loc[[103,101]], rtol=1e-3, atol=1e-3)

def test_scales_of_a_profile_stay_finite(): assert torch.isfinite(ProfileScale(torch.ones(1,3))(torch.full((2,3), 1e9))).all()

def test_fused_networks_train_to_the_same_bytes(qg, tmp_path):
    some = qg.select(np.arange(600))
    a,b = (train('fused_pfn', some, tmp_path/k, epochs=1, progress=False) for k in 'ab')
    assert (a.path/'model.safetensors').read_bytes()==(b.path/'model.safetensors').read_bytes()
    assert abs(a.history.auc.iloc[-1]-evaluate(a, some, part='valid')['auc']) < 1e-4
    train('fused_particle_net', toy_jets(200), tmp_path/'toys', epochs=1, progress=False)

def test_cells_come_back(batch): assert torch.equal(put_back(batch[0][batch[1]], batch[1]), batch[0])

def test_cells_near_the_jet_keep_features_of_all(tmp_path):
    from jetbook.data.store import JetStore, toy_jets
    from jetbook.graphs.batches import GraphSpec, padded
    toys = toy_jets(40, 'qg')
    spec = GraphSpec(features=('centred', 'near_count'), within=.3)
    x, mask = padded(toys, range(40), spec)
    whole, of_whole = padded(toys, range(40), GraphSpec(features=('centred', 'near_count')))
    near = (whole[..., :2].norm(dim=2) < .3) & of_whole
    assert 0 < mask.sum() == near.sum() < of_whole.sum()
    assert torch.equal(x[mask], whole[near])
    tiny, some = padded(toys, range(40), GraphSpec(features=('centred',), within=1e-9))
    assert (some.sum(1) >= 1).all() # of each jet the closest cell at least
    for bad in (0, -1, float('nan')):
        with pytest.raises(ConfigError, match='No node is so close'): GraphSpec(within=bad)
