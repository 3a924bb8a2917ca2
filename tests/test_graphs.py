"Nodes, features, graphs, loaders and files of graphs: edge cases, and independent implementations"
import os
import numpy as np, pytest, torch
from fastcore.test import test_close as close, test_eq as eq
from safetensors.numpy import load_file, save_file
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.utils import is_undirected

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, JetStore, toy_jets
from jetbook.graphs.batches import _checksums, GraphCache, GraphDL, GraphSpec, JetGraphs, cache_graphs, graph_dls, graphs, make_nodes, padded, show_graph
from jetbook.graphs.nodes import NODE_FEATURES, feature_names, image_moments, native_nodes, node_features, pixel_nodes

@pytest.fixture(scope='module')
def qg(): return sample('qg').select(range(300))

@pytest.fixture(scope='module')
def toy(): return toy_jets(64)

@pytest.fixture(scope='module')
def bare(toy): return JetStore.from_entries(toy.entries, 125, 125, toy.upsample) # no columns

@pytest.fixture(scope='module')
def specs(qg):
    return {'R2': GraphSpec('pixel', .01, 'sum', features=('unit','values'), edges='knn', k=16),
            'R4': GraphSpec('pixel', resize=128, normalise=image_moments(qg, range(200), 128), features='values', edges='knn', k=8, loop=True, weights='gaussian'),
            'R7': GraphSpec('pixel', features=('unit','values','laplacian','hessian'), edges='knn+delaunay'),
            'ours': GraphSpec('native', features=('centred','log','log_share','channel'), edges='knn'),
            'more': GraphSpec(edges='radius', radius=.1, weights='gaussian', edge_attr=('distance','relative')),
            'no edges': GraphSpec()}

RICH = GraphSpec('pixel', .01, edges='knn+delaunay', k=4, undirected=True, weights='gaussian', edge_attr=('distance','weight','relative'))

def same_graph(a, b):
    eq(set(a.keys()), set(b.keys()))
    for k in a.keys(): eq(a[k], b[k])

# Nodes

def test_native_nodes_are_the_entries_in_order(qg):
    nodes,cloud = native_nodes(qg, range(100)),qg.clouds(range(100))
    eq(nodes.offsets, cloud.offsets)
    eq((nodes.value > 0).sum(0), np.bincount(cloud.channel))
    for lo,hi in zip(nodes.offsets, nodes.offsets[1:]):
        place = nodes.row[lo:hi]*125*3 + nodes.col[lo:hi]*3 + nodes.value[lo:hi].argmax(1)
        assert (np.diff(place) > 0).all()

def test_the_brightest_nodes_are_kept(qg):
    nodes,few = native_nodes(qg, range(100)),native_nodes(qg, range(100), max_nodes=20)
    for i in range(100):
        kept,all_ = (np.sort(n.value.sum(1)[n.offsets[i]:n.offsets[i+1]]) for n in (few,nodes))
        eq(kept, all_[-20:])
    eq(np.diff(pixel_nodes(qg, range(9), max_nodes=30).offsets), np.full(9, 30))

def test_threshold_on_native_nodes(qg):
    nodes = native_nodes(qg, range(100))
    eq(native_nodes(qg, range(100), threshold=.02).value, nodes.value[nodes.value.sum(1) > np.float32(.02)])

def test_a_jet_without_nodes_gets_a_dark_one_at_the_centre(qg):
    dark = native_nodes(qg, range(3), threshold=100)
    eq((dark.row, dark.col, dark.value, dark.offsets), (np.full(3, 62), np.full(3, 62), np.zeros((3,3)), np.arange(4)))
    dark = pixel_nodes(qg, range(2), threshold=100)
    eq((dark.row, dark.value), (np.full(2, 62), np.zeros((2,3))))

def test_no_jets_have_no_nodes():
    void = toy_jets(4).select([])
    eq(native_nodes(void).offsets, [0])
    eq(pixel_nodes(void).offsets, [0])

