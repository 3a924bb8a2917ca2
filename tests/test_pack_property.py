"Whatever the images: `pack`, then `images`, gives them back bit for bit (property-based)"
import os, tempfile
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py, numpy as np, pytest, torch
from hypothesis import assume, given, settings, strategies as st

import jetbook.data.files as files
from jetbook.data.store import JetStore, jet_keys, join
from jetbook.data.files import array_source, from_images, open_source, pack, verify

WIDTH = {np.float16:16, np.float32:32, np.float64:32}  # float64 images of numbers that float32 holds
TINY = {16:6e-8, 32:1e-45}                             # the smallest subnormal

@pytest.fixture(autouse=True)
def in_memory(monkeypatch):
    "Thousands of little files: where there is a RAM disk, keep them off the real one"
    if os.access('/dev/shm', os.W_OK): monkeypatch.setattr(tempfile, 'tempdir', '/dev/shm')

@contextmanager
def steps_of(nbytes):
    "Let `pack` read about `nbytes` at a time, so that a few small jets make several chunks"
    old,files.STEP_BYTES = files.STEP_BYTES,nbytes
    try: yield
    finally: files.STEP_BYTES = old

@contextmanager
def folder():
    with TemporaryDirectory() as d: yield Path(d)

def intensities(width, negative):
    "Any finite float, and often those that go wrong: both zeros, subnormals, the largest"
    top = float(np.finfo(np.float16 if width==16 else np.float32).max)
    odd = st.sampled_from([0., -0., TINY[width], 1., top] + ([-TINY[width], -1., -top] if negative else []))
    return odd | st.floats(None if negative else 0., None, width=width, allow_nan=False, allow_infinity=False)

@st.composite
def jet_images(draw, negative=False, max_jets=7):
    "Sparse images (N, H, W, C) and the side of the towers to look for; a channel is of pixels, of towers, or of towers up to some jet"
    dtype,up = draw(st.sampled_from(list(WIDTH))),draw(st.sampled_from([1,2,5]))
    n,gh,gw,C = draw(st.integers(1,max_jets)),draw(st.integers(1,4)),draw(st.integers(1,4)),draw(st.integers(1,3))
    H,W = gh*up + draw(st.sampled_from([0,0,0,1])),gw*up
    x,values = np.zeros((n,H,W,C), dtype),intensities(WIDTH[dtype], negative)
    def _cells(h, w): return st.lists(st.tuples(st.integers(0,n-1), st.integers(0,h-1), st.integers(0,w-1), values), max_size=8)
    for c in range(C):
        kind = draw(st.sampled_from(['pixels','towers','late','odd']))
        if kind=='odd' and up>1: # towers in plenty, and a jet that has one more pixel
            for i in range(n): x[i,:gh*up,:,c] = draw(values)
            x[draw(st.integers(0,n-1)),draw(st.integers(0,H-1)),draw(st.integers(0,W-1)),c] = draw(values)
            continue
        if kind!='pixels':
            for i,r,q,v in draw(_cells(gh,gw)): x[i, r*up:(r+1)*up, q*up:(q+1)*up, c] = v
        if kind!='towers':
            first = draw(st.integers(0,n-1)) if kind=='late' else 0
            for i,r,q,v in draw(_cells(H,W)): x[max(i,first),r,q,c] = v
    return x,up

def bits(x): return np.ascontiguousarray(x, np.float32).view(np.uint32)
def same(store, x): np.testing.assert_array_equal(bits(store.images().numpy()), bits(x.transpose(0,3,1,2)))
def names(x): return [f'c{i}' for i in range(x.shape[3])]

@settings(max_examples=100)
@given(jet_images(), st.integers(1,4000))
def test_array(jets, step):
    x,up = jets
    with steps_of(step): s = from_images(x, channels_first=False, towers=up)
    same(s, x)
    assert s.channels==tuple(names(x)) and len(s)==len(x)

