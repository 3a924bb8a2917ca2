"B2: random batches of 256 dense images in one process"
import tempfile
from pathlib import Path
from timing import median, number, ratio, show, side_by_side, spread, table
import h5py, numpy as np, torch
from torch.utils.data import DataLoader, Dataset
from samples import FULL, dense, jets, what

BS = 256

class InMemory(Dataset):
    "The images in one array; each is fetched and turned by itself, as the public notebooks do"
    def __init__(self, x, y): self.x,self.y = x,y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return torch.from_numpy(self.x[i]).permute(2,0,1), torch.tensor(self.y[i], dtype=torch.float32)

def main(tmp, quick=False):
    torch.set_num_threads(1)
    n,rng = (512,np.random.default_rng(0)) if quick else (4096,np.random.default_rng(0))
    store,full = jets(n),jets(FULL)
    files = {'contiguous':dense(tmp,'contiguous',n), 'one-jet chunks':dense(tmp,'one',n,chunks=(1,125,125,3)), '16-jet gzip chunks':dense(tmp,'gzip',n,chunks=(16,125,125,3),compression='gzip')}
    open_files = {k:h5py.File(p) for k,p in files.items()}
    draws = [np.sort(rng.choice(n, BS, False)) for _ in range(40)]
    far = [np.sort(rng.choice(FULL, BS, False)) for _ in range(40)]
    x = open_files['contiguous']['X_jets'][:]
    ram,buf,buf2,plain = InMemory(x, store.columns['y']),store.buffer(BS),full.buffer(BS),torch.zeros(BS,3,125,125)
    for k in draws[:2]: assert np.array_equal(store.images(k, out=buf).permute(0,2,3,1).numpy(), x[k]) # the same images
    def _fancy(k, m):
        d = open_files[k]['X_jets']
        return (lambda: [torch.from_numpy(d[i]).permute(0,3,1,2) for i in draws[:m]]), m*BS
    def _loader(): # an epoch over 4 random batches
        for xb,yb in DataLoader(ram, BS, sampler=np.concatenate(draws[:4]).tolist()): pass
    ways = {f'h5py, {k}':_fancy(k, m) for k,m in {'contiguous':4, 'one-jet chunks':1, '16-jet gzip chunks':1}.items()}
    ways |= {'array in memory, `Dataset`, `DataLoader`':(_loader, 4*BS),
             '`torch.zeros`, fresh':(lambda: [torch.zeros(BS,3,125,125) for _ in draws[:10]], 10*BS),
             '`zero_()`, reused':(lambda: [plain.zero_() for _ in draws], len(draws)*BS),
             '`store.images(idx)`, fresh':(lambda: [store.images(i) for i in draws], len(draws)*BS),
             '`store.images(idx, out=buffer)`':(lambda: [store.images(i, out=buf) for i in draws], len(draws)*BS),
             f'the same, store of {FULL:,} jets':(lambda: [full.images(i, out=buf2) for i in far], len(far)*BS)}
    try:
        from jetbook.data.loaders import jet_dls
        dls = jet_dls(jets(24_000 if not quick else 2000), bs=BS, device='cpu', seed=0)
        def _epoch():
            for b in dls.train: pass
        count = sum(len(b[0]) for b in dls.train)
        ways[f'end to end: `for xb,yb in jet_dls(...).train`'] = (_epoch, count)
    except ImportError: pass
    rates = side_by_side(ways, 3 if quick else 5)
    ours = [k for k in ways if 'store' in k or 'end to end' in k]
    limits = ['h5py, contiguous','h5py, one-jet chunks','h5py, 16-jet gzip chunks','array in memory, `Dataset`, `DataLoader`','`zero_()`, reused']
    head = ['way','jets/s (median)','lowest to highest','h5py contiguous','one-jet chunks','gzip chunks','in-memory `DataLoader`','`zero_()`']
    rows = [[k, number(median(r)), spread(r)] + ([f'**{number(ratio(rates,k,l))}**' for l in limits] if k in ours else ['']*5) for k,r in rates.items()]
    return '\n\n'.join(['## B2: random batches of 256 images, one process, one thread',
        f'Jets: {what()}, {n:,} of them; sorted random numbers; files in the page cache. The columns on the right: so many times as fast as that.', table(head, rows)])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
