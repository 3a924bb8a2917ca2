"B7: training the autoencoders R1 and R3 on a CPU, images a second"
import json, subprocess, sys, tempfile, time, warnings
from collections import defaultdict
from functools import partial
from statistics import mean, stdev
from timing import median, number, ratio, show, spread, table
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from fastai.callback.core import Callback
from samples import jets, what

BS = 128

# The reference loops, as a notebook writes them: float32 tensors in memory, a Dataset, a DataLoader, Adam, the default memory layout

def r1_net():
    return nn.Sequential(nn.Conv2d(1,8,3,2,1), nn.ReLU(), nn.Conv2d(8,16,3,2,1), nn.ReLU(), nn.Conv2d(16,32,3,2,1), nn.ReLU(), nn.Conv2d(32,64,3,2,1), nn.ReLU(),
        nn.ConvTranspose2d(64,32,3,2,1,1), nn.ReLU(), nn.ConvTranspose2d(32,16,3,2,1,1), nn.ReLU(), nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False),
        nn.Conv2d(16,8,3,1,1), nn.ReLU(), nn.ConvTranspose2d(8,1,3,2,1,1), nn.Sigmoid())

def r1_loss(out, x):
    out = out[:,:,:125,:125]
    w = torch.where(x > .01, torch.tensor(100.), torch.tensor(1.))
    return (w*(out-x)**2).mean()/w.mean()

class R3(nn.Module):
    def __init__(self, latent=2048):
        super().__init__()
        w,act = (3,32,64,128,256),partial(nn.LeakyReLU, .2)
        self.enc = nn.Sequential(*[l for i,o in zip(w,w[1:]) for l in (nn.Conv2d(i,o,3,2,1), nn.BatchNorm2d(o), act())], nn.Flatten())
        self.mu,self.logvar,self.fc = nn.Linear(16384,latent),nn.Linear(16384,latent),nn.Linear(latent,16384)
        up = partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.dec = nn.Sequential(*[l for i,o in ((256,128),(128,64),(64,32)) for l in (up(i,o), nn.BatchNorm2d(o), act())], up(32,3), nn.Tanh())
    def forward(self, x):
        h = self.enc(x)
        mu,logvar = self.mu(h),self.logvar(h)
        z = mu+torch.randn_like(mu)*(.5*logvar).exp()
        return (self.dec(self.fc(z).view(-1,256,8,8))+1)/2,mu,logvar

def r3_loss(out, x):
    out,mu,logvar = out
    return 500*nn.functional.binary_cross_entropy(out, x) - .5*(1+logvar-mu**2-logvar.exp()).sum(1).mean()

