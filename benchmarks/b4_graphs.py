"B4: jets as graphs and clouds, in whole batches, against loops over jets"
import tempfile, warnings
from importlib.util import find_spec
from pathlib import Path
from timing import number, ratio, show, side_by_side, spread, table
import numpy as np, torch
import torch.nn.functional as F
from scipy.spatial import Delaunay, cKDTree
from sklearn.neighbors import NearestNeighbors
from torch_geometric.data import Data
from jetbook.data.hdf5 import sample
from jetbook.graphs.edges import delaunay_edges, knn_edges, same_neighbours
from jetbook.graphs.batches import GraphSpec, cache_graphs, graphs, make_nodes, padded
from jetbook.graphs.nodes import image_moments, native_nodes, pixel_nodes
from jetbook.train.training import keep_memory

BATCH = 128

def r2_loop(images, y):
    "R2: pixels whose channels sum to more than 0.01; row, column and intensities; the 16 nearest"
    out = []
    for x,label in zip(images, y):
        at = np.argwhere(x.sum(-1) > np.float32(.01))
        if not len(at): at = np.array([[62,62]])
        feats = np.concatenate([at/125, x[at[:,0],at[:,1]]], 1)
        k = min(16, len(at)-1)
        if k: near = NearestNeighbors(n_neighbors=k).fit(at).kneighbors(return_distance=False)
        else: near = np.empty((1,0), int)
        edges = np.stack([near.ravel(), np.repeat(np.arange(len(at)), k)])
        out.append(Data(x=torch.tensor(feats, dtype=torch.float), edge_index=torch.tensor(edges, dtype=torch.long), y=torch.tensor([label])))
    return out

def r4_loop(images, y):
    "R4: pixels with any light in images that were stretched and normalised; intensities; the 8 nearest, itself among them, with Gaussian weights"
    out = []
    for x,label in zip(images, y):
        at = np.argwhere((x > 0).any(-1))
        d,near = cKDTree(at).query(at, k=min(8, len(at)))
        w = np.exp(-d**2/d[:,-1].mean()**2)
        edges = np.stack([near.ravel(), np.repeat(np.arange(len(at)), d.shape[1])])
        out.append(Data(x=torch.tensor(x[at[:,0],at[:,1]]), edge_index=torch.tensor(edges), edge_weight=torch.tensor(w.ravel(), dtype=torch.float), y=torch.tensor([label])))
    return out

def stretch(images, moments):
    "R4's preparation: bilinear to 128x128, less the mean, over the standard deviation, nothing below zero"
    x = torch.nn.functional.interpolate(torch.from_numpy(images).permute(0,3,1,2), (128,128), mode='bilinear').permute(0,2,3,1).numpy()
    return np.maximum((x-moments[0])/moments[1], 0)

def batches(fn, n): return lambda: [fn(np.arange(i, min(i+BATCH, n))) for i in range(0, n, BATCH)]

def same(loop, ours, pos):
    "Are the neighbours of the first graphs the same up to ties: as far away, from the same nodes?"
    cuts = np.cumsum([0]+[d.num_nodes for d in loop])
    theirs = np.concatenate([d.edge_index.numpy()+c for d,c in zip(loop, cuts)], 1)
    ok,share = same_neighbours(ours.edge_index.numpy(), theirs, pos)
    return ok and bool(torch.allclose(torch.cat([d.x for d in loop]), ours.x, atol=1e-5)),share

def sklearn_edges(pos, offsets):
    return [NearestNeighbors(n_neighbors=min(16, hi-lo-1)).fit(pos[lo:hi]).kneighbors(return_distance=False) for lo,hi in zip(offsets, offsets[1:])]

def scipy_edges(pos, offsets): return [cKDTree(pos[lo:hi]).query(pos[lo:hi], min(17, hi-lo))[1] for lo,hi in zip(offsets, offsets[1:])]

def qhull(pos, offsets): return [Delaunay(np.unique(pos[lo:hi], axis=0)).simplices for lo,hi in zip(offsets, offsets[1:])]

def pyg_delaunay(pos, offsets):
    from torch_geometric.transforms import Compose, Delaunay, FaceToEdge
    t = Compose([Delaunay(), FaceToEdge()])
    return [t(Data(pos=torch.from_numpy(np.unique(pos[lo:hi], axis=0)))) for lo,hi in zip(offsets, offsets[1:])]

