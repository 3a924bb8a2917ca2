"B5: seconds of training to the best AUC that the reference's graph network reaches, same jets"
import json, subprocess, sys, time, warnings
import numpy as np, torch
from timing import number, show, table
from torch import nn

BS,SIZES = 128,dict(train=12_000, valid=2_400)

# R4 as a notebook writes it: a KD-tree a jet, a list of Data, PyG's DataLoader and convolutions, Adam

def written_graphs(store, idx, mean, std):
    from scipy.spatial import cKDTree
    from torch.nn.functional import interpolate
    from torch_geometric.data import Data
    res = []
    for i in idx:
        img = interpolate(store.images([i]), (128,128), mode='bilinear', align_corners=False)[0]
        img = ((img-mean)/std).clamp(min=0).permute(1,2,0)
        pos = img.any(-1).nonzero()
        xy = pos.numpy()
        k = min(8, len(xy))
        d,near = cKDTree(xy).query(xy, k=k)
        d,near = d.reshape(len(xy),k),near.reshape(len(xy),k)
        sigma = max(d[:,-1].mean(), 1e-6)
        edge_index = torch.from_numpy(np.stack([np.repeat(np.arange(len(xy)), k), near.ravel()])) # from a node to its neighbours
        res.append(Data(x=img[pos[:,0],pos[:,1]], edge_index=edge_index, edge_weight=torch.from_numpy(np.exp(-d.ravel()**2/sigma**2)).float(), y=int(store.columns['y'][i])))
    return res