def reference_epoch(net, loss, opt, x):
    total = 0.
    for xb, in DataLoader(TensorDataset(x), batch_size=BS, shuffle=True, drop_last=True):
        opt.zero_grad()
        l = loss(net(xb), xb)
        l.backward()
        opt.step()
        total += l.item()
    return total/(len(x)//BS)

# jetbook

class Phases(Callback):
    "Seconds spent on data, forward, backward and optimiser"
    order = 100
    def before_train(self): self.t,self.spent = time.perf_counter(),defaultdict(float)
    def _add(self, k):
        if self.training: now = time.perf_counter(); self.spent[k] += now-self.t; self.t = now
    def before_batch(self): self._add('data')
    def after_loss(self): self._add('forward and loss')
    def after_backward(self): self._add('backward')
    def after_step(self): self._add('optimiser')

def learner(recipe, store, **settings):
    from jetbook.data.loaders import split
    from jetbook.train.recipes import get_recipe
    learn = get_recipe(recipe).func(store, split(store, .01, .01), **settings)
    learn.dls.train.idx,learn.dls.train.n = learn.dls.train.idx[:BS*(len(store)//BS-1)],BS*(len(store)//BS-1)
    return learn

def fit(learn, epochs=1, lr=1e-4, cbs=()):
    "Train without validating; the mean training loss of each epoch"
    losses = []
    class Keep(Callback):
        def before_train(self): self.sum = []
        def after_batch(self):
            if self.training: self.sum.append(self.loss.item())
        def after_train(self): losses.append(mean(self.sum))
        def before_validate(self):
            from fastai.callback.core import CancelValidException
            raise CancelValidException()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr, cbs=[Keep(), *cbs])
    return losses

def peak():
    "GFLOP/s of a large matrix product"
    out = {}
    for name,dtype in (('float32',torch.float32),('bfloat16',torch.bfloat16)):
        a,b = (torch.randn(1024,1024).to(dtype) for _ in range(2))
        for _ in range(2): a@b
        rates = []
        for _ in range(5):
            t = time.perf_counter(); a@b; rates.append(2*1024**3/(time.perf_counter()-t)/1e9)
        out[name] = median(rates)
    return out

def flops(net, loss, x):
    with FlopCounterMode(display=False) as f: loss(net(x), x).backward()
    return f.get_total_flops()/len(x)

def build(way, n):
    "A way to train an epoch on `n` jets: (function, images, learner or None)"
    from jetbook.data.transforms import MinMax
    system,kind = way.split(': ')
    store = jets(n+BS)
    if kind!='loop as written':
        p = kind.split()[-1]
        learn = learner('conv_ae', store, channels=['ECAL'], precision=p) if system=='R1' else learner('vae', store, precision=p)
        from jetbook.train.training import keep_memory
        keep_memory()                                   # as `train` does on a CPU
        return (lambda cbs=(): fit(learn, cbs=cbs)), learn.dls.train.n, learn
    x = MinMax()(store.images())[:n]
    net,loss,x = (r1_net(), r1_loss, x[:,1:2].contiguous()) if system=='R1' else (R3(2048), r3_loss, nn.functional.pad(x, (1,2,1,2)).contiguous())
    opt = torch.optim.Adam(net.parameters(), lr=1e-4)
    return (lambda: reference_epoch(net, loss, opt, x)), n, None

def worker(way, n):
    "In a process of its own: one epoch to warm up, one that is timed"
    torch.set_num_threads(1)
    epoch,count,learn = build(way, n)
    epoch()
    start = time.perf_counter(); epoch(); rate = count/(time.perf_counter()-start)
    ph = Phases()
    if learn: epoch([ph])
    print(json.dumps(dict(rate=rate, phases=dict(getattr(ph,'spent',{})))))

def system(name, n, quick):
    "Rates of the ways to train one system, each in a process of its own, in turn; and the phases of ours"
    ways = [f'{name}: loop as written', f'{name}: `jetbook`, fp32', f'{name}: `jetbook`, bf16']
    rates,spent = {w:[] for w in ways},{}
    for i in range(2 if quick else 5):
        for w in (ways if i%2==0 else ways[::-1]):
            r = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--worker', w, str(n)], capture_output=True, text=True, check=True)
            r = json.loads(r.stdout.strip().splitlines()[-1])
            rates[w].append(r['rate']); spent[w] = r['phases']
    return rates,{w.replace('`jetbook`, ',''):v for w,v in spent.items() if v}

def curves(store, x, seeds, epochs):
    "Training loss of R1 on HCAL by epoch: loop as written and jetbook, mean and spread over seeds"
    runs = defaultdict(list)
    for s in range(seeds):
        torch.manual_seed(s)
        net = r1_net(); opt = torch.optim.Adam(net.parameters(), lr=1e-3)
        runs['loop as written'].append([reference_epoch(net, r1_loss, opt, x) for _ in range(epochs)])
        for p in ('fp32','bf16'):
            torch.manual_seed(s)
            l = learner('conv_ae', store, channels=['HCAL'], precision=p); l.dls.train.seed = s
            runs[f'`jetbook`, {p}'].append(fit(l, epochs, 1e-3))
    fmt = lambda v: f'{mean(v):.5f} ± {stdev(v):.5f}'
    return table(['way', *(f'epoch {e+1}' for e in range(epochs))], [[k, *(fmt([r[e] for r in v]) for e in range(epochs))] for k,v in runs.items()])

def main(tmp, quick=False):
    warnings.filterwarnings('ignore')
    from jetbook.data.transforms import MinMax
    threads,out = torch.get_num_threads(),[]
    torch.set_num_threads(1)
    n1,n3 = (2*BS,2*BS) if quick else (12*BS,3*BS)
    store,limit = jets(n1+BS),peak()
    dense = MinMax()(store.images())[:n1].contiguous()
    fl = dict(R1=flops(r1_net(), r1_loss, dense[:8,1:2].contiguous()), R3=flops(R3(2048), r3_loss, nn.functional.pad(dense[:8], (1,2,1,2))))
    rows,spent = [],{}
    for name,n in (('R1',n1),('R3',n3)):
        rates,phases = system(name, n, quick); spent |= phases
        for k,r in rates.items():
            done = fl[name]*median(r)/1e9
            rows.append([k, number(median(r)), spread(r), f'{done:.0f}', f'{done/limit["bfloat16" if "bf16" in k else "float32"]:.0%}', '' if 'loop' in k else f'**{ratio(rates,k,f"{name}: loop as written"):.2f}**'])
    kinds = list(next(iter(spent.values())))
    phases = table(['system', *kinds], [[k, *(f'{v[q]/sum(v.values()):.1%}' for q in kinds)] for k,v in spent.items()])
    hcal = dense[:,2:3].contiguous()
    loss = curves(store, hcal, 2 if quick else 3, 2 if quick else 6)
    torch.set_num_threads(threads)
    return '\n\n'.join(['## B7: training R1 and R3, one thread',
        f'Jets: {what()}. Batches of {BS}; each way in a process of its own, an epoch to warm up and one that is timed. Peak of a 1024x1024 matrix product: {limit["float32"]:.0f} GFLOP/s in float32, {limit["bfloat16"]:.0f} in bfloat16; the work of an image is counted by torch, '
        f'{fl["R1"]/1e6:.0f} MFLOP for R1 and {fl["R3"]/1e6:,.0f} for R3, forward and backward.',
        table(['way','images/s (median)','lowest to highest','GFLOP/s','of the peak','times the loop as written'], rows), 'Where the time goes:', phases,
        'Training loss of R1 on HCAL by epoch at a constant rate of 1e-3, mean ± standard deviation over seeds:', loss])

if __name__=='__main__':
    if sys.argv[1:2]==['--worker']: worker(sys.argv[2], int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as t: show(main(t))