@pytest.mark.parametrize('keep,kw', [(lambda x: x.sum(1) > np.float32(.01), dict(threshold=.01, rule='sum')), (lambda x: (x > 0).any(1), {}), (lambda x: (x > np.float32(.02)).any(1), dict(threshold=.02))])
def test_pixel_nodes_are_what_nonzero_finds(qg, keep, kw):
    x = qg.images(range(60)).numpy()
    b,r,c = np.nonzero(keep(x))
    nodes = pixel_nodes(qg, range(60), **kw)
    eq(nodes.row, r); eq(nodes.col, c); eq(nodes.value, x[b,:,r,c]); eq(nodes.offsets, np.searchsorted(b, np.arange(61)))

@pytest.mark.parametrize('n', [128, 60, 125])
def test_resized_pixels_are_those_of_interpolate(qg, n):
    y = torch.nn.functional.interpolate(qg.images(range(60)).double(), (n,n), mode='bilinear').numpy()
    b,r,c = np.nonzero((y > 0).any(1))
    nodes = pixel_nodes(qg, range(60), resize=n)
    eq(nodes.row, r); eq(nodes.col, c)
    close(nodes.value, y[b,:,r,c], 1e-6)
    eq((nodes.height, nodes.width), (n,n))
    close(nodes.cell*n, qg.cell*125)

def test_normalised_pixels(qg):
    y = torch.nn.functional.interpolate(qg.images(range(60)), (128,128), mode='bilinear').numpy()
    mean,std = np.array([.001,.002,.0005], np.float32),np.array([.1,.2,.3], np.float32)
    z = np.maximum((y-mean[:,None,None])/std[:,None,None], 0)
    z = np.where(np.abs(z-.02) < 1e-6, 0, z)
    b,r,c = np.nonzero((z > .02).any(1))
    nodes = pixel_nodes(qg, range(60), .02, 'any', 128, (mean,std))
    eq(len(nodes.row), len(r))
    assert np.allclose(nodes.value, z[b,:,r,c], 1e-4, 1e-6)
    close(pixel_nodes(qg, [3], normalise=(.001,.1)).value.max(), (qg.images([3]).max().item()-.001)/.1, 1e-5)

def test_pixel_nodes_of_one_channel():
    small = toy_jets(9, 'wqcd')
    nodes = pixel_nodes(small)
    close(nodes.sum(nodes.value.sum(1)), small.images().sum((1,2,3)).numpy(), 1e-4)

def test_moments_in_chunks(qg):
    x = torch.nn.functional.interpolate(qg.images(range(60)), (128,128), mode='bilinear').numpy()
    close(image_moments(qg, range(60), 128, chunk=7), (x.mean(dtype=float), x.std(dtype=float)), 1e-8)

# Features

@pytest.mark.parametrize('make', [native_nodes, lambda s, i: pixel_nodes(s, i, .01, 'sum')])
def test_features_against_their_definitions(qg, make):
    idx = range(50)
    nodes = make(qg, idx)
    column = lambda name, **kw: node_features(nodes, (name,), **kw)
    b,v = nodes.jet,nodes.value.sum(1)
    share = v/np.bincount(b, v)[b]
    place = np.stack([(nodes.row-62)*.0174, (nodes.col-62)*.0174], 1)
    mid = np.stack([np.bincount(b, share*o)[b] for o in place.T], 1)
    close(column('share')[:,0], share, 1e-5)
    close(column('log_share')[:,0], np.log(share), 1e-4)
    close(column('log')[:,0], np.log(v), 1e-5)
    close(column('intensity')[:,0], v)
    close(column('etaphi'), place, 1e-5)
    close(column('centred'), place-mid, 1e-4)
    close(column('distance')[:,0], np.linalg.norm(place-mid, axis=1), 1e-4)
    eq(column('pixels'), np.stack([nodes.row, nodes.col], 1))
    close(column('unit'), np.stack([nodes.row, nodes.col], 1)/125)
    eq(column('values'), nodes.value)
    eq(column('channel'), nodes.value != 0)
    kernel = torch.zeros(3,1,3,3)
    kernel[0,0,:,1] = kernel[2,0,1] = torch.tensor([1.,-2,1])
    kernel[1,0,::2,::2] = torch.tensor([[.25,-.25],[-.25,.25]])
    h = torch.nn.functional.conv2d(qg.images(idx).sum(1, keepdim=True), kernel, padding=1)[b,:,nodes.row.astype(int),nodes.col.astype(int)].numpy()
    image = lambda: pixel_nodes(qg, idx)
    close(column('hessian', image=image), h, 1e-6)
    close(column('laplacian', image=image)[:,0], h[:,0]+h[:,2], 1e-6)

