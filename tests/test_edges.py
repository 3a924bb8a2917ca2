"Edges of jet graphs: every kind against brute force, ties, empty jets and nodes at one position"
from itertools import combinations
import numpy as np, pytest
from fastcore.test import test_close as close, test_eq as eq
from scipy.spatial import Delaunay, cKDTree
from sklearn.neighbors import NearestNeighbors

from jetbook.data.hdf5 import sample
from jetbook.data.store import ConfigError, DataError
from jetbook.graphs.edges import delaunay_edges, full_edges, gaussian_weights, join_edges, knn_edges, radius_edges, same_neighbours, undirected
from jetbook.graphs.nodes import native_nodes, pixel_nodes

def clouds():
    "Lit pixels and cells of 40 jets, and 3,000 nodes without ties, in jets of which some are empty"
    rng,qg = np.random.default_rng(0),sample('qg')
    at = lambda n: (np.stack([n.row, n.col], 1).astype(float), n.offsets)
    loose = rng.normal(size=(3000,2)),np.sort(np.r_[0, rng.integers(0, 3000, 60), 3000])
    return dict(pixels=at(pixel_nodes(qg, range(40))), cells=at(native_nodes(qg, range(40))), loose=loose)

CLOUDS = clouds()
each = pytest.mark.parametrize('name', CLOUDS)

def brute(pos, offsets, k, loop=False):
    out = []
    for lo,hi in zip(offsets, offsets[1:]):
        d = ((pos[lo:hi,None]-pos[None,lo:hi])**2).sum(-1)
        d[np.arange(hi-lo),np.arange(hi-lo)] = -1 if loop else np.inf
        near = np.argsort(d, 1, kind='stable')[:,:min(k, hi-lo-(not loop))]+lo
        out.append(np.stack([near.ravel(), np.repeat(np.arange(lo, hi), near.shape[1])]))
    return np.concatenate(out, 1)

def sklearn_knn(pos, offsets, k):
    out = []
    for lo,hi in zip(offsets, offsets[1:]):
        near = NearestNeighbors(n_neighbors=min(k, hi-lo-1)).fit(pos[lo:hi]).kneighbors(return_distance=False)+lo
        out.append(np.stack([near.ravel(), np.repeat(np.arange(lo, hi), near.shape[1])]))
    return np.concatenate(out, 1)

def within(pos, offsets, r, loop=False):
    out = []
    for lo,hi in zip(offsets, offsets[1:]):
        d = ((pos[lo:hi,None]-pos[None,lo:hi])**2).sum(-1)
        for i in range(hi-lo): out += [(lo+j,lo+i) for j in np.argsort(d[i], kind='stable') if d[i,j] <= r*r and (loop or j!=i)]
    return np.array(out).T.reshape(2,-1)

def pairs(e): return set(map(tuple, e.index.T.tolist()))
def sides(e): return {tuple(sorted(s)) for s in e.index.T.tolist()}
def qhull(p): return {tuple(sorted(s)) for t in Delaunay(p).simplices.tolist() for s in combinations(t, 2)}

def in_order(e):
    eq(np.lexsort((e.index[0], e.d2, e.index[1])), np.arange(len(e.d2)))
    eq(np.searchsorted(e.index[1], np.arange(len(e.start))), e.start)
    eq(len(pairs(e)), len(e.d2))

# Nearest neighbours

@each
@pytest.mark.parametrize('loop', [False, True])
@pytest.mark.parametrize('k', [1, 7, 16, 400])
def test_neighbours_against_brute_force(name, k, loop): eq(knn_edges(*CLOUDS[name], k, loop).index, brute(*CLOUDS[name], k, loop))

@each
def test_lengths_and_starts(name):
    pos,offsets = CLOUDS[name]
    e = knn_edges(pos, offsets, 16)
    close(e.d2, ((pos[e.index[0]]-pos[e.index[1]])**2).sum(1))
    eq(e.index[1], np.repeat(np.arange(len(pos)), np.diff(e.start)))