def pyg_knn(pos, offsets):
    from torch_geometric.transforms import KNNGraph
    t = KNNGraph(k=16)
    return [t(Data(pos=torch.from_numpy(pos[lo:hi]))) for lo,hi in zip(offsets, offsets[1:])]

def nonzero(images): return [(at := np.argwhere((x > 0).any(-1)), x[at[:,0],at[:,1]]) for x in images]

def rows(what, ways, rounds):
    "A row for each way; `ours` is the first"
    rates = side_by_side(ways, rounds)
    first = next(iter(ways))
    return [[what, k, number(np.median(r)), spread(r), '' if k==first else f'**{number(ratio(rates, first, k))}**'] for k,r in rates.items()]

# Convolutions: PyG's own forward on a list of edges and on a torch.sparse matrix, and jetbook's

NETWORKS = ('gcn', 'gat', 'sage', 'gin', 'sage_r2', 'gat_cheb')

def pyg_csr(net, g):
    "The network by PyG's own layers on a matrix in compressed sparse rows; None where a layer takes no matrix"
    from torch_geometric.nn import ChebConv, GATConv, GCNConv
    from torch_geometric.utils import to_torch_csr_tensor
    if any(isinstance(c, (ChebConv, GATConv)) for c in net.convs): return None
    weighted = any(isinstance(c, GCNConv) for c in net.convs)
    def forward():
        m = to_torch_csr_tensor(g.edge_index.flip(0), g.edge_weight if weighted else None, size=(len(g.x), len(g.x)))
        x = g.x
        for c in net.convs: x = c(x, m).relu_()
        return net.head(net.pool(x, ptr=g.ptr, dim_size=len(g.ptr)-1))
    return forward

def pyg_softmax(s, t, links, slope=.2):
    "Attention by PyG's softmax, edge by edge"
    from torch_geometric.utils import softmax
    target = torch.arange(len(links.start)-1).repeat_interleave(links.start.diff())
    return softmax(F.leaky_relu(s[links.source]+t[target], slope), target, num_nodes=len(links.start)-1)

def convolutions(store, jets, rounds):
    "A row for each network and way: training steps (forward and backward) on the same graphs, one thread"
    from jetbook.data.loaders import split
    from jetbook.taggers import gnn
    from jetbook.train.recipes import get_recipe
    threads,sp,out = torch.get_num_threads(),split(store, .1, .4, n_train=2000),[]
    torch.set_num_threads(1)
    ours = gnn.edge_softmax,gnn.pieces
    for name in NETWORKS:
        learn = get_recipe(name).func(store, sp)
        g,y = next(iter(learn.dls.valid.new(bs=jets)))
        net = learn.model
        def step(plain=False, forward=None, softmax=ours[0], size=8192):
            def run():
                net.plain,gnn.edge_softmax,gnn.pieces = plain,softmax,lambda g, n: ours[1](g, n and size)
                net.zero_grad()
                F.cross_entropy(forward() if forward else net(g), y).backward()
            return run,jets
        ways = {'`jetbook`':step(), 'PyG, edge by edge':step(True)}
        if csr := pyg_csr(net, g): ways['PyG, `torch.sparse` CSR'] = step(forward=csr)
        if name in ('gat','gat_cheb'): ways["`jetbook` with PyG's `softmax`"] = step(softmax=pyg_softmax)
        if name!='sage_r2': ways['`jetbook`, the batch in one piece'] = step(size=None)
        rates = side_by_side(ways, rounds)
        for k,r in rates.items():
            out.append([name, k, number(1000*jets/np.median(r)), '' if k=='`jetbook`' else f'**{number(ratio(rates, "`jetbook`", k))}**'])
    gnn.edge_softmax,gnn.pieces = ours
    torch.set_num_threads(threads)
    return out