@pytest.mark.parametrize('name', NODE_FEATURES)
def test_features_of_a_dark_node_are_finite_and_named(qg, name):
    x = node_features(native_nodes(qg, [0], threshold=100), (name,), lambda: pixel_nodes(qg, [0]))
    assert np.isfinite(x).all()
    eq(x.shape[1], len(feature_names((name,), qg.channels)))

# Specs

@pytest.mark.parametrize('kw,text', [
    (dict(nodes='voxel'), 'native, pixel'), (dict(rule='mean'), 'any, sum'), (dict(features=('spin',)), 'etaphi'), (dict(features=()), 'need features'),
    (dict(edges='knn+ring'), 'delaunay'), (dict(edges=''), 'delaunay'), (dict(edges='knn', edge_attr='length'), 'relative'), (dict(threshold=-1), '0 or more'),
    (dict(threshold=float('nan')), '0 or more'), (dict(edges='knn', k=0), '1 to 32,768'), (dict(max_nodes=0), '1 to 65,536'), (dict(resize=64), "nodes='pixel'"),
    (dict(normalise=(0,1)), "nodes='pixel'"), (dict(nodes='pixel', normalise=(-1,1)), 'dark pixels'), (dict(nodes='pixel', normalise=(1,0)), 'dark pixels'),
    (dict(nodes='pixel', normalise=3), 'dark pixels'), (dict(nodes='pixel', resize=1000), '1 to 256'), (dict(edges='radius'), 'in eta and phi'),
    (dict(weights='gaussian'), 'need edges'), (dict(edges='knn', edge_attr='weight'), "weights='gaussian'"), (dict(weights='cosine', edges='knn'), 'gaussian')])
def test_a_spec_that_has_no_sense_is_refused(kw, text):
    with pytest.raises(ConfigError, match=text.replace('(', r'\(')): GraphSpec(**kw)

def test_a_name_alone_is_a_tuple_of_one(): eq(GraphSpec(features='values').features, ('values',))

def places(nodes): return set(zip(nodes.jet.tolist(), nodes.row.tolist(), nodes.col.tolist()))

def test_nodes_of_the_reference_systems(qg, specs):
    r2,r4,r7,own = (make_nodes(qg, range(50), specs[k]) for k in ('R2','R4','R7','ours'))
    assert places(r2) < places(r7) and r2.value.sum(1).min() > .01 # the bright pixels are some of the lit ones
    eq((r4.height, r4.width), (128,128))
    close(r4.cell*128, r7.cell*125)
    assert r4.value.min()==0 and r4.value.max(1).min() > 0
    eq(make_nodes(qg, [7,3], GraphSpec()).offsets, [0, *np.cumsum(np.diff(own.offsets)[[7,3]])])

@pytest.mark.parametrize('kind', ['native', 'pixel'])
def test_max_nodes_takes_some_of_the_nodes(qg, kind):
    few,all_ = (make_nodes(qg, range(50), GraphSpec(kind, max_nodes=m)) for m in (15,None))
    eq(few.counts, np.full(50, 15))
    assert places(few) < places(all_)

# Graphs