@settings(max_examples=60)
@given(jet_images(negative=True), st.integers(1,4000))
def test_signed(jets, step):
    x,up = jets
    with steps_of(step):
        same(from_images(x, channels_first=False, towers=up, negative='keep'), x)
        same(from_images(x, channels_first=False, towers=up, negative='zero'), np.where(x<0, np.zeros((),x.dtype), x))

@settings(max_examples=60)
@given(jet_images(), st.integers(1,4000), st.data())
def test_tower_granularity_is_used_where_it_is_smaller(jets, step, data):
    "A channel whose blocks are constant is stored by towers; else means and corrections are kept if they take fewer bytes"
    x,up = jets
    with steps_of(step): s = from_images(x, channels_first=False, towers=up)
    at_once = from_images(x, channels_first=False, towers=up)
    N,H,W,C = x.shape
    for c,name in enumerate(s.channels):
        if H%up or up==1:
            assert s.upsample[name]==at_once.upsample[name]==1 and name not in s.corrections
            continue
        y = np.ascontiguousarray(x[...,c], np.float32)
        blocks = y.reshape(N,H//up,up,W//up,up).swapaxes(2,3).reshape(N,-1,up*up)
        whole = (bits(blocks)==bits(blocks)[...,:1]).all(-1)
        total = sum(blocks[...,k].astype(np.float64) for k in range(up*up))  # in this order
        means = np.where(whole, blocks[...,0], (total/up**2).astype(np.float32))
        dark = np.where(whole, bits(blocks[...,0])==0, means==0)
        means[dark] = 0
        fixes = (bits(blocks)!=bits(means)[...,None]) & ~whole[...,None]
        fewer = 6*(~dark).sum() + (6*fixes.sum()+8*N if fixes.any() else 0) <= 6*(bits(y)!=0).sum()
        assert at_once.upsample[name]==(up if fewer else 1)
        if whole.all(): assert s.upsample[name]==up
        if s.upsample[name]==up:
            assert fewer
            o,p,v = s.entries[name]
            eq = np.testing.assert_array_equal
            eq(np.diff(o), (~dark).sum(1)); eq(p, np.nonzero(~dark)[1]); eq(bits(v), bits(means[~dark]))
            none = (np.zeros(N+1,int),)
            eq(np.diff(s.corrections.get(name, none)[0]), fixes.sum((1,2)))

@settings(max_examples=100)
@given(jet_images(), st.integers(1,4000), st.data())
def test_hdf5(jets, step, data):
    x,up = jets
    first,swap = data.draw(st.booleans(), 'channel-first'),data.draw(st.booleans(), 'big-endian')
    if first: assume(x.shape[2]!=x.shape[3] and x.shape[1]!=x.shape[3])
    y = x.transpose(0,3,1,2) if first else x
    y = y.astype(y.dtype.newbyteorder('>' if swap else '<'))
    kind = data.draw(st.sampled_from(['contiguous','chunks','gzip','lzf','user block']))
    how = dict(chunks=tuple(data.draw(st.integers(1,k)) for k in y.shape)) if kind in ('chunks','gzip','lzf') else {}
    if kind in ('gzip','lzf'): how.update(compression=kind, shuffle=data.draw(st.booleans()), fletcher32=data.draw(st.booleans()))
    with folder() as d, steps_of(step):
        with h5py.File(d/'x.h5', 'w', **(dict(userblock_size=512) if kind=='user block' else {})) as f:
            f.create_dataset('X_jets', data=y, **how)
            f['weight'] = np.arange(len(x))*.5
        s = pack(d/'x.h5', d/'x.jets.h5', 'array', names(x), up, channels_first=first, progress=False)
        same(s, x)
        np.testing.assert_array_equal(s.columns['weight'], np.arange(len(x))*.5)
        assert verify(d/'x.jets.h5', d/'x.h5', layout='array', channels=names(x), channels_first=first, progress=False)['identical']

@settings(max_examples=60)
@given(jet_images(), st.integers(1,4000), st.data())
def test_parquet(jets, step, data):
    import pyarrow as pa, pyarrow.parquet as pq
    x,up = jets
    assume(x.shape[2]!=x.shape[3] and x.shape[1]!=x.shape[3])
    large,group = data.draw(st.booleans(), 'large lists'),data.draw(st.integers(1,len(x)), 'rows a group')
    col,cut = pa.array(x.transpose(0,3,1,2).ravel()),(pa.LargeListArray if large else pa.ListArray).from_arrays
    for k in (x.shape[2], x.shape[1], x.shape[3]):
        ends = np.arange(0, len(col)+1, k)
        col = cut(pa.array(ends, pa.int64() if large else pa.int32()), col)
    y = np.arange(len(x))%2
    assume(x.dtype!=np.float16 or not large)
    with folder() as d, steps_of(step):
        pq.write_table(pa.table(dict(X_jets=col, y=pa.array(y.astype(float)), pt=pa.array(np.arange(len(x))+.5))), d/'x.parquet', row_group_size=group,
                       compression=data.draw(st.sampled_from(['none','snappy','zstd'])), data_page_version=data.draw(st.sampled_from(['1.0','2.0'])),
                       data_page_size=data.draw(st.sampled_from([64,2**20])), write_batch_size=16)
        s = pack(d/'x.parquet', d/'x.jets.h5', channels=names(x), towers=up, progress=False)
        same(s, x)
        np.testing.assert_array_equal(s.columns['y'], y)
        np.testing.assert_array_equal(s.columns['pt'], np.arange(len(x))+.5)

@settings(max_examples=40)
@given(jet_images(), jet_images(), st.integers(1,4000))
def test_several_files(a, b, step):
    (x,up),(z,_) = a,b
    H,W,C = x.shape[1:]
    w = np.zeros((len(z),H,W,C), x.dtype)
    h,q,c = (min(i,j) for i,j in zip(z.shape[1:],(H,W,C)))
    w[:,:h,:q,:c] = np.clip(z[:,:h,:q,:c].astype(np.float64), 0, np.finfo(x.dtype).max)
    with folder() as d, steps_of(step):
        for k,v in zip('ab',(x,w)):
            with h5py.File(d/f'{k}.h5','w') as f: f['X_jets'],f['file'] = v,np.full(len(v), ord(k))
        same(pack(d, d/'out'/'x.jets.h5', 'array', names(x), up, channels_first=False, progress=False), np.concatenate([x,w]))

@settings(max_examples=60)
@given(jet_images(), st.integers(1,4000), st.booleans())
def test_dense_and_back(jets, step, chunked):
    x,up = jets
    s = from_images(x, channels_first=False, towers=up)
    with folder() as d, steps_of(step):
        s.to_dense(d/'x.h5', chunks=(1,*x.shape[1:]) if chunked else None, compression='gzip' if chunked else None)
        with h5py.File(d/'x.h5') as f: np.testing.assert_array_equal(bits(f['X_jets'][:]), bits(x))
        s = from_images(x, channels_first=False, towers=up)  # in the same steps
        t = pack(d/'x.h5', d/'x.jets.h5', 'array', names(x), up, channels_first=False, progress=False)
        s.save(d/'y.jets.h5')
        for u in (t, JetStore(d/'y.jets.h5'), JetStore(d/'y.jets.h5', mmap=True)):
            assert u.upsample==s.upsample and list(u.corrections)==list(s.corrections)
            for mine,others in [(s.entries[k],u.entries[k]) for k in s.channels] + [(s.corrections[k],u.corrections[k]) for k in s.corrections]:
                for a,b in zip(mine,others): assert a.dtype==b.dtype and a.tobytes()==b.tobytes()
        assert (d/'x.jets.h5').stat().st_size==(d/'y.jets.h5').stat().st_size

@settings(max_examples=60)
@given(jet_images(), st.data())
def test_clouds_agree_with_images(jets, data):
    "Painting every entry of the cloud as a tower around its centre gives the images"
    x,up = jets
    s = from_images(x, channels_first=False, towers=up)
    s = s._replace(corrections={})  # clouds are of the towers' means
    idx = np.array(data.draw(st.lists(st.integers(0,len(x)-1), max_size=10)), int)
    c,image = s.clouds(idx),np.zeros((len(idx),x.shape[3],*x.shape[1:3]), np.float32)
    jet = np.repeat(np.arange(len(idx)), np.diff(c.offsets))
    assert len(jet)==len(c.value)
    for b,r,q,k,v in zip(jet,c.row,c.col,c.channel,c.value):
        u = s.upsample[s.channels[k]]; r,q = round(float(r)-(u-1)/2),round(float(q)-(u-1)/2)
        image[b,k,r:r+u,q:q+u] = v
    np.testing.assert_array_equal(bits(image), bits(s.images(idx).numpy()))

@settings(max_examples=60)
@given(jet_images(), st.data())
def test_select(jets, data):
    x,up = jets
    cols = dict(y=np.arange(len(x))%2, number=np.arange(len(x)))
    s = from_images(x, cols, channels_first=False, towers=up)
    order = data.draw(st.permutations(range(len(x))))
    t = s.select(order)
    same(t, x[order])
    for k in cols: np.testing.assert_array_equal(t.columns[k], cols[k][order])
    same(t.select(np.argsort(order)), x)
    chs = data.draw(st.permutations(s.channels))[:data.draw(st.integers(1,x.shape[3]))]
    same(s.select(channels=chs), x[...,[s.channels.index(k) for k in chs]])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(x), max_size=len(x))))
    same(s.select(mask), x[mask])
    both = join([s, t, s.select(mask)])
    same(both, np.concatenate([x, x[order], x[mask]]))
    np.testing.assert_array_equal(jet_keys(both), np.concatenate([jet_keys(s), jet_keys(s)[order], jet_keys(s)[mask]]))