@pytest.mark.parametrize('name', ['pixels', 'cells'])
def test_lengths_are_those_of_scikit_learn(name):
    c = CLOUDS[name]
    assert same_neighbours(knn_edges(*c, 16).index, sklearn_knn(*c, 16), c[0])[0]

def test_without_ties_the_edges_are_those_of_scikit_learn():
    c = CLOUDS['loose'][0][:300],np.array([0,100,300])
    eq(same_neighbours(knn_edges(*c, 16).index, sklearn_knn(*c, 16), c[0]), (True,1.))

def test_same_neighbours_can_say_no():
    c = CLOUDS['loose'][0][:300],np.array([0,100,300])
    eq(same_neighbours(knn_edges(*c, 2).index, knn_edges(*c, 1).index, c[0]), (False,0.))
    eq(same_neighbours(np.array([[1],[0]]), np.array([[2],[0]]), np.array([[0,0],[0,1],[0,2]]))[0], False)

def test_nodes_far_apart_and_nodes_at_one_position():
    far = np.unique(np.random.default_rng(1).integers(0, 4000, (60,2)), axis=0).astype(float)
    eq(knn_edges(far, [0,len(far)], 16).index, brute(far, [0,len(far)], 16))
    same = np.zeros((5,2)),np.array([0,5])
    for loop in (False,True): eq(knn_edges(*same, 3, loop).index, brute(*same, 3, loop))

def test_the_lattice_and_the_plain_way_agree():
    pos,offsets = CLOUDS['cells']
    eq(knn_edges(pos+.25, offsets, 16).index, knn_edges(pos, offsets, 16).index)

def test_small_and_empty_jets():
    one = knn_edges([[3,3]], [0,1], 16)
    eq((one.index.shape, one.start), ((2,0), np.array([0,0])))
    eq(knn_edges([[3,3]], [0,1], 16, loop=True).index, [[0],[0]])
    eq(knn_edges(np.empty((0,2)), [0,0,0], 4).index.shape, (2,0))

POS,OFFSETS = np.array([[0,0],[0,1],[0,3],[1,1],[5,5.]]),np.array([0,4,5])

@pytest.mark.parametrize('args,error,text', [
    ((POS,OFFSETS,0), ConfigError, 'k of 1 or more'), ((POS[:,:1],OFFSETS), DataError, 'two coordinates'), ((POS,[0,3]), DataError, 'rising from 0 to 5'),
    ((POS,[0,4,2,5]), DataError, 'rising from 0 to 5'), ((POS*np.nan,OFFSETS), DataError, 'finite')])
def test_what_is_no_set_of_jets_is_refused(args, error, text):
    with pytest.raises(error, match=text): knn_edges(*args)

# A radius, all pairs, both directions, unions

@pytest.mark.parametrize('name', ['pixels', 'cells'])
def test_radius_and_all_pairs_against_brute_force(name):
    pos,offsets = CLOUDS[name]
    c = pos[:offsets[10]],offsets[:11]
    for r in (1, np.sqrt(2), 5, 8.5): eq(radius_edges(*c, r).index, within(*c, r))
    eq(full_edges(*c).index, within(*c, 1e9))
    eq(full_edges(*c, loop=True).index.shape[1], (np.diff(c[1])**2).sum())

def test_a_radius_against_scipy():
    pos,offsets = CLOUDS['pixels']
    n = sum(len(o) for lo,hi in zip(offsets, offsets[1:]) for o in cKDTree(pos[lo:hi]).query_ball_point(pos[lo:hi], 2.))
    eq(radius_edges(pos, offsets, 2., loop=True).index.shape[1], n)

def test_radius_of_single_nodes_and_none():
    eq(full_edges([[1,1]], [0,1]).index.shape, (2,0))
    eq(radius_edges(np.empty((0,2)), [0], 1.).index.shape, (2,0))
    for r in (0, float('nan')):
        with pytest.raises(ConfigError, match='more than 0'): radius_edges(POS, OFFSETS, r)