def test_a_batch_comes_apart_and_together(qg):
    g = graphs(qg, range(20), RICH)
    parts = g.to_data_list()
    again = Batch.from_data_list(parts)
    same_graph(g, again)
    for i,p in enumerate(parts):
        alone = graphs(qg, [i], RICH)
        for k in p.keys(): eq(p[k], alone[k])
    eq(g[3:5][1].x, parts[4].x)
    eq([o.num_nodes for o in parts], g.ptr.diff().tolist())
    assert g.validate() and is_undirected(g.edge_index) and not parts[0].has_self_loops()

def test_what_edges_and_jets_carry(qg):
    g = graphs(qg, range(20), RICH)
    d = g.pos[g.edge_index[0]]-g.pos[g.edge_index[1]]
    close(g.edge_attr[:,2:], d, 1e-6)
    close(g.edge_attr[:,0], d.norm(dim=1), 1e-5)
    eq(g.edge_attr[:,1], g.edge_weight)
    eq(g.y, torch.tensor(qg.columns['y'][:20]))
    close(g.pt, qg.columns['pt'][:20])
    close(g.m0, qg.columns['m0'][:20])
    order = np.lexsort((g.edge_index[0], (d**2).sum(1).numpy().round(6), g.edge_index[1]))
    eq(order, np.arange(len(order)))

def test_graphs_of_every_spec(qg, specs):
    for spec in specs.values():
        g = graphs(qg, range(30), spec)
        eq(g.x.dtype, torch.float32)
        eq(g.x.shape[1], len(feature_names(spec.features, qg.channels)))
        eq(g.batch, torch.repeat_interleave(torch.arange(30), g.ptr.diff()))
        if spec.edges: eq(g.batch[g.edge_index[0]], g.batch[g.edge_index[1]])

def test_the_order_of_jets_does_not_matter(qg, specs):
    perm = np.random.default_rng(0).permutation(30)
    a,b = graphs(qg, range(30), specs['R4']),graphs(qg, perm, specs['R4'])
    for i,j in enumerate(perm[:5]):
        eq(b[i].edge_index, a[int(j)].edge_index)
        eq(b[i].x, a[int(j)].x)

def test_graphs_of_empty_jets(qg):
    one = graphs(qg, [0,1], GraphSpec(threshold=100, edges='knn', weights='gaussian', edge_attr='distance'))
    eq((one.num_nodes, one.edge_index.shape, one.edge_attr.shape), (2, (2,0), (0,1)))
    eq(one[1].pos, torch.zeros(1,2))
    eq(graphs(qg, [0,1], GraphSpec(threshold=100, edges='knn', loop=True)).edge_index, torch.tensor([[0,1],[0,1]]))
    for e in ('delaunay','full','radius'): eq(graphs(qg, [0,1], GraphSpec(threshold=100, edges=e, radius=.1)).edge_index.shape, (2,0))

def test_a_radius_is_in_eta_and_phi(qg):
    r = graphs(qg, range(5), GraphSpec(edges='radius', radius=5*.0174))
    d = (r.pos[r.edge_index[0]]-r.pos[r.edge_index[1]]).norm(dim=1)/.0174
    close(d.max(), 5, 1e-3) # a node on the circle is in

def test_columns_by_all_their_names(bare):
    small = toy_jets(9, 'wqcd')
    w = graphs(small, None, GraphSpec(edges='knn'))
    close(w.pt, small.columns['jet_pt'], 1e-3)
    close(w.m0, small.columns['jet_mass'], 1e-3)
    eq(set(graphs(bare, [0]).keys()), {'x','pos','batch','ptr'})

def test_no_jets_and_jets_that_are_not_there(qg):
    eq(len(graphs(qg, []).x), 0)
    eq(padded(qg, [])[0].shape, (0,0,7))
    with pytest.raises(DataError): graphs(qg, [10**6])