@settings(max_examples=60)
@given(jet_images(), jet_images(), st.data())
def test_a_reused_buffer_is_as_good_as_a_fresh_one(a, b, data):
    "Any sequence of batches, from more than one store of the same size of image"
    (x,up),(z,_) = a,b
    s = from_images(x, channels_first=False, towers=up)
    t = s.select(np.argsort(x.reshape(len(x),-1).astype(float).sum(1))) if z.shape[1:]!=x.shape[1:] else from_images(z, channels_first=False)
    bs = data.draw(st.integers(1,8))
    buf = s.buffer(bs)
    for k in range(data.draw(st.integers(1,6))):
        u = data.draw(st.sampled_from([s,t]))
        idx = data.draw(st.lists(st.integers(-len(u),len(u)-1), max_size=bs))
        got = u.images(idx, out=buf)
        np.testing.assert_array_equal(bits(got.numpy()), bits(u.images(idx).numpy()))
        if len(idx): assert got.data_ptr()==buf.tensor.data_ptr()
        assert not bits(buf.array[len(idx):]).any()

@settings(max_examples=40)
@given(jet_images(), st.data())
def test_torch_path_gives_the_same_images(jets, data):
    "The path for accelerators, run on torch's CPU operations"
    from jetbook.data.store import _images_torch
    x,up = jets
    s = from_images(x, channels_first=False, towers=up)
    idx = torch.tensor(data.draw(st.lists(st.integers(0,len(x)-1), min_size=1, max_size=8)))
    as_torch = lambda entries: {k:(torch.tensor(o), torch.tensor(p.astype(np.int32)), torch.tensor(v)) for k,(o,p,v) in entries.items()}
    t = s._replace(entries=as_torch(s.entries), corrections=as_torch(s.corrections))
    out = _images_torch(t, idx)
    np.testing.assert_array_equal(bits(out.numpy()), bits(s.images(idx).numpy()))