@each
def test_both_directions_and_unions(name):
    c = CLOUDS[name]
    a,b = knn_edges(*c, 4),radius_edges(*c, .1 if name=='loose' else 3.)
    u,j = undirected(a),join_edges(a, b)
    eq(pairs(u), pairs(a)|{p[::-1] for p in pairs(a)})
    eq(pairs(j), pairs(a)|pairs(b))
    in_order(u); in_order(j)
    eq(undirected(u).index, u.index)
    eq(join_edges(a, a).index, a.index)
    eq(join_edges(a, u).index, u.index)

# Delaunay

def empty_circles(p, sides):
    "Is there, for each side, a circle through its ends with no node inside? `t` says where on the bisector"
    for a,b in sides:
        u,v = p-p[a],p-p[b]
        dot,cross = (u*v).sum(1),u[b,0]*u[:,1]-u[b,1]*u[:,0]
        t = dot/np.where(cross==0, 1, cross)
        if t[cross > 0].min(initial=np.inf) < t[cross < 0].max(initial=-np.inf)-1e-9 or dot[cross==0].min() < 0: return False
    return True

@pytest.mark.parametrize('name', ['pixels', 'cells'])
def test_triangulations_of_jets(name):
    pos,offsets = CLOUDS[name]
    e = delaunay_edges(pos, offsets)
    in_order(e)
    eq(undirected(e).index, e.index)
    for lo,hi in zip(offsets[:20], offsets[1:]):
        p = np.unique(pos[lo:hi], axis=0)
        s = sides(delaunay_edges(p, [0,len(p)]))
        eq(len(s), len(qhull(p)))
        assert empty_circles(p, s)

def test_halves_and_any_order_give_the_same_triangles():
    rng = np.random.default_rng(0)
    big = np.unique(rng.integers(0, 2000, (400,2)), axis=0).astype(float)
    eq(delaunay_edges(big/2, [0,len(big)]).index, delaunay_edges(big, [0,len(big)]).index)
    perm = rng.permutation(len(big))
    eq({tuple(sorted(perm[list(s)])) for s in sides(delaunay_edges(big[perm], [0,len(big)]))}, qhull(big))

@pytest.mark.parametrize('f', [1., .3]) # on the lattice and off it
def test_nodes_at_one_position_and_on_one_line(f):
    eq(sides(delaunay_edges(f*np.array([[0,0],[0,0],[0,2],[3,0]]), [0,4])), {(0,1),(0,2),(0,3),(1,2),(1,3),(2,3)})
    eq(sides(delaunay_edges(f*np.array([[1,1],[2,2],[5,5.]]), [0,3])), {(0,1),(1,2)})
    eq(sides(delaunay_edges(f*np.array([[1,1],[2,2],[0,3],[0,3.]]), [0,2,2,4])), {(0,1),(2,3)})
    eq(delaunay_edges(f*np.array([[1,1.]]), [0,1]).index.shape, (2,0))

def test_no_nodes_have_no_triangles(): eq(delaunay_edges(np.empty((0,2)), [0,0]).start, [0])

# Weights

def test_weights_are_r4s():
    pos,offsets = CLOUDS['pixels']
    e = knn_edges(pos, offsets, 8, loop=True)
    w = gaussian_weights(e, offsets)
    for lo,hi in zip(offsets[:9], offsets[1:]):
        d,_ = cKDTree(pos[lo:hi]).query(pos[lo:hi], 8)
        close(w[e.start[lo]:e.start[hi]], np.exp(-d**2/d[:,-1].mean()**2).ravel(), 1e-6)

def test_weights_of_a_single_node():
    eq(gaussian_weights(knn_edges([[3,3]], [0,1], 8, loop=True), [0,1]), [1.])
    eq(gaussian_weights(knn_edges([[3,3]], [0,1], 8), [0,1]), [])