def test_padded_nodes(qg, specs):
    x,mask = padded(qg, range(40), specs['ours'])
    eq(mask.sum(1), graphs(qg, range(40), specs['ours']).ptr.diff())
    assert mask.any(0).all()
    x,mask = padded(qg, range(200), GraphSpec(features='intensity'))
    close(x.sum((1,2)), qg.images(range(200)).sum((1,2,3)), 1e-3)
    eq(padded(qg, range(9), GraphSpec(max_nodes=12))[0].shape, (9,12,7))

# A PyG dataset

@pytest.mark.parametrize('spec', [RICH, GraphSpec(), GraphSpec(edges='knn', k=3)])
def test_a_dataset_holds_the_graphs(qg, spec):
    idx = [5,2,9,7]
    ds = JetGraphs(qg, idx, spec)
    eq(len(ds), 4)
    for i,j in enumerate(idx): same_graph(ds[i], graphs(qg, [j], spec)[0])
    same_graph(next(iter(DataLoader(ds, batch_size=4))), graphs(qg, idx, spec))
    same_graph(next(iter(DataLoader(ds[2:], batch_size=4))), graphs(qg, idx[2:], spec))

def test_transforms_of_a_dataset(qg):
    twice = lambda d: d.update(dict(x=2*d.x))
    spec = GraphSpec(edges='knn', k=3)
    plain,at_access,once = JetGraphs(qg, range(5), spec),JetGraphs(qg, range(5), spec, transform=twice),JetGraphs(qg, range(5), spec, pre_transform=twice)
    for i in range(5):
        eq(at_access[i].x, 2*plain[i].x)
        eq(at_access[i].x, once[i].x) # not twice, when asked twice
    few = JetGraphs(qg, range(5), spec, pre_filter=lambda d: d.y.item()==0)
    eq(len(few), int((qg.columns['y'][:5]==0).sum()))

@pytest.mark.parametrize('spec', [RICH, GraphSpec(), GraphSpec('pixel', .01, 'sum', edges='knn'), GraphSpec(threshold=100, edges='knn')])
def test_pieces_in_threads(qg, tmp_path, spec):
    "One piece in one thread, and seven in three; the last spec has jets without edges"
    want, n = graphs(qg, range(40), spec), torch.get_num_threads()
    kept = cache_graphs(qg.select(range(40)), tmp_path/'one.safetensors', spec)
    torch.set_num_threads(3)
    try:
        same_graph(graphs(qg, range(40), spec, chunk=6), want)
        again = cache_graphs(qg.select(range(40)), tmp_path/'three.safetensors', spec, chunk=6)
        assert torch.get_num_threads()==3
    finally: torch.set_num_threads(n)
    eq(set(again.arrays), set(kept.arrays))
    for k, v in kept.arrays.items(): assert np.array_equal(again.arrays[k], v)
    eq(again.meta, kept.meta)

def test_a_bar(qg, tmp_path, capsys):
    graphs(qg, range(12), chunk=5, progress=True)
    cache_graphs(qg.select(range(12)), tmp_path/'a.safetensors', chunk=5, progress=True)
    assert capsys.readouterr().err.count('12/12')==2

def test_a_dataset_of_one_jet(qg): same_graph(JetGraphs(qg, [3], RICH)[0], graphs(qg, [3], RICH)[0])

# Loaders

def test_a_loader_and_those_like_it(toy, bare):
    dl = GraphDL(toy, range(10), GraphSpec(edges='knn', k=4), bs=4)
    g,y = dl.make(np.arange(3))
    same_graph(g, graphs(toy, range(3), dl.spec))
    eq(y, torch.tensor(toy.columns['y'][:3]))
    eq(dl.settings()['spec'], dl.spec)
    eq(dl.to('cpu').device, torch.device('cpu'))
    eq(dl.new(np.arange(3)).n, 3)
    eq(dl.new(toy, idx=[5,7]).idx, [5,7])
    eq(dl.new(toy).n, 64)
    eq(dl.new(np.arange(3), dense=True).n_inp, 3)
    eq((dl.vocab, dl.n_features), (['gluon','quark'], 7))
    eq(GraphDL(toy, spec=GraphSpec(edges='knn', edge_attr=('relative','distance'))).n_edge_features, 3)
    with pytest.raises(DataError, match='no labels'): GraphDL(bare)
    with pytest.raises(DataError, match='no labels'): graph_dls(bare, split(toy))