def main(tmp, quick=False):
    warnings.simplefilter('ignore')
    keep_memory()
    qg,few,many,rounds = sample('qg'),*((40,256,2) if quick else (128,1024,5))
    steps = 16 if quick else 64
    y,moments = qg.columns['y'],image_moments(qg, range(12000), 128)
    r2 = GraphSpec('pixel', .01, 'sum', features=('unit','values'), edges='knn', k=16)
    r4 = GraphSpec('pixel', resize=128, normalise=moments, features='values', edges='knn', k=8, loop=True, weights='gaussian')
    native = GraphSpec(features=('centred','log','log_share','channel'), edges='knn', k=16)
    dense = qg.images(range(few)).permute(0,2,3,1).contiguous().numpy()
    stretched = stretch(dense.astype(np.float64), moments).astype(np.float32)
    checks = [same(loop, graphs(qg, range(few), spec), np.stack([(n := make_nodes(qg, range(few), spec)).row,n.col], 1)) for loop,spec in ((r2_loop(dense, y),r2),(r4_loop(stretched, y),r4))]
    nodes = native_nodes(qg, range(few))
    pixels,cells = ((np.stack([n.row,n.col], 1).astype(float),n.offsets) for n in (pixel_nodes(qg, range(few)),nodes))
    kept = {k:cache_graphs(qg.select(range(many)), Path(tmp)/f'b4_{k}.safetensors', s) for k,s in (('R2',r2),('R4',r4))}
    def _graphs(spec): return batches(lambda idx: graphs(qg, idx, spec), many),many
    def _kept(k): return batches(kept[k].graphs, many),many
    t = [*rows('R2 graphs, k=16', {'`graphs`':_graphs(r2), "R2's loop":(lambda: r2_loop(dense, y),few), 'kept in a file':_kept('R2')}, rounds),
         *rows('R4 graphs, k=8', {'`graphs`':_graphs(r4), "R4's loop, with its stretching and normalising":(lambda: r4_loop(np.concatenate([stretch(dense[i:i+1], moments) for i in range(few)]), y),few), "R4's loop alone, of images that are ready":(lambda: r4_loop(stretched, y),few), 'kept in a file':_kept('R4')}, rounds),
         *rows('native graphs, k=16', {'`graphs`':_graphs(native)}, rounds),
         *rows('native clouds, padded', {'`padded`':(batches(lambda idx: padded(qg, idx, native), many),many)}, rounds),
         *rows('pixel clouds', {'`pixel_nodes`':(batches(lambda idx: pixel_nodes(qg, idx), many),many), 'NumPy, jet by jet, of dense images':(lambda: nonzero(dense),few)}, rounds)]
    pyg = {'PyG `KNNGraph`, jet by jet':(lambda: pyg_knn(*cells),few)} if find_spec('torch_cluster') or find_spec('pyg_lib') else {}
    for name,c in (('pixels',pixels),('cells',cells)):
        t += rows(f'16 neighbours of {name}, positions given', {'`knn_edges`':(lambda: knn_edges(*c, 16),few), 'scikit-learn, jet by jet':(lambda: sklearn_edges(*c),few), 'SciPy `cKDTree`, jet by jet':(lambda: scipy_edges(*c),few), **pyg}, rounds)
        t += rows(f'Delaunay edges of {name}, positions given', {'`delaunay_edges`':(lambda: delaunay_edges(*c),few), 'SciPy, jet by jet, triangles alone':(lambda: qhull(*c),few), 'PyG `Delaunay` and `FaceToEdge`, jet by jet':(lambda: pyg_delaunay(*c),few)}, rounds)
    return '\n\n'.join(['## B4: jets as graphs and clouds',
        f'Jets: {qg.source}. From the packed store to PyG batches of {BATCH} (the loops: to one `Data` a jet, not yet joined to batches), in one process and thread.',
        table(['what','way','jets/s (median)','lowest to highest','the first way is so many times as fast'], t),
        f"Neighbours as far away and node features as the loop's, in all {few} jets compared: R2 {checks[0][0]}, R4 {checks[1][0]}. The loop breaks ties in its own way: of its edges {100*checks[0][1]:.1f}% (R2) and {100*checks[1][1]:.1f}% (R4) are ours too. "
        + ('' if pyg else 'PyG\'s `KNNGraph` needs torch-cluster or pyg-lib, which are not here: PyPI has no wheels of them.'),
        f'Training steps (forward and backward) of the graph networks on the graphs of {steps} jets:',
        table(['network','way','ms a step (median)','`jetbook` is so many times as fast'], convolutions(qg, steps, rounds))])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
