"Graph networks: sums over neighbours, convolutions against PyG's, poolings, and the recipes' edge cases"
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastcore.test import test_eq as eq
from torch import nn
from torch_geometric.nn import ChebConv, GATConv, GCNConv, GINConv, SAGEConv

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.graphs.batches import GraphSpec, graphs
from jetbook.taggers.contrastive import (HardNegativeLoss, NeighbourNet, TwoPhases, augment, gat_contrastive, gat_pairs, gcn_contrastive,
    gcn_pairs, gin_contrastive, gin_pairs, sage_contrastive, sage_pairs)
from jetbook.taggers.gnn import GraphNet, Links, POOLS, aggregate, convolve, gat, gin_conv, pieces, pooling, sage, sage_r2

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='module')
def qg(): return sample('qg').select(range(300))

R4 = GraphSpec(nodes='pixel', features=('values',), edges='knn', k=8, loop=True)
NATIVE = GraphSpec(features=('centred','log','log_share','channel'), edges='knn', k=8, loop=True)

@pytest.fixture(scope='module')
def odd():
    "A random graph with nodes of no, one and many neighbours"
    rng = np.random.RandomState(0)
    torch.manual_seed(0)
    ei = torch.from_numpy(np.stack([rng.randint(0, 50, 300), np.minimum(rng.randint(0, 60, 300), 39)]))
    return SimpleNamespace(x=torch.zeros(50,1), edge_index=ei, edge_weight=torch.rand(300), batch=torch.zeros(50, dtype=torch.long), ptr=torch.tensor([0,50]))

def near(a, b, eps):
    a,b = (torch.as_tensor(o).detach() for o in (a,b))
    eq(a.shape, b.shape)
    assert (a-b).abs().max() <= eps

# Sums over neighbours

def test_weights_of_edges_in_the_order_given(odd):
    links,x = Links(odd.edge_index, 50, odd.edge_weight),torch.randn(50,7)
    dense = torch.zeros(50,50).index_put((odd.edge_index[1],odd.edge_index[0]), odd.edge_weight, accumulate=True)
    near(aggregate(x, links), dense@x, 1e-4)
    near(aggregate(x.T.contiguous().T, links), dense@x, 1e-4) # any memory layout

def test_a_graph_without_edges():
    none = Links(torch.empty(2,0, dtype=torch.long), 4)
    x = torch.randn(4,2, requires_grad=True)
    out = aggregate(x, none)
    eq(out, torch.zeros(4,2))
    out.sum().backward()
    eq(x.grad, torch.zeros(4,2))

def test_edges_of_nodes_that_are_not_there_are_refused():
    for ei in ([[0],[4]], [[-1],[0]]):
        with pytest.raises(DataError, match='do not exist'): Links(torch.tensor(ei), 4)

# Convolutions

def difference(conv, g, width):
    "Largest difference of outputs and gradients from PyG's, relative to the largest of them"
    res,x0 = [],torch.randn(len(g.x), width)
    for plain in (False,True):
        x = x0.clone().requires_grad_()
        conv.zero_grad()
        out = convolve(conv, x, pieces(g, None)[0], plain)
        (out.sin()*torch.arange(out.shape[1])).sum().backward()
        res.append([out.detach(), x.grad, *(q.grad.clone() for q in conv.parameters())])
    return max(((a-b).abs().max()/b.abs().max()).item() for a,b in zip(*res))

@pytest.mark.parametrize('make', [
    lambda: SAGEConv(8, 8), lambda: SAGEConv(4, 8, aggr='max'), lambda: SAGEConv(4, 8, normalize=True), lambda: SAGEConv(4, 8, bias=False), lambda: SAGEConv(8, 4, bias=False),
    lambda: GATConv(8, 8), lambda: GATConv(4, 8, heads=2), lambda: GATConv(8, 4, bias=False, add_self_loops=False), lambda: GINConv(nn.Linear(8, 8), train_eps=True),
    lambda: GCNConv(8, 8), lambda: GCNConv(4, 8, normalize=False), lambda: GCNConv(4, 8, bias=False, improved=True), lambda: GCNConv(8, 4, bias=False),
    lambda: ChebConv(8, 8, K=3), lambda: ChebConv(4, 8, K=1), lambda: ChebConv(4, 4, K=4, bias=False)])
def test_convolutions_are_pygs(make, odd):
    torch.manual_seed(0)
    conv = make()
    width = conv.in_channels if hasattr(conv, 'in_channels') else 8
    assert difference(conv, odd, width) < 2e-4