def test_dense_batches(toy):
    flat = GraphDL(toy, range(10), dense=True, bs=4)
    eq(flat.settings()['dense'], True)
    x,mask,u,y = flat.make(np.array([5,2]))
    for a,b in zip((x,mask), padded(toy, [5,2])): eq(a, b)
    close(u, np.stack([toy.columns[k][[5,2]] for k in ('pt','m0')], 1), 1e-3)
    eq([len(p) for p,_ in flat.decode_batch((x,mask,u,y), 2)], mask.sum(1).tolist())

def test_dls_repeat_their_order(qg, specs):
    sp = split(qg, .2, .2)
    a,b = (graph_dls(qg, sp, specs['R2'], bs=32, device='cpu') for _ in range(2))
    eq((len(a.train), a.valid.n), (len(sp.train)//32, len(sp.valid)))
    for (g,y),(h,z) in zip(a.train, b.train): eq(y, z); eq(g.edge_index, h.edge_index)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_batches_on_a_gpu(qg, specs): eq(graph_dls(qg, split(qg), specs['R2'], device='cuda').one_batch()[0].x.device.type, 'cuda')

def test_pictures(qg, specs):
    import matplotlib.pyplot as plt
    eq(len(show_graph(qg, 0, specs['R2']).collections), 4) # edges, and a colour for each channel
    dls = graph_dls(qg, split(qg), specs['R2'], bs=16, device='cpu')
    b = dls.one_batch()
    eq(len(dls.train.show_results(b, b[1], max_n=7)), 7)
    with pytest.raises(ConfigError, match='no position'): graph_dls(qg, split(qg), GraphSpec(features='values'), dense=True, bs=8, device='cpu').show_batch()
    plt.close('all')

# Files of graphs

def test_kept_graphs_are_those_that_are_made(toy, specs, tmp_path):
    idx = np.random.default_rng(0).permutation(64)[:20]
    sp = split(toy)
    for name,spec in specs.items():
        path = tmp_path/f'{name}.safetensors'
        c = cache_graphs(toy, path, spec, chunk=10)
        g = graphs(toy, idx, spec)
        h = c.graphs(idx, {k: g[k] for k in ('y','pt','m0')})
        same_graph(g, h)
        for p,q in zip(g.to_data_list(), h.to_data_list()): same_graph(p, q)
        for p,q in zip(padded(toy, idx, spec), c.padded(idx)): eq(p, q)
        for dense in (False, True):
            a,b = (graph_dls(toy, sp, spec, dense=dense, bs=8, cache=o, device='cpu') for o in (None,path))
            for u,v in zip(a.train, b.train):
                for p,q in zip(u, v): eq(*((p,q) if torch.is_tensor(p) else (p.x,q.x)))
        eq(b.valid.cache.path, c.path)
        eq(b.test_dl(toy_jets(8, seed=1)).cache, None)

def test_other_graphs_are_refused(toy, specs, tmp_path):
    path = tmp_path/'r2.safetensors'
    cache_graphs(toy, path, specs['R2'])
    for store,spec in ((toy,specs['R4']),(toy_jets(64, seed=1),specs['R2'])):
        with pytest.raises(DataError, match='other graphs'): cache_graphs(store, path, spec)

@pytest.mark.parametrize('change,text', [
    (lambda a: dict(x=None), 'damaged'), (lambda a: dict(x=a['x'].astype('f8')), 'float64'), (lambda a: dict(offsets=a['offsets']+1), 'do not match'),
    (lambda a: dict(offsets=a['offsets'][::-1].copy()), 'do not match'), (lambda a: dict(pos=a['pos'][1:]), 'do not match'), (lambda a: dict(degree=a['degree']+1), 'add up'),
    (lambda a: dict(degree=a['degree'][1:]), 'add up'), (lambda a: dict(source=a['source']+500), 'do not exist'), (lambda a: dict(source=None), 'add up'),
    (lambda a: dict(more=a['x']), 'more'), (lambda a: dict(x=a['x']*np.float32('nan')), 'NaN'), (lambda a: dict(edge_weight=np.ones(3, 'f4')), 'not that of the edges')])
def test_a_damaged_file_is_refused(change, text, toy, specs, tmp_path):
    path = tmp_path/'r2.safetensors'
    meta,good = cache_graphs(toy, path, specs['R2']).meta,load_file(path)
    with_sums = lambda a: {**meta, 'crc32':_checksums(a, meta)} # as somebody forges it
    save_file(good, tmp_path/'sound.safetensors', with_sums(good))
    eq(GraphCache(tmp_path/'sound.safetensors').arrays['x'], good['x'])
    bad = {k: v for k,v in {**good, **change(good)}.items() if v is not None}
    save_file(bad, tmp_path/'bad.safetensors', with_sums(bad))
    with pytest.raises(DataError, match=text): GraphCache(tmp_path/'bad.safetensors')

def test_files_that_hold_no_graphs(tmp_path, toy):
    save_file(dict(x=np.zeros(3)), tmp_path/'other.safetensors')
    with pytest.raises(DataError, match='holds no graphs'): GraphCache(tmp_path/'other.safetensors')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'other.safetensors').read_bytes()[:10])
    (tmp_path/'not.safetensors').write_bytes(b'')
    for name in ('cut','not'):
        with pytest.raises(DataError, match='cannot be read'): GraphCache(tmp_path/f'{name}.safetensors')
    with pytest.raises(FileNotFoundError, match='No such file'): GraphCache(tmp_path/'missing.safetensors')
    with pytest.raises(DataError, match='a folder'): GraphCache(tmp_path)

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_a_pipe_or_a_link_is_no_file_of_graphs(tmp_path, toy):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'link').symlink_to(tmp_path/'elsewhere')
    for name in ('pipe', 'link'):
        with pytest.raises(OSError, match='pipe|link'): cache_graphs(toy, tmp_path/name)
    assert not (tmp_path/'elsewhere').exists()

