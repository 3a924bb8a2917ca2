"B2: random batches of 256 dense images in one process"
import tempfile, time
from pathlib import Path
from timing import median, number, ratio, show, side_by_side, spread, table
import h5py, numpy as np, torch
from torch.utils.data import DataLoader, Dataset
from jetbook.data.loaders import jet_dls
from jetbook.data.transforms import MinMax, Pad
from samples import FULL, dense, jets, what

BS = 256

class InMemory(Dataset):
    "The images in one array; each is fetched and turned by itself, as the public notebooks do"
    def __init__(self, x, y): self.x,self.y = x,y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return torch.from_numpy(self.x[i]).permute(2,0,1), torch.tensor(self.y[i], dtype=torch.float32)

def _on_images(*tfms):
    "The same transforms on dense images, as before: functions know nothing of entries"
    return [lambda x, t=t: t(x) for t in tfms]

PIPELINES = {'`for xb,yb in jet_dls(store).train`':[], "with R1's MinMax":[MinMax()], 'MinMax on images, as before':_on_images(MinMax()),
             'with MinMax and Pad':[MinMax(),Pad()], 'MinMax and Pad on images, as before':_on_images(MinMax(),Pad())}

def _each(f, draws):
    "Call `f` with each of the draws and keep nothing; how many jets that are"
    def _loop():
        for i in draws: f(i)
    return _loop, sum(map(len, draws))

def _end_to_end(n, tfms):
    dls = jet_dls(jets(n), tfms=tfms, bs=BS, device='cpu', seed=0)
    def _epoch():
        for xb,yb in dls.train: pass
    return _epoch, len(dls.train)*BS

def _check(n):
    "The batches of all ways are the same"
    for k,old in (('with MinMax and Pad','MinMax and Pad on images, as before'), ("with R1's MinMax",'MinMax on images, as before')):
        a,b = (jet_dls(jets(n), tfms=PIPELINES[t], bs=BS, device='cpu', seed=0).train.one_batch() for t in (k,old))
        assert all(map(torch.equal, a, b))

def main(tmp, quick=False):
    torch.set_num_threads(1)
    n,rng = (512,np.random.default_rng(0)) if quick else (4096,np.random.default_rng(0))
    store,full = jets(n),jets(FULL)
    files = {'contiguous':dense(tmp,'contiguous',n), 'one-jet chunks':dense(tmp,'one',n,chunks=(1,125,125,3)), '16-jet gzip chunks':dense(tmp,'gzip',n,chunks=(16,125,125,3),compression='gzip')}
    open_files = {k:h5py.File(p) for k,p in files.items()}
    draws = [np.sort(rng.choice(n, BS, False)) for _ in range(40)]
    far = [np.sort(rng.choice(FULL, BS, False)) for _ in range(40)]
    x = open_files['contiguous']['X_jets'][:]
    ram,buf,buf2,buf3,plain = InMemory(x, store.columns['y']),store.buffer(BS),full.buffer(BS),store.buffer(64),torch.zeros(BS,3,125,125)
    for k in draws[:2]: assert np.array_equal(store.images(k, out=buf).permute(0,2,3,1).numpy(), x[k]) # the same images
    _check(n)
    def _fancy(k, m):
        d = open_files[k]['X_jets']
        return (lambda: [torch.from_numpy(d[i]).permute(0,3,1,2) for i in draws[:m]]), m*BS
    def _loader(): # an epoch over 4 random batches
        for xb,yb in DataLoader(ram, BS, sampler=np.concatenate(draws[:4]).tolist()): pass
    def _plain(i): # as in a loop of one's own, the last batch lives until the next is there
        last[:] = store.images(i),torch.from_numpy(store.labels(i))
    last = []
    ways = {f'h5py, {k}':_fancy(k, m) for k,m in {'contiguous':4, 'one-jet chunks':1, '16-jet gzip chunks':1}.items()}
    ways |= {'array in memory, `Dataset`, `DataLoader`':(_loader, 4*BS),
             '`torch.zeros`, fresh':(lambda: [torch.zeros(BS,3,125,125) for _ in draws[:10]], 10*BS),
             '`zero_()`, reused':(lambda: [plain.zero_() for _ in draws], len(draws)*BS),
             '`store.images(idx)` in fresh memory, as before':_each(lambda i: store.images(i, out=store.buffer(BS)), draws[:10]),
             '`store.images(idx)`':_each(store.images, draws),
             'plain PyTorch loop over `store.images(idx)` and labels':_each(_plain, [torch.randperm(n)[:BS].numpy() for _ in draws]),
             '`store.images(idx, out=buffer)`':_each(lambda i: store.images(i, out=buf), draws),
             f'the same, store of {FULL:,} jets':_each(lambda i: full.images(i, out=buf2), far),
             'the same, batches of 64, which the cache holds':_each(lambda i: store.images(i, out=buf3), [np.sort(i[:64]) for i in draws])}
    ways |= {f'end to end: {k}':_end_to_end(2000 if quick else 20_000, t) for k,t in PIPELINES.items()}
    rates = side_by_side(ways, 3 if quick else 5, time.process_time)
    ours = [k for k in ways if 'store' in k or k.startswith(('the same', 'end to end'))]
    limits = ['h5py, contiguous','h5py, one-jet chunks','h5py, 16-jet gzip chunks','array in memory, `Dataset`, `DataLoader`','`zero_()`, reused']
    head = ['way','jets/s (median)','lowest to highest','h5py contiguous','one-jet chunks','gzip chunks','in-memory `DataLoader`','`zero_()`']
    rows = [[k, number(median(r)), spread(r)] + ([f'**{number(ratio(rates,k,l))}**' for l in limits] if k in ours else ['']*5) for k,r in rates.items()]
    return '\n\n'.join(['## B2: random batches of 256 images, one process, one thread',
        f'Jets: {what()}, {n:,} of them; sorted random numbers; files in the page cache; jets a second of processor time. The columns on the right: so many times as fast as that.', table(head, rows)])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