class Written(nn.Module):
    def __init__(self, kind, h=64):
        super().__init__()
        from torch_geometric import nn as g
        make = dict(gcn=g.GCNConv, gat=g.GATConv, sage=g.SAGEConv, gin=lambda i,o: g.GINConv(nn.Sequential(nn.Linear(i,o), nn.ReLU(), nn.Linear(o,o))))[kind]
        self.kind,self.convs = kind,nn.ModuleList([make(3,h), make(h,2*h), make(2*h,h)])
        self.head = nn.Sequential(nn.Linear(h,h//4), nn.ReLU(), nn.Linear(h//4,2))
    def forward(self, b):
        from torch_geometric.nn import global_mean_pool
        x = b.x
        for c in self.convs: x = c(x, b.edge_index).relu() # the stored weights are used by none
        return self.head(global_mean_pool(x, b.batch))

def _auc(y, score):
    from sklearn.metrics import roc_auc_score
    return float(roc_auc_score(y, score))

def _say(**row): print(json.dumps(row), flush=True)

def _jets(scale):
    from jetbook.data.hdf5 import sample
    from jetbook.data.loaders import split
    store = sample('qg')
    sp = split(store, .1, .4)
    return store,sp.train[::scale],sp.valid[::scale]

def written(kind, epochs, scale, seed=0):
    "Train R4 as written; after each half of an epoch say the seconds of processor time so far, without those of looking, and the AUC of the valid part"
    from torch_geometric.loader import DataLoader
    store,tr,va = _jets(scale)
    some = torch.nn.functional.interpolate(store.images(tr[:1000]), (128,128), mode='bilinear', align_corners=False)
    start = time.process_time()
    graphs = [written_graphs(store, idx, some.mean(), some.std()) for idx in (tr,va)]
    _say(graphs_per_second=(len(tr)+len(va))/(time.process_time()-start))
    torch.manual_seed(seed)
    net,ce = Written(kind),nn.CrossEntropyLoss()
    opt,train,valid = torch.optim.Adam(net.parameters(), 1e-3),DataLoader(graphs[0], BS, shuffle=True),DataLoader(graphs[1], BS)
    seconds,n,look = 0.,0,max(1, len(train)//2)
    for _ in range(epochs):
        net.train(); start = time.process_time()
        for b in train:
            opt.zero_grad(); loss = ce(net(b), b.y); loss.backward(); opt.step()
            n += 1
            if n%look: continue
            seconds += time.process_time()-start
            net.eval()
            with torch.no_grad(): s = torch.cat([net(b).softmax(-1)[:,1] for b in valid])
            _say(epoch=n/len(train), seconds=seconds, auc=_auc(store.columns['y'][va], s))
            net.train(); start = time.process_time()
        seconds += time.process_time()-start

# jetbook

def ours(name, epochs, scale, seed=0):
    "Train a recipe with its own schedule, looking as often; its batches are made on the fly within the time"
    from fastai.callback.core import Callback
    from fastai.callback.schedule import ParamScheduler
    from fastai.torch_core import set_seed
    from jetbook.data.hdf5 import sample
    from jetbook.data.loaders import Split
    from jetbook.train.training import SCHEDULES, keep_memory
    from jetbook.train.recipes import get_recipe
    from jetbook.train.runs import score
    store,tr,va = _jets(scale)
    keep_memory(); set_seed(seed)
    r,began = get_recipe(name),time.process_time()
    sp = Split(tr, va, va[:2], len(store), (.1,.4), 0)
    learn = r.func(store, sp)
    _say(made=time.process_time()-began)
    class Look(Callback):
        order,seconds = 100,time.process_time()-began                # scales and profiles of the jets are part of it
        def before_train(self): self.start,self.every = time.process_time(),max(1, len(self.dls.train)//2)
        def after_train(self): self.seconds += time.process_time()-self.start
        def after_batch(self):
            if not self.training or (self.learn.train_iter)%self.every: return
            self.seconds += time.process_time()-self.start
            self.model.eval()
            with torch.no_grad(): s = torch.cat([score(self.model(*b[:self.dls.train.n_inp])) for b in self.dls.valid])
            _say(epoch=self.learn.train_iter/len(self.dls.train), seconds=self.seconds, auc=_auc(store.columns['y'][va], s))
            self.model.train(); self.start = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=[ParamScheduler(SCHEDULES[r.schedule](r.lr_max, learn.moms)), Look()])

def _way(*args):
    "One training in a process of its own; its lines"
    r = subprocess.run([sys.executable, __file__, *map(str,args)], capture_output=True, text=True)
    if r.returncode: raise RuntimeError(r.stderr[-3000:])
    return [json.loads(l) for l in r.stdout.splitlines() if l.startswith('{')]

def _reaches(rows, auc): return next((r['seconds'] for r in rows if r['auc']>=auc), None)

R4,R5 = 'sage','sage_pairs' # the best of each, by the table of notebook 05d
OURS = (('pfn_quick',3), ('fused_pfn',1))

def main(tmp, quick=False):
    scale,epochs = (20,(1,2)) if quick else (1,(2,6))
    head,*r4 = _way('written', R4, epochs[0], scale)
    r5 = _way('ours', R5, epochs[1], scale, 0)[1:]
    refs = {f'R4 `{R4}` as its notebook writes it, {epochs[0]} epochs':r4, f'after R5: `{R5}`, the recipe, {epochs[1]} epochs':r5}
    best = max(refs, key=lambda k: max(r['auc'] for r in refs[k]))
    top = max(r['auc'] for r in refs[best])
    at = _reaches(refs[best], top)
    rate = lambda rows: number(rows[-1]['epoch']*SIZES['train']/scale/rows[-1]['seconds'])
    rows = [[k, rate(v), f"{max(r['auc'] for r in v):.4f}", f"{_reaches(v, max(r['auc'] for r in v)):,.0f}", f'{at:,.0f}' if k==best else 'never', '1' if k==best else ''] for k,v in refs.items()]
    for name,n in OURS:
        mine = [_way('ours', name, n, scale, seed)[1:] for seed in ((0,) if quick else (0,1,2))]
        t = [_reaches(m, top) for m in mine]
        own = [_reaches(m, max(r['auc'] for r in m)) for m in mine]
        rows.append([f'`{name}`, {n} epochs', rate(mine[0]), ', '.join(f"{max(r['auc'] for r in m):.4f}" for m in mine), ', '.join(f'{o:,.1f}' for o in own),
                     ', '.join('never' if o is None else f'{o:,.1f}' for o in t), 'never' if None in t else f'1/{at/max(t):,.0f}'])
    return f"""## B5: seconds to the reference's best AUC

{SIZES['train']//scale:,} jets of the shipped sample to train on, AUC on {SIZES['valid']//scale:,} others, looked at twice an epoch (the looking is not counted). Seconds are of processor time, one thread, a process a training.
R4 as written: plain Adam 1e-3, batches of {BS}, PyG's own convolutions and loader (its author: 40 epochs); its graphs, {head['graphs_per_second']:,.0f} a second from a KD-tree a jet, are ready before the clock starts. `{R5}` (after R5: another loss, a classifier) runs as the recipe does, with
jetbook's convolutions, which are faster than PyG's: that favours the reference. jetbook's batches are made within the time, scales and profiles of the jets included. Three seeds of ours; the ratio is that of the slowest to the reference with the best AUC, {top:.4f}.

{table(['training','jets/s','best AUC',"seconds to it",f'seconds to {top:.4f}','part of the time'], rows)}
"""

if __name__=='__main__':
    warnings.filterwarnings('ignore')
    a = sys.argv[1:]
    if a[:1]==['written']: written(a[1], int(a[2]), int(a[3]))
    elif a[:1]==['ours']: ours(a[1], int(a[2]), int(a[3]), int(a[4]))
    else: show(main(None, '--quick' in a))