def test_a_file_of_fewer_jets_is_refused(toy, specs, tmp_path):
    "Whatever digest it claims: no kernel may read beyond its arrays"
    path = tmp_path/'r2.safetensors'
    whole = cache_graphs(toy, path, specs['R2'])
    few = cache_graphs(toy.select(range(8)), tmp_path/'few.safetensors', specs['R2'])
    save_file(few.arrays, tmp_path/'forged.safetensors', {**whole.meta, 'crc32':_checksums(few.arrays, whole.meta)})
    with pytest.raises(DataError, match="'jets': 8"): GraphCache(tmp_path/'forged.safetensors').check(toy, specs['R2'])

def test_every_flipped_bit_is_found(toy, specs, tmp_path):
    path = tmp_path/'r2.safetensors'
    cache_graphs(toy.select(range(4)), path, specs['R2'])
    good,rng = path.read_bytes(),np.random.default_rng(0)
    for at in rng.integers(0, len(good), 200):
        bad = bytearray(good); bad[at] ^= 1<<int(rng.integers(8)); path.write_bytes(bad)
        with pytest.raises(DataError): GraphCache(path)

def test_graphs_of_no_jets(toy, tmp_path):
    with pytest.raises(DataError, match='no jets'): cache_graphs(toy.select([]), tmp_path/'x.safetensors')
    assert not [*tmp_path.iterdir()]

def test_folders_are_made_and_nothing_is_left_beside_the_file(tmp_path, bare):
    cache_graphs(bare.select([0]), tmp_path/'no'/'such'/'x.safetensors', GraphSpec())
    eq([p.name for p in (tmp_path/'no'/'such').iterdir()], ['x.safetensors'])