def test_pieces_are_whole_jets(qg):
    g = graphs(qg, range(64), R4)
    ps = pieces(g, 2000)
    assert len(ps) > 5
    for p in ps:
        eq((len(p.ptr)-1, int(p.ptr[-1])), (p.jets.stop-p.jets.start, len(p.x)))
        assert p.edge_index.max() < len(p.x)
    eq((len(pieces(g, None)), len(pieces(g, 1))), (1, 64))

@pytest.mark.parametrize('name', POOLS)
def test_poolings_jet_by_jet(name, qg):
    p = pieces(graphs(qg, range(64), R4))[0]
    pool = pooling(name, 3)
    got = pool(p.x, ptr=p.ptr, dim_size=len(p.ptr)-1)
    for b in (0,5):
        nodes = p.x[p.ptr[b]:p.ptr[b+1]]
        want = dict(mean=lambda: nodes.mean(0), max=lambda: nodes.max(0).values, sum=lambda: nodes.sum(0), attention=lambda: (pool.gate_nn(nodes).softmax(0)*nodes).sum(0))[name]()
        near(got[b], want, 1e-3)

def test_gradients_of_a_network_are_pygs(qg):
    g = graphs(qg, range(64), R4)
    net = GraphNet([SAGEConv(3, 16), SAGEConv(16, 8)], nn.Linear(8, 2), 8)
    grads = []
    for net.plain in (False,True):
        net.zero_grad()
        net(g).square().sum().backward()
        grads.append([q.grad.clone() for q in net.parameters()])
    for u,v in zip(*grads): assert (u-v).abs().max() < 1e-4*v.abs().max()

# Recipes

def test_settings_of_recipes(qg):
    for pool in POOLS:
        learn = sage(qg, pool=pool, hidden=8)
        eq(learn.model(learn.dls.one_batch()[0]).shape[1], 2)
    eq(sage(qg, standardise=False, resize=None, threshold=.01, k=4).dls.train.spec.normalise, None)
    eq(len(gin_conv(3, 4).nn), 3)

def test_gat_is_pygs(qg):
    models = []
    for plain in (False,True):
        torch.manual_seed(0)
        learn = gat(qg, hidden=8, plain=plain)
        models.append(learn.model)
    xb,_ = learn.dls.one_batch()
    near(models[0](xb), models[1](xb), 1e-4)

def test_dark_jets_go_through_r2s_network(qg):
    dark = toy_jets(40)
    dark.entries = {k: (o*0,p[:0],v[:0]) for k,(o,p,v) in dark.entries.items()}
    b = graphs(dark, range(3), GraphSpec(nodes='pixel', rule='sum', threshold=.01, features=('unit','values'), edges='knn'))
    eq(len(b.x), 3) # dummy nodes
    eq(sage_r2(qg).model(b).shape, (3,2))

# Contrastive

def test_views_of_jets(qg):
    g = graphs(qg, range(128), NATIVE)
    a = augment(g, 0, drop=.5)
    assert .4 < len(a.x)/len(g.x) < .6 and a.edge_index.max() < len(a.x)
    eq(a.batch, torch.repeat_interleave(torch.arange(128), a.ptr.diff()))
    eq(a.batch[a.edge_index[0]], a.batch[a.edge_index[1]])
    eq(augment(g, None, drop=0.).x, g.x)
    eq(augment(g, 0, drop=0., rotate=False, flip=False).x.shape, g.x.shape)
    n = len(g.x)
    augment(g, None, drop=1.)
    eq(len(g.x), n) # the batch itself is not touched
    b = augment(g, 0, drop=0.)
    near((b.x[:,:2]**2).sum(1), (g.x[:,:2]**2).sum(1), 1e-4) # distances to the centre stay

def test_phases_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match='pairs, supcon, ntxent'): TwoPhases('triplet')
    with pytest.raises(ConfigError, match='0 to 1'): TwoPhases(share=2.)

@pytest.mark.parametrize('recipe', [gcn_pairs, gat_pairs, sage_pairs, gin_pairs])
def test_recipes_of_pairs_train(recipe, qg):
    learn = recipe(qg, split(qg), hidden=16, bs=64)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert np.isfinite(learn.recorder.values[-1][:2]).all() and not learn.model.contrast
    eq([tuple(p.shape) for p in learn.model.point.parameters()], [(8,3),(8,)])

def test_two_views_of_half_a_batch(qg):
    learn = sage_pairs(qg, split(qg), method='ntxent', nodes='native', hidden=16, bs=64)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert np.isfinite(learn.recorder.values[-1][:2]).all()

# R5

def test_hard_negative_loss_as_a_loop():
    torch.manual_seed(1)
    z,y = nn.functional.normalize(torch.randn(9,4)),torch.randint(0, 2, (9,))
    total = 0.
    for i in range(9):
        logits = [float(z[i]@z[j])/.1 for j in range(9)]
        norm = np.log(np.sum(np.exp(logits)))
        w = [1. if y[i]==y[j] else .5 if logits[j]>.5 else 0. for j in range(9)]
        total -= sum(a*(l-norm) for a,l in zip(w,logits))/sum(w)
    assert float(HardNegativeLoss()(z, y))==pytest.approx(total/9, rel=1e-5)

def test_votes_are_those_of_scikit_learns_neighbours(qg):
    from sklearn.neighbors import KNeighborsClassifier
    torch.manual_seed(2)
    net = sage_contrastive(qg, split(qg), hidden=16).model.eval()
    eq(net.vote(torch.randn(3,8)), torch.zeros(3,2)) # none known yet
    net.known.points,net.known.labels = torch.randn(200,8),torch.randint(0, 2, (200,))
    h = torch.randn(40,8)
    near(net.vote(h).softmax(1), KNeighborsClassifier(5).fit(net.known.points, net.known.labels).predict_proba(h), 1e-6)
    net.known.labels = torch.full((200,), 7)
    with pytest.raises(DataError, match='not of this network'): net.vote(h)

@pytest.mark.parametrize('recipe', [gcn_contrastive, gat_contrastive, sage_contrastive, gin_contrastive])
def test_contrastive_recipes_train(recipe, qg):
    learn = recipe(qg, split(qg), hidden=16)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    eq(learn.model.known.points.shape, (len(learn.dls.train.idx),8))
    assert np.isfinite(learn.recorder.values[-1]).all() and 0<=learn.recorder.values[-1][2]<=1
    eq(learn.get_preds(act=lambda o: o)[0].exp().sum(1).round(decimals=4), torch.ones(len(learn.dls.valid.idx)))

def test_r5_resumes_and_carries_its_neighbours(qg, tmp_path):
    from fastai.callback.core import Callback
    from jetbook.train.runs import Run, predict, train
    class Kill(Callback):
        def after_train(self):
            if self.epoch==1: raise RuntimeError('killed')
    kw = dict(epochs=2, hidden=16, progress=False)
    whole = train('gcn_contrastive', qg, tmp_path/'whole', **kw)
    with pytest.raises(RuntimeError): train('gcn_contrastive', qg, tmp_path/'killed', cbs=[Kill()], **kw)
    killed = train('gcn_contrastive', qg, tmp_path/'killed', **kw)
    eq(predict(killed, qg.select(range(20))), predict(whole, qg.select(range(20))))

def test_runs_of_the_system_that_had_the_name_before_are_refused(qg, tmp_path):
    import json
    from jetbook.train.runs import Run, predict, train
    kw = dict(epochs=1, hidden=8, bs=64, progress=False)
    run = train('sage', qg, tmp_path/'sage', **kw)
    eq(run.config['recipe_version'], 2)
    old = {k:v for k,v in run.config.items() if k!='recipe_version'}
    (run.path/'config.json').write_text(json.dumps(old))
    for f in (lambda: predict(Run(run.path), qg), lambda: train('sage', qg, run.path, **kw)):
        with pytest.raises(ConfigError, match='another sage'): f()

@pytest.mark.parametrize('conv', [SAGEConv, GCNConv, GATConv, gin_conv])
def test_r4_sends_messages_to_neighbours_as_its_author_did(conv, qg):
    "Row = node, column = neighbour, in PyG's own layers"
    torch.manual_seed(3)
    g = graphs(qg, range(4), R4)
    net = GraphNet([conv(3,8), conv(8,4)], nn.Linear(4,2), 4, flow='target_to_source').eval()
    his = torch.stack([g.edge_index[1], g.edge_index[0]]) # ours: neighbour, node
    x = g.x
    for c in net.convs: x = c(x, his).relu()
    near(net.embed(g), torch.stack([o.mean(0) for o in x.split(g.ptr.diff().tolist())]), 1e-5)
